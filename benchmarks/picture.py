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
    """One panel a row, one bar a peer, milliseconds on a logarithmic axis."""
    from matplotlib import pyplot

    rows = table["rows"]
    height = 0.9 + 0.27 * sum(len(times(row)) + 1.6 for row in rows.values())
    ratios = [len(times(row)) + 1 for row in rows.values()]
    figure, axes = pyplot.subplots(
        len(rows), 1, figsize=(7.5, height), squeeze=False, height_ratios=ratios, layout="constrained"
    )
    for axis, (key, row) in zip(axes[:, 0], rows.items()):
        found = sorted(times(row).items(), key=lambda pair: -pair[1])
        names, ms = zip(*found)
        colours = [OURS if name.startswith("metaopt") else PEER for name in names]
        axis.barh(names, ms, color=colours, height=0.72)
        axis.set(xscale="log", xlim=(min(ms) / 2, max(ms) * 3))
        axis.set_title(WORKS[key]().name, loc="left", fontsize=10)
        for place, value in enumerate(ms):
            axis.text(value * 1.06, place, f"{value:.3g}", va="center", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("ms a meta-gradient (median; logarithmic)", fontsize=9)
    figure.savefig(path, dpi=130)


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
