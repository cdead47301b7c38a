"""Has something become slower? A fresh table against the kept one, by ratios and not by seconds.

    python -m benchmarks.meta_gradient --quick --out fresh.json && python -m benchmarks.compare fresh.json

Machines differ, and so do the hours of a day: what is compared is each of our ways beside a peer of the same
run, on the same row. The exit status is 1 where a ratio fell below ``--tolerance`` of the kept one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.targets import times

KEPT = Path(__file__).parent / "results" / "meta_gradient.json"
YARDSTICK = "torch.func by hand"  # in every row, and none of our code is in it


def ratios(table: dict[str, Any]) -> dict[tuple[str, str], float]:
    """How many times faster than the yardstick each of our ways is, by (row, way).

    >>> row = {"metaopt": {"ms": [2.0, 3.0, 2.5]}, "torch.func by hand": {"ms": [5.0]}, "higher": {}}
    >>> ratios({"rows": {"small": row}})
    {('small', 'metaopt'): 2.0}
    """
    found = {}
    for key, row in table["rows"].items():
        middle = times(row)
        if YARDSTICK not in middle:
            continue
        ours = [peer for peer in middle if peer.startswith("metaopt")]
        found |= {(key, peer): middle[YARDSTICK] / middle[peer] for peer in ours}
    return found


def slower(kept: dict[str, Any], fresh: dict[str, Any], tolerance: float) -> list[str]:
    """One line for every ratio that fell below ``tolerance`` of what it was, or that cannot be had any more.

    A row or a way that the fresh run was not asked for says nothing.
    """
    before, now = ratios(kept), ratios(fresh)
    found = []
    for row, way in before:
        was = f"was {before[row, way]:.2f}x"
        if "missing" in fresh["rows"].get(row, {}).get(way, {}):
            found.append(f"{row}, {way}: not measured, {was}. {fresh['rows'][row][way]['missing']}")
        elif (row, way) in now and now[row, way] < tolerance * before[row, way]:
            found.append(f"{row}, {way}: {now[row, way]:.2f}x {YARDSTICK}, {was}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fresh", type=Path)
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--tolerance", type=float, default=0.8)
    args = parser.parse_args()
    kept, fresh = (json.loads(path.read_text()) for path in (args.kept, args.fresh))
    common = ratios(kept).keys() & ratios(fresh).keys()
    if not common:
        sys.exit("compare: expected a row that both tables have, got none")
    found = slower(kept, fresh, args.tolerance)
    print("\n".join(found) or f"nothing slower than {args.tolerance:.0%} of before in {len(common)} cells")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
