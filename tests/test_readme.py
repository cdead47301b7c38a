"""A page's Python blocks run, in order, as one script; its commands are the ones that exist."""

import re
from pathlib import Path

import pytest

from metaopt.__main__ import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text()
PAGES = [
    README,
    ROOT / "metaopt/algorithms/README.md",
    ROOT / "metaopt/train/README.md",
]  # the door's has its own test


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert "mo" in names, "a page has an example"


def test_a_meta_gradient_of_the_readme_is_a_number() -> None:
    block = next(b for b in re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
    names: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), names)
    assert all(float(p.grad.abs().sum()) > 0 for p in names["params"].values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "page",
    [README, *sorted((ROOT / "metaopt").glob("*/README.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in x]
    assert all((page.parent / link).exists() for link in links)


def test_opens_with_two_commands() -> None:
    kinds = re.findall(r"^```(\w+ ?\w*)$", TEXT, re.MULTILINE)
    assert kinds[:2] == ["bash run", "bash test"]


@pytest.mark.parametrize("command", re.findall(r"python -m metaopt (\w+)", TEXT))
def test_commands_exist(command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
