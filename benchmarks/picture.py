"""The kept table of `benchmarks.meta_gradient` as a picture: python -m benchmarks.picture [TABLE PICTURE]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.problems import WORKS

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


def times(row: dict[str, Any]) -> dict[str, float]:
    return {peer: sorted(c["ms"])[len(c["ms"]) // 2] for peer, c in row.items() if c.get("ms")}


def main() -> None:
    table, picture = FOLDER / "results" / "meta_gradient.json", FOLDER / "pictures" / "meta_gradient.png"
    given = [Path(x) for x in sys.argv[1:]]
    draw(json.loads((given[0] if given else table).read_text()), given[1] if len(given) > 1 else picture)


if __name__ == "__main__":
    main()
