"""The kept table of `benchmarks.meta_gradient` as a picture, or as tables for README.

python -m benchmarks.picture [TABLE] [--out PICTURE] [--markdown]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.problems import WORKS
from benchmarks.targets import markdown, times

FOLDER = Path(__file__).parent
OURS, PEER = "#0072b2", "#b0b0b0"  # Okabe and Ito's blue, and grey


def draw(table: dict[str, Any], path: Path) -> None:
    """One panel a row, one bar a peer, the fastest on top, on one logarithmic axis for all."""
    from matplotlib import pyplot

    ms = {key: times(row) for key, row in table["rows"].items() if times(row)}
    columns = min(len(ms), 2)
    lines = -(-len(ms) // columns)
    height = 0.6 + lines * (0.5 + 0.21 * max(map(len, ms.values())))
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(5.5 * columns, height), squeeze=False, layout="constrained"
    )
    every = [x for found in ms.values() for x in found.values()]
    for axis, (key, found) in zip(axes.T.flat, ms.items()):
        _panel(axis, WORKS[key]().name, found)
        axis.set_xlim(min(every) / 2, max(every) * 5)
    for axis in axes.T.flat[len(ms) :]:
        axis.axis("off")
    machine = table["machine"]
    load = f"load {machine['load']:.1f} to {machine['load at the end']:.1f}"
    figure.supxlabel(
        f"ms by the {table['clock']} clock (medians; log axis; {machine['cores']} cores, {load})",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _panel(axis: Any, title: str, found: dict[str, float]) -> None:
    names, ms = zip(*sorted(found.items(), key=lambda pair: -pair[1]))
    colours = [OURS if name.startswith("metaopt") else PEER for name in names]
    axis.barh(names, ms, color=colours, height=0.72)
    axis.set_xscale("log")
    axis.set_title(title, loc="left", fontsize=10)
    for place, value in enumerate(ms):
        digits = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        axis.annotate(digits, (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, nargs="?", default=FOLDER / "results" / "meta_gradient.json")
    parser.add_argument("--out", type=Path, default=FOLDER / "pictures" / "meta_gradient.png")
    parser.add_argument("--markdown", action="store_true", help="print the tables and draw nothing")
    args = parser.parse_args()
    table = json.loads(args.table.read_text())
    if args.markdown:
        print(markdown(table))
    else:
        draw(table, args.out)


if __name__ == "__main__":
    main()
