"""Every notebook runs from start to end in a fresh kernel, and keeps to its form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def read(path: Path) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """(markdown, code, outputs)."""
    cells = json.loads(path.read_text())["cells"]
    text = [source(cell) for cell in cells if cell["cell_type"] == "markdown"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return text, [source(cell) for cell in code], [out for cell in code for out in cell["outputs"]]


def pictures(outputs: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_twelve_are_there_in_reading_order() -> None:
    assert [path.stem[:3] for path in NOTEBOOKS] == [f"{n:02}_" for n in range(1, 13)]


@each
def test_form(path: Path) -> None:
    text, code, outputs = read(path)
    assert len(text) + len(code) <= 15
    assert re.match(rf"# {path.stem[:2]} · .+\n\n\*\*Question\.\*\* .+\?", text[0]), "a title and a question"
    assert "$$" in text[0], "the equation comes first"
    assert "manual_seed" in "".join(code[:2]), "seed first"
    assert any("By hand" in t for t in text)
    assert "**Take away.**" in text[-1]
    assert re.search(r"^ *(assert |torch\.testing\.assert_close\()", "\n".join(code), re.MULTILINE)
    assert pictures(outputs) >= 1


@each
def test_outputs_are_pictures_and_facts(path: Path) -> None:
    found = path.read_text()
    assert len(found) < 100_000
    for noise in ("/tmp/", "/home/", "/root/", "/work/", "\\\\Users", '"stderr"', '"error"', "widget-view"):
        assert noise not in found
    notebook = json.loads(found)
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert not cell["metadata"]
        assert cell.get("execution_count") is None


@each
def test_runs_in_a_fresh_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient, of the extra [notebook], is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel, of the extra [notebook], is not installed")
    nbformat = pytest.importorskip("nbformat")
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert pictures(outputs) == pictures(read(path)[2])
    said = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in said
