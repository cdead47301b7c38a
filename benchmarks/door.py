"""What does the stateful door cost beside `higher`? ``python -m benchmarks.door``

Five steps of ``innerloop_ctx`` and the outer gradient, written once and run by both libraries, interleaved;
the meta-gradients are compared first. Medians in milliseconds with their quartiles, and the ratio.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import metaopt as mo

STEPS, REPETITIONS = 5, 60


def mlp() -> nn.Module:
    sizes = (1, 40, 40, 1)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    def block(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, 32, 3, 2, 1), nn.BatchNorm2d(32, track_running_stats=False), nn.ReLU()]

    return nn.Sequential(*block(1), *block(32), *block(32), nn.Flatten(), nn.Linear(512, 1))


def lstm() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    return Last()


def adam(params: Any) -> torch.optim.Optimizer:
    """Adam after 200 steps of betas whose correction is over: `higher` puts ε elsewhere before that."""
    opt = torch.optim.Adam(params, lr=0.01, betas=(0.9, 0.9), eps=1e-3)
    for _ in range(200):
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.randn_like(p)
        opt.step()
    return opt


ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "MLP 40-40, SGD": (mlp, (10, 1), lambda ps: torch.optim.SGD(ps, lr=0.01)),
    "MLP 40-40, SGD with momentum": (mlp, (10, 1), lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9)),
    "MLP 40-40, Adam": (mlp, (10, 1), adam),
    "3 convolutions of 32, batch norm, SGD": (cnn, (5, 1, 28, 28), lambda ps: torch.optim.SGD(ps, lr=0.01)),
    "LSTM 32 over 8 steps, SGD": (lstm, (10, 8, 8), lambda ps: torch.optim.SGD(ps, lr=0.01)),
}


def meta_step(innerloop_ctx: Any, model: nn.Module, opt: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    """One inner loop and its outer gradient, as a user of either library writes it."""
    with innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(STEPS):
            diffopt.step((fmodel(x) - y).square().mean())
        return list(torch.autograd.grad((fmodel(x) - y).square().mean(), list(model.parameters())))


def measure(rows: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Processor time of each row, the rows taking turns."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for repetition in range(REPETITIONS + 5):
        for name, run in rows.items():
            start = time.process_time()
            run()
            if repetition >= 5:
                times[name].append(1e3 * (time.process_time() - start))
    return times


def main() -> None:
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, {STEPS} steps")
    try:
        import higher
    except ImportError:
        print("higher is not installed: pip install -e '.[bench]'. Its column is missing.")
        higher = None
    for name, (make, shape, optimizer) in ROWS.items():
        torch.manual_seed(0)
        model = make()
        opt = optimizer(model.parameters())
        data = torch.randn(shape), torch.randn(shape[0], 1)
        doors = {"metaopt": mo.stateful.innerloop_ctx} | ({"higher": higher.innerloop_ctx} if higher else {})
        rows = {
            door: lambda ctx=ctx, m=model, o=opt, d=data: meta_step(ctx, m, o, *d)
            for door, ctx in doors.items()
        }
        first, *rest = (run() for run in rows.values())
        for other in rest:
            torch.testing.assert_close(first, other, rtol=1e-3, atol=1e-4)
        times = measure(rows)
        base = statistics.median(times["metaopt"])
        for door, spent in times.items():
            low, mid, high = statistics.quantiles(spent, n=4)
            ratio = f"  metaopt takes {base / mid:.2f}x its time" if door != "metaopt" else ""
            print(f"{name:38} {door:8} {mid:8.2f} ms  [{low:.2f}, {high:.2f}]{ratio}")


if __name__ == "__main__":
    main()
