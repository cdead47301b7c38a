"""The guard against becoming slower, the targets, README's tables and the picture, from tables made here."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("benchmarks.compare", reason="benchmarks are not beside this package")
from benchmarks import compare, picture, targets
from benchmarks.problems import WORKS


def cell(ms: float) -> dict[str, Any]:
    return {"first": 2.0 * ms, "error": 1e-7, "ms": [1.3 * ms, ms, 0.9 * ms]}


def table(rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    machine = {
        "cpu": "a",
        "cores": 2,
        "threads": 1,
        "load": 0.5,
        "load at the end": 1.0,
        "versions": {"torch": "2"},
    }
    cells = {key: {peer: cell(ms) for peer, ms in row.items()} for key, row in rows.items()}
    cells["sinusoid-25-5"]["learn2learn"] = {"missing": "ImportError: learn2learn"}
    return {"machine": machine, "clock": "wall", "rows": cells}


@pytest.fixture
def kept() -> dict[str, Any]:
    small = {"metaopt": 10.0, "metaopt, compiled step": 4.0, "torch.func by hand": 10.0, "higher": 95.0}
    long = {"metaopt, compiled step": 20.0, "JAX jit, scan": 25.0, "JAX jit, unrolled": 30.0}
    conv = {"metaopt": 60.0, "metaopt, 2 workers": 40.0, "higher": 66.0, "TorchOpt": 50.0}
    return table({"sinusoid-25-5": small, "sinusoid-25-50": long, "omniglot-16-1": conv})


def run_compare(monkeypatch: Any, folder: Path, kept: Any, fresh: Any, *more: str) -> Any:
    """The exit status of the command."""
    for name, content in (("kept", kept), ("fresh", fresh)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    argv = ["compare", str(folder / "fresh.json"), "--kept", str(folder / "kept.json"), *more]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        compare.main()
    return stopped.value.code


def test_the_same_table_passes(monkeypatch: Any, tmp_path: Path, kept: Any, capsys: Any) -> None:
    assert run_compare(monkeypatch, tmp_path, kept, kept) == 0
    assert "nothing slower than 80% of before in 2 cells" in capsys.readouterr().out


def test_a_slower_machine_passes(monkeypatch: Any, tmp_path: Path, kept: Any) -> None:
    fresh = copy.deepcopy(kept)
    for row in fresh["rows"].values():
        for measured in row.values():
            measured["ms"] = [3 * x for x in measured.get("ms", [])]
    assert run_compare(monkeypatch, tmp_path, kept, fresh) == 0


@pytest.mark.parametrize(
    ("factor", "more", "status"), [(1.4, (), 1), (1.2, (), 0), (1.2, ("--tolerance", "0.9"), 1)]
)
def test_a_doctored_table_fails(
    monkeypatch: Any, tmp_path: Path, kept: Any, capsys: Any, factor: float, more: Any, status: int
) -> None:
    fresh = copy.deepcopy(kept)
    doctored = fresh["rows"]["sinusoid-25-5"]["metaopt, compiled step"]
    doctored["ms"] = [factor * x for x in doctored["ms"]]
    assert run_compare(monkeypatch, tmp_path, kept, fresh, *more) == status
    said = capsys.readouterr().out
    assert ("sinusoid-25-5, metaopt, compiled step:" in said) == bool(status)


def test_a_way_that_is_gone_fails(monkeypatch: Any, tmp_path: Path, kept: Any, capsys: Any) -> None:
    fresh = copy.deepcopy(kept)
    fresh["rows"]["sinusoid-25-5"]["metaopt, compiled step"] = {"missing": "CompileError"}
    assert run_compare(monkeypatch, tmp_path, kept, fresh) == 1
    assert "not measured" in capsys.readouterr().out


def test_tables_without_a_common_row_are_an_error(monkeypatch: Any, tmp_path: Path, kept: Any) -> None:
    fresh = copy.deepcopy(kept)
    fresh["rows"] = {"sinusoid-400-5": fresh["rows"]["sinusoid-25-5"]}
    assert "expected a row that both tables have" in run_compare(monkeypatch, tmp_path, kept, fresh)


def test_targets_are_met_or_missed(kept: Any) -> None:
    found = {(row, target): measured for row, target, measured in targets.verdicts(kept)}
    name = WORKS["sinusoid-25-5"]().name
    assert found[name, "eager, against higher: 10x"] == "9.50x, missed"
    assert found[name, "eager, against torch.func by hand: 0.95x"] == "1.00x"
    assert found["sinusoid T=25 J=50", "compiled, against jitted JAX: 1.3x"] == "1.25x, missed"
    conv = {target: measured for (row, target), measured in found.items() if row.startswith("omniglot")}
    assert list(conv.values()) == ["0.83x, missed", "1.25x"]
    assert all("workers" in x or "auto" in x for x in conv)
    growth = [measured for (_, target), measured in found.items() if target.startswith("seconds to compile")]
    assert growth == ["5.00x (40.0 s), missed"]


def test_every_target_names_rows_and_peers_that_exist() -> None:
    from benchmarks.meta_gradient import PEERS

    for target in targets.TARGETS:
        assert target.row in WORKS
        assert {*target.ours, *target.against} <= PEERS.keys()


def test_markdown(monkeypatch: Any, tmp_path: Path, kept: Any, capsys: Any) -> None:
    (tmp_path / "table.json").write_text(json.dumps(kept))
    monkeypatch.setattr(sys, "argv", ["picture", str(tmp_path / "table.json"), "--markdown"])
    picture.main()
    lines = capsys.readouterr().out.splitlines()
    assert "| | sinusoid T=25 J=5 | sinusoid T=25 J=50 | omniglot conv-64 T=16 J=1 |" in lines
    assert "| metaopt, compiled step | **4** | **20** |  |" in lines
    assert "| sinusoid T=25 J=5 | eager, against higher: 10x | 9.50x, missed |" in lines


def test_the_picture_is_drawn(tmp_path: Path, kept: Any) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    picture.draw(kept, tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
