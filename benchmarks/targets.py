"""The targets of speed, and what a table of `benchmarks.meta_gradient` says about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.problems import WORKS

Row = dict[str, Any]
EAGER = ("metaopt",)
COMPILED = ("metaopt, compiled step", "metaopt, compiled whole")
THREADS = ("metaopt, 2 workers",)
JAX = ("JAX jit, unrolled", "JAX jit, scan")
EAGER_PEERS = ("autograd loop", "higher", "TorchOpt")
HAND = ("torch.func by hand",)


class Target(NamedTuple):
    """The fastest of ``ours`` is to be ``least`` times as fast as the fastest of ``against``."""

    row: str
    label: str
    ours: tuple[str, ...]
    against: tuple[str, ...]
    least: float


TARGETS = [
    Target("sinusoid-25-5", "eager, against higher", EAGER, ("higher",), 10),
    Target("sinusoid-25-5", "compiled, against higher", COMPILED, ("higher",), 70),
    Target("sinusoid-25-5", "compiled, against jitted JAX", COMPILED, JAX, 2),
    Target("sinusoid-25-50", "compiled, against jitted JAX", COMPILED, JAX, 1.3),
    Target("sinusoid-400-5", "eager, against higher", EAGER, ("higher",), 40),
    Target("sinusoid-400-5", "compiled, against higher", COMPILED, ("higher",), 65),
    *[
        Target(f"omniglot-16-{steps}", f"{label}, against {'/'.join(EAGER_PEERS)}", ours, EAGER_PEERS, 1.1)
        for steps in (1, 5)
        for label, ours in (('`how="auto"`', EAGER), ("`workers=2`", THREADS))
    ],
    *[Target(row, "eager, against torch.func by hand", EAGER, HAND, 0.95) for row in WORKS],
]
GROWTH = 1.2  # seconds to compile 50 steps, at most this many times those for 5


def median(ms: list[float]) -> float:
    return sorted(ms)[len(ms) // 2]


def times(row: Row) -> dict[str, float]:
    """Median milliseconds by peer.

    >>> times({"higher": {"ms": [3.0, 1.0, 2.0]}, "learn2learn": {"missing": "not installed"}})
    {'higher': 2.0}
    """
    return {peer: median(cell["ms"]) for peer, cell in row.items() if cell.get("ms")}


def ratio(target: Target, row: Row) -> float | None:
    """How many times as fast ours is; None where either side was not measured.

    >>> row = {"metaopt": {"ms": [2.0]}, "higher": {"ms": [30.0]}}
    >>> ratio(TARGETS[0], row)
    15.0
    """
    found = times(row)
    ours = [found[peer] for peer in target.ours if peer in found]
    against = [found[peer] for peer in target.against if peer in found]
    return min(against) / min(ours) if ours and against else None


def verdicts(table: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(row, target, measured) in words, for every target of which the table knows something."""
    rows = table["rows"]
    for target in TARGETS:
        found = ratio(target, rows.get(target.row, {}))
        if found is not None:
            verdict = "" if found >= target.least else ", missed"
            yield WORKS[target.row]().name, f"{target.label}: {target.least:g}x", f"{found:.2f}x{verdict}"
    step = COMPILED[0]
    first = [rows.get(f"sinusoid-25-{steps}", {}).get(step, {}).get("first") for steps in (5, 50)]
    if all(first):
        found = first[1] / first[0]
        verdict = "" if found <= GROWTH else ", missed"
        label = f"seconds to compile the step, of J=5's: at most {GROWTH}x"
        yield WORKS["sinusoid-25-50"]().name, label, f"{found:.2f}x ({first[1]:.1f} s){verdict}"


def markdown(table: dict[str, Any]) -> str:
    """Two tables for README: milliseconds by peer and row, and the targets with what was measured."""
    machine, ms = table["machine"], {key: times(row) for key, row in table["rows"].items()}
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    lines = [
        f"{machine['cores']} CPU cores ({machine['cpu']}), {machine['threads']} threads an operation, load "
        f"{machine['load']:.1f} to {machine['load at the end']:.1f}, {versions}; ms a meta-gradient "
        f"by the {table['clock']} clock, medians of interleaved repetitions.",
        "",
        "| | " + " | ".join(WORKS[key]().name for key in ms) + " |",
        "| --- |" + " ---: |" * len(ms),
    ]
    peers = dict.fromkeys(peer for found in ms.values() for peer in found)
    lines += [
        f"| {peer} | " + " | ".join(_cell(found, peer) for found in ms.values()) + " |" for peer in peers
    ]
    lines += ["", "| row | target | measured |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(verdict)} |" for verdict in verdicts(table)]
    return "\n".join(lines)


def _cell(found: dict[str, float], peer: str) -> str:
    """The milliseconds to three digits, the least of the row in bold."""
    if peer not in found:
        return ""
    digits = f"{found[peer]:.0f}" if found[peer] >= 100 else f"{found[peer]:.3g}"
    return f"**{digits}**" if found[peer] == min(found.values()) else digits
