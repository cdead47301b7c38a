"""What does an update of a 100-leaf tree cost? ``python -m benchmarks.optimizers``

Rows are ours, the same arithmetic by hand, and torch.optim with and without foreach; medians of
interleaved repetitions, in milliseconds, with the quartiles.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import metaopt as mo

LEAVES, REPETITIONS = 100, 60
optim = torch.optim
Tensors = list[Tensor]


def sgd_by_hand(ps: Tensors, gs: Tensors, state: Tensors) -> Callable[[], object]:
    def step() -> object:
        vs = [0.9 * v + g for v, g in zip(state, gs, strict=True)]
        return [p - 0.1 * v for p, v in zip(ps, vs, strict=True)], vs

    return step


def adam_by_hand(ps: Tensors, gs: Tensors, state: Tensors) -> Callable[[], object]:
    count = torch.zeros((), dtype=torch.float64)

    def step() -> object:
        t = count + 1
        rate, correction = 1e-3 / (1 - 0.9**t), 1 - 0.999**t
        new, ms, vs = [], [], []
        for p, g, m, v in zip(ps, gs, state, state, strict=True):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w = v / correction
            dead = w <= 0
            root = torch.where(dead, 0.0, torch.where(dead, 1.0, w).sqrt())
            new.append(p - rate * m / (root + 1e-8))
            ms.append(m)
            vs.append(v)
        return new, ms, vs

    return step


def ours(opt: mo.Optimizer, ps: Tensors, gs: Tensors) -> Callable[[], object]:
    state = opt.init(ps)
    return lambda: opt.update(ps, state, gs, opt.hparams)


def theirs(
    make: Callable[[Tensors], torch.optim.Optimizer], ps: Tensors, gs: Tensors
) -> Callable[[], object]:
    live = [nn.Parameter(p.clone()) for p in ps]
    for p, g in zip(live, gs, strict=True):
        p.grad = g.clone()
    return make(live).step


def measure(rows: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in rows}
    for repetition in range(REPETITIONS + 5):
        for name, step in rows.items():
            start = time.perf_counter()
            step()
            if repetition >= 5:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, {LEAVES} leaves"
    )
    for size in (16, 256):
        ps = [torch.randn(size, size) for _ in range(LEAVES)]
        gs = [torch.randn(size, size) for _ in range(LEAVES)]
        zeros = [torch.zeros_like(p) for p in ps]
        table = {
            "sgd": {
                "metaopt": ours(mo.optim.sgd(0.1, 0.9), ps, gs),
                "by hand": sgd_by_hand(ps, gs, zeros),
                "torch": theirs(lambda q: optim.SGD(q, 0.1, 0.9, foreach=False), ps, gs),
                "torch foreach": theirs(lambda q: optim.SGD(q, 0.1, 0.9, foreach=True), ps, gs),
            },
            "adam": {
                "metaopt": ours(mo.optim.adam(), ps, gs),
                "by hand": adam_by_hand(ps, gs, zeros),
                "torch": theirs(lambda q: optim.Adam(q, foreach=False), ps, gs),
                "torch foreach": theirs(lambda q: optim.Adam(q, foreach=True), ps, gs),
            },
        }
        for rule, rows in table.items():
            times = measure(rows)
            base = statistics.median(times["by hand"])
            for name, spent in times.items():
                low, mid, high = statistics.quantiles(spent, n=4)
                line = f"{rule:5} {size:4}² {name:14} {mid:8.3f} ms  [{low:.3f}, {high:.3f}]"
                print(f"{line}  {mid / base:5.2f}x by hand")


if __name__ == "__main__":
    main()
