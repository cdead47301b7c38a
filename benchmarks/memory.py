"""How much memory does the hypergradient of a long inner loop take, and what time does thrift cost?

    python -m benchmarks.memory [--steps 200] [--growth 10 100 1000 10000] [--picture memory.png]

The environment variable POINTS sets the size of the inner batch (100).

Rows: plain autograd through an unroll written by hand on torch.func, and ours with each memory strategy,
eager and with a compiled step (``compile="step"``).
Every figure comes from a process of its own. Peak: bytes alive at once, counted storage by storage by
`metaopt.peak` (within 0.1 % of torch.profiler's allocator events here), and by those events where code is
compiled, which allocates below it; and how far the process's resident memory rose. Time: median of
interleaved repetitions without the counter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import metaopt as mo
from metaopt.peak import peak_memory

STRATEGIES: dict[str, Any] = {
    "all": "all",
    "sqrt": "sqrt",
    "8": 8,
    "compiled": "all",
    "compiled, 8": 8,
    "binomial 8": mo.Binomial(8),
    "binomial 16": mo.Binomial(16),
}

POINTS = int(os.environ.get("POINTS", "100"))  # of the inner batch


def net(p: Any, batch: Any) -> Any:
    """MLP 1-40-40-1."""
    x, y = batch
    h = torch.tanh(torch.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])
    return ((h @ p["w3"] + p["b3"] - y) ** 2).mean()


def data() -> tuple[dict[str, torch.Tensor], Any]:
    g = torch.Generator().manual_seed(0)
    shapes = {"w1": (1, 40), "b1": (40,), "w2": (40, 40), "b2": (40,), "w3": (40, 1), "b3": (1,)}
    params = {k: 0.3 * torch.randn(s, generator=g) for k, s in shapes.items()}
    x = torch.randn(POINTS, 1, generator=g)
    return params, (x, torch.sin(3 * x))


def by_hand(num_steps: int) -> Callable[[], Any]:
    """Plain autograd: θ ← θ − α ∇ℓ(θ) in a loop, then backward."""
    start, batch = data()

    def run() -> Any:
        params = {k: v.clone().requires_grad_() for k, v in start.items()}
        theta = params
        for _ in range(num_steps):
            grads = torch.func.grad(net)(theta, batch)
            theta = {k: theta[k] - 0.01 * grads[k] for k in theta}
        return torch.autograd.grad(net(theta, batch), list(params.values()))

    return run


def ours(num_steps: int, memory: Any, compiled: bool) -> Callable[[], Any]:
    params, batch = data()
    problem = mo.hypergrad.Problem(net, mo.optim.sgd(lr=0.01), batch, num_steps)

    def run() -> Any:
        with mo.compiling("step" if compiled else False):
            return list(mo.hypergrad.unrolled(problem, params, memory=memory).grad.values())

    return run


def make(name: str, num_steps: int) -> Callable[[], Any]:
    if name == "by hand":
        return by_hand(num_steps)
    return ours(num_steps, STRATEGIES[name], name.startswith("compiled"))


def resident() -> int:
    """The most this process ever held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def allocated(run: Callable[[], Any]) -> int:
    """Peak bytes alive in torch's allocator, from torch.profiler's events."""
    from torch.profiler import ProfilerActivity, profile

    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    found = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    live = peak = 0
    for _, size in changes:
        live += size
        peak = max(peak, live)
    return peak


def child(name: str, num_steps: int, count: bool) -> None:
    """Measure one row; JSON on stdout."""
    make(name, 2)()  # imports, kernels
    before = resident()
    run = make(name, num_steps)
    peak = None
    if count:  # compiled code allocates below what `peak_memory` sees
        peak = allocated(run) if name.startswith("compiled") else peak_memory(run)[0]
    if not count:
        make(name, num_steps)()
    print(json.dumps({"peak": peak, "resident": resident() - before}))


def measure(name: str, num_steps: int, count: bool = True) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--child", name, str(num_steps), str(int(count))]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def times(names: list[str], num_steps: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds of each row, interleaved."""
    runs = {name: make(name, num_steps) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repetition:  # the first is for warmth
                found[name].append(time.process_time() - start)
    return found


def table(num_steps: int, repetitions: int) -> None:
    names = ["by hand", *STRATEGIES]
    peaks = {name: measure(name, num_steps) for name in names}
    rises = {name: measure(name, num_steps, count=False)["resident"] for name in names}
    seconds = times(names, num_steps, repetitions)
    base, slow = peaks["by hand"]["peak"], statistics.median(seconds["by hand"])
    print(f"\nJ = {num_steps}, CPU seconds, median of {repetitions} (least .. most)")
    print(f"{'':<22} {'peak MiB':>9} {'of plain':>9} {'RSS rise':>9} {'s':>7} {'of plain':>9}   spread")
    for name in names:
        peak, s = peaks[name]["peak"], statistics.median(seconds[name])
        spread = f"{min(seconds[name]):.3f} .. {max(seconds[name]):.3f}"
        print(
            f"{name:<22} {peak / 2**20:>9.3f} {'1/%.1f' % (base / peak):>9} {rises[name] / 2**20:>9.1f} "
            f"{s:>7.3f} {s / slow:>8.2f}x   {spread}"
        )


def growth(steps: list[int], picture: str | None, limit: int = 1000) -> None:
    """The peak as J grows; plain autograd up to ``limit``."""
    curves: dict[str, list[tuple[int, float]]] = {}
    print(f"\n{'peak MiB':<12}" + "".join(f"{'J=' + str(j):>12}" for j in steps))
    for name in ("by hand", "sqrt", "binomial 16"):
        points = [(j, measure(name, j)["peak"] / 2**20) for j in steps if name != "by hand" or j <= limit]
        curves[name] = points
        print(f"{name:<12}" + "".join(f"{peak:>12.3f}" for _, peak in points))
    if picture:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 4))
        for name, points in curves.items():
            axes.plot(*zip(*points), marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="inner steps J", ylabel="peak memory (MiB)")
        axes.legend()
        figure.tight_layout()
        figure.savefig(picture, dpi=150)
        print(f"picture: {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--growth", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--picture")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, num_steps, count = args.child
        child(name, int(num_steps), bool(int(count)))
        return
    torch.set_num_threads(1)
    print(
        platform.machine(), platform.system(), "Python", platform.python_version(), "torch", torch.__version__
    )
    table(args.steps, args.repetitions)
    if args.growth:
        growth(args.growth, args.picture)


if __name__ == "__main__":
    main()
