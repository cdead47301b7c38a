"""How does the time of a meta-gradient grow with tasks and with inner steps?

    python -m benchmarks.scaling [--tasks 1 5 25 100 400] [--steps 1 5 25 100] [--compile]

Sinusoid MLP 40-40; CPU milliseconds, medians of interleaved repetitions. ``--compile`` adds compiled steps,
with the seconds that their first call took: those must not grow with the steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp())

import torch

import metaopt as mo
from benchmarks import peers
from benchmarks.problems import Work, sinusoid


def row(label: str, work: Work, compile: bool, repetitions: int) -> None:
    ways = {"vmap": peers.ours(how="vmap"), "loop": peers.ours(how="loop")}
    if compile:
        ways["compiled step"] = peers.ours("step")
    mo.forget_compiled()
    runs, first = {}, {}
    for name, peer in ways.items():
        start = time.process_time()
        runs[name] = peer(work)
        runs[name]()
        first[name] = time.process_time() - start
    ms: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start = time.process_time()
            run()
            ms[name].append(1e3 * (time.process_time() - start))
    cells = "   ".join(f"{name} {statistics.median(ms[name]):9.2f}" for name in runs)
    print(
        f"{label:<12} {cells}" + (f"   first {first['compiled step']:.1f} s" if compile else ""), flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="*", default=[1, 5, 25, 100, 400])
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 5, 25, 100])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for tasks in args.tasks:
        row(f"T={tasks} J=5", sinusoid(tasks, 5, 1), args.compile, args.repetitions)
    for steps in args.steps:
        row(f"T=25 J={steps}", sinusoid(25, steps, 1), args.compile, args.repetitions)


if __name__ == "__main__":
    main()
