"""The table of the initialisations: best first, the latest run of each, and in the READMEs as measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.omniglot import BEGIN, END, PAGES, kept, published, table

ROW: dict[str, Any] = {
    "algorithm": "maml",
    "accuracy": 95.2,
    "interval": 0.47,
    "iterations": 10718,
    "cpu_seconds": 598.7,
    "batch_norm": "transductive",
    "way": 5,
    "shot": 1,
    "meta_batch": 4,
}


def test_the_best_comes_first_and_the_latest_run_counts() -> None:
    rows = [ROW | {"accuracy": 60.0}, ROW, ROW | {"algorithm": "r2d2", "accuracy": 96.75}]
    lines = table(rows).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| r2d2", "| maml"]
    assert lines[1] == (
        "| maml | 95.20 ± 0.47 % | 10,718 × 4 | 599 | transductive | 98.7 ± 0.4 (Finn 2017) |"
    )
    assert table([ROW | {"way": 20}]).endswith("| transductive | — |")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.parent.name))
def test_readme_has_what_was_measured(path: Path) -> None:
    """`python -m benchmarks.omniglot --publish` after a new row."""
    page = path.read_text()
    assert published(page, kept()) == page


def test_a_page_without_markers_is_refused() -> None:
    assert published(f"a\n{BEGIN}old\n{END}\nb", [ROW]) == f"a\n{BEGIN}\n{table([ROW])}\n\n{END}\nb"
    with pytest.raises(ValueError, match=r"expected <!-- python"):
        published(f"a\n{BEGIN}old", [ROW])
