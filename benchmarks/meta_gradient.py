"""How long does one meta-gradient take, by us and by everything a user would pick instead?

    python -m benchmarks.meta_gradient [ROWS] [--peers NAMES] [--clock cpu] [--save] [--quick]

One process, one run: every peer's gradient is checked against the loop of the textbook first, then the
repetitions are interleaved, fewer for whoever is slow. Medians of milliseconds with quartiles, by the
wall's clock (or ``--clock cpu``, the process's own, on a busy machine), the ratio to every peer,
and the seconds of the first call, which compiles where something is compiled: nothing that was compiled for
one row, in memory or on disk, is there for the next. ``--save`` keeps the table in
benchmarks/results/meta_gradient.json, with which `python -m benchmarks.compare` compares a fresh one, and
from which `python -m benchmarks.picture` draws the picture and prints the tables for README.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

import metaopt as mo
from benchmarks import peers
from benchmarks.peers_jax import with_jax
from benchmarks.problems import WORKS, Work
from benchmarks.targets import times

RESULTS = Path(__file__).parent / "results" / "meta_gradient.json"
PEERS: dict[str, Any] = {
    "metaopt": peers.ours(),
    "metaopt, compiled step": peers.ours("step"),
    "metaopt, compiled whole": peers.ours("whole"),
    "metaopt, 2 workers": peers.ours(workers=2),
    "torch.func by hand": peers.by_hand,
    "torch.func by hand, compiled": peers.by_hand_compiled,
    "autograd loop": peers.autograd_loop,
    "higher": peers.with_higher,
    "TorchOpt": peers.with_torchopt,
    "learn2learn": peers.with_learn2learn,
    "JAX jit, unrolled": with_jax(scan=False),
    "JAX jit, scan": with_jax(scan=True),
}
LONG = 16  # inner steps that nobody compiles unrolled
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PATIENCE = 4.0  # seconds after which a peer has repeated enough, if it did so three times
# Why a peer is not measured on convolutions, on small nets, and on a single step.
CONV = {
    "metaopt, compiled step": "torch's convolutions are kernels already: nothing to gain on a CPU",
    "metaopt, compiled whole": "torch's convolutions are kernels already: nothing to gain on a CPU",
}
MLP = {"metaopt, 2 workers": "for convolutions: vmap makes one call of all tasks of a small net"}
SINGLE = {"JAX jit, scan": "for more steps than one: the same program as unrolled"}


def gradient_error(found: Any, expected: Any) -> float:
    """max |a − b| / max |b| over all parameters."""
    pairs = [(torch.as_tensor(_array(a)), b) for a, b in zip(found, expected, strict=True)]
    scale = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / scale


def _array(x: Any) -> Any:
    import numpy

    return x if isinstance(x, torch.Tensor) else numpy.array(x)


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Compile times are those of a first run."""
    mo.forget_compiled()
    torch._dynamo.reset()
    with fresh_cache():
        yield


def start(name: str, work: Work, expected: Any, clock: Any) -> tuple[Any, dict[str, Any]]:
    """A peer that is ready to be repeated, and its cell: the first call's seconds, its error."""
    skipped = (CONV if work.conv else MLP) | (SINGLE if work.steps == 1 else {})
    if name in skipped:
        raise peers.Unable(skipped[name])
    if name == "metaopt, compiled whole" and work.steps > LONG:
        raise peers.Unable("for few steps; the step is compiled instead")
    began = clock()
    run = PEERS[name](work)
    found = run()
    first = clock() - began
    error = gradient_error(found, expected)
    tolerance = 2e-2 if work.conv else 2e-3
    assert error < tolerance, f"{name}: its meta-gradient is {error:.1e} off the loop's"
    return run, {"first": first, "error": error, "ms": []}


def measure(work: Work, names: list[str], quick: bool, clock: Any = time.perf_counter) -> dict[str, Any]:
    """A row of the table: every peer's milliseconds, first call, error; or why it is not there."""
    expected = peers.autograd_loop(work)()
    runs, row = {}, {}
    for name in names:
        try:
            runs[name], row[name] = start(name, work, expected, clock)
        except (ImportError, peers.Unable) as error:
            row[name] = {"missing": f"{type(error).__name__}: {error}"}
        print(f"  {name:<30} first call {row[name].get('first', float('nan')):7.1f} s", flush=True)
    for repetition in range(3 if quick else work.repetitions):
        for name, run in runs.items():
            ms = row[name]["ms"]
            if repetition >= 3 and sum(ms) > 1e3 * PATIENCE:
                continue
            began = clock()
            run()
            ms.append(1e3 * (clock() - began))
    return row


def show(name: str, row: dict[str, Any]) -> None:
    here = times(row)
    mine = min((ms for peer, ms in here.items() if peer.startswith("metaopt")), default=min(here.values()))
    print(f"\n{name}: ms, median (quartiles); ratio to our fastest, and to our eager path")
    for peer, cell in row.items():
        if "missing" in cell:
            print(f"  {peer:<30} not run. {cell['missing'][:90]}")
            continue
        ms, third = sorted(cell["ms"]), len(cell["ms"]) // 4
        eager = here.get("metaopt", mine)
        print(
            f"  {peer:<30} {here[peer]:>9.2f} ({ms[third]:.2f} .. {ms[-1 - third]:.2f}) "
            f"{here[peer] / mine:>7.2f}x {here[peer] / eager:>7.2f}x   first {cell['first']:.1f} s   "
            f"error {cell['error']:.0e}"
        )


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    wanted = ("torch", "higher", "torchopt", "learn2learn", "jax", "optax")
    installed = {d.name.lower(): d.version for d in metadata.distributions()}
    found = {package: installed.get(package, "not installed") for package in wanted}
    load = os.getloadavg()[0]
    threads = torch.get_num_threads()
    return {"cpu": model, "cores": os.cpu_count(), "threads": threads, "load": load, "versions": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=list(WORKS), help=", ".join(WORKS))
    parser.add_argument("--peers", help="names, separated by ';'")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quick", action="store_true", help="three repetitions")
    parser.add_argument("--save", action="store_true", help=f"keep the table in {RESULTS.name}")
    parser.add_argument("--out", type=Path, help="write the table to another file")
    args = parser.parse_args()
    began = time.perf_counter()
    table: dict[str, Any] = {"machine": machine(), "clock": args.clock, "rows": {}}
    print(json.dumps(table["machine"]))
    out = args.out or (RESULTS if args.save else None)
    names = args.peers.split(";") if args.peers else list(PEERS)
    for key in args.rows:
        work = WORKS[key]()
        print(f"{work.name}:", flush=True)
        with nothing_compiled():
            table["rows"][key] = measure(work, names, args.quick, CLOCKS[args.clock])
        show(work.name, table["rows"][key])
        table["machine"]["load at the end"] = os.getloadavg()[0]
        table["machine"]["minutes"] = (time.perf_counter() - began) / 60
        if out:  # after every row: an interrupted run keeps what it has
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
