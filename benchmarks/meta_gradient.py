"""How long does one meta-gradient take, by us and by everything a user would pick instead?

    python -m benchmarks.meta_gradient [ROWS] [--peers NAMES] [--clock cpu] [--save] [--quick]

One process, one run: every peer's gradient is checked against the loop of the textbook first, then the
repetitions are interleaved. Medians of milliseconds with quartiles, by the
wall's clock (or ``--clock cpu``, the process's own, on a busy machine), the ratio to every peer,
and the seconds of the first call, which compiles where something is compiled. ``--save`` keeps the table in
benchmarks/results/meta_gradient.json, with which `python -m benchmarks.compare` compares a fresh one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp())  # compile times of a first run

import torch

import metaopt as mo
from benchmarks import peers
from benchmarks.peers_jax import with_jax
from benchmarks.problems import WORKS, Work

RESULTS = Path(__file__).parent / "results" / "meta_gradient.json"
PEERS: dict[str, Any] = {
    "metaopt": peers.ours(),
    "metaopt, compiled step": peers.ours("step"),
    "metaopt, compiled whole": peers.ours("whole"),
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
SLOW = {"autograd loop", "higher", "TorchOpt", "learn2learn"}


def gradient_error(found: Any, expected: Any) -> float:
    """max |a − b| / max |b| over all parameters."""
    pairs = [(torch.as_tensor(_array(a)), b) for a, b in zip(found, expected, strict=True)]
    scale = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / scale


def _array(x: Any) -> Any:
    import numpy

    return x if isinstance(x, torch.Tensor) else numpy.array(x)


def measure(work: Work, names: list[str], quick: bool, clock: Any = time.perf_counter) -> dict[str, Any]:
    """A row of the table: every peer's milliseconds, first call, error; or why it is not there."""
    expected = peers.autograd_loop(work)()
    runs, row = {}, {}
    for name in names:
        try:
            if name == "metaopt, compiled whole" and (work.steps > LONG or work.conv):
                raise peers.Unable("for few steps of small nets; the step is compiled instead")
            if name == "metaopt, compiled step" and work.conv:
                raise peers.Unable("torch's convolutions are kernels already: nothing to gain on a CPU")
            mo.forget_compiled()
            torch._dynamo.reset()
            start = clock()
            run = PEERS[name](work)
            error = gradient_error(run(), expected)
            row[name] = {"first": clock() - start, "error": error, "ms": []}
            tolerance = 2e-2 if work.conv else 2e-3
            assert error < tolerance, f"{name}: its meta-gradient is {error:.1e} off the loop's"
            runs[name] = run
        except (ImportError, peers.Unable) as error:
            row[name] = {"missing": f"{type(error).__name__}: {error}"}
        print(f"  {name:<30} first call {row[name].get('first', float('nan')):7.1f} s", flush=True)
    for repetition in range(3 if quick else work.repetitions):
        for name, run in runs.items():
            if name in SLOW and repetition >= 5:
                continue
            start = clock()
            run()
            row[name]["ms"].append(1e3 * (clock() - start))
    return row


def median(ms: list[float]) -> float:
    return sorted(ms)[len(ms) // 2]


def show(name: str, row: dict[str, Any]) -> None:
    here = {peer: median(cell["ms"]) for peer, cell in row.items() if cell.get("ms")}
    mine = min(ms for peer, ms in here.items() if peer.startswith("metaopt"))
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
    table: dict[str, Any] = {"machine": machine(), "clock": args.clock, "rows": {}}
    print(json.dumps(table["machine"]))
    for key in args.rows:
        work = WORKS[key]()
        print(f"{work.name}:", flush=True)
        row = measure(
            work, args.peers.split(";") if args.peers else list(PEERS), args.quick, CLOCKS[args.clock]
        )
        table["rows"][key] = row
        show(work.name, row)
    table["machine"]["load at the end"] = os.getloadavg()[0]
    out = args.out or (RESULTS if args.save else None)
    if out:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
