"""What does an update of a 100-leaf tree cost? ``python -m benchmarks.optimizers``

Rows are ours, the same arithmetic by hand, torch.optim with and without foreach, and TorchOpt where it is
installed; with parameters as they are, and with parameters that require grad, as in an inner loop. Medians
of interleaved repetitions, in milliseconds of one thread's CPU time, with the quartiles.
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


def torchopt(name: str, ps: Tensors, gs: Tensors) -> dict[str, Callable[[], object]]:
    """TorchOpt's functional optimizer, one row; none where it is not installed."""
    try:
        import torchopt as peer
    except ImportError:
        return {}
    rule = {"sgd": lambda: peer.sgd(0.1, momentum=0.9), "adam": lambda: peer.adam(1e-3)}[name]()
    state = rule.init(tuple(ps))

    def step() -> object:
        updates, moved = rule.update(tuple(gs), state, params=tuple(ps), inplace=False)
        return peer.apply_updates(tuple(ps), updates, inplace=False), moved

    return {"torchopt": step}


def measure(rows: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in rows}
    for repetition in range(REPETITIONS + 5):
        for name, step in rows.items():
            start = time.process_time()
            step()
            if repetition >= 5:
                times[name].append(1e3 * (time.process_time() - start))
    return times


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, {LEAVES} leaves"
    )
    for size, live in ((16, False), (16, True), (256, False), (256, True)):
        ps = [torch.randn(size, size).requires_grad_(live) for _ in range(LEAVES)]
        gs = [torch.randn(size, size) for _ in range(LEAVES)]
        zeros = [torch.zeros(size, size) for _ in range(LEAVES)]
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
            times = measure(rows | torchopt(rule, ps, gs))
            base = statistics.median(times["by hand"])
            for name, spent in times.items():
                low, mid, high = statistics.quantiles(spent, n=4)
                line = f"{rule:5} {size:4}²{' grad' if live else '':5} {name:14} {mid:8.3f} ms"
                print(f"{line}  [{low:.3f}, {high:.3f}]  {mid / base:5.2f}x by hand")


if __name__ == "__main__":
    main()
