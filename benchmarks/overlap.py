"""Would it help to reduce the outer gradient over ranks while the last chunk of tasks is computed?

    python -m benchmarks.overlap [--ranks 2] [--rounds 9]

The two ways run in turn: one all-reduce after the last chunk, as in `fit`; or an asynchronous one of the
sum of the chunks before, during the last, and one of the last. ``ceiling`` is the share of a step that the
all-reduce takes: no overlap, by buckets or by hooks, saves more. ``ready`` tells how much of the last chunk's
time is over when the first gradient of a leaf is complete, and could be sent.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import metaopt as mo

CHUNKS, TASKS = 2, 4  # of a rank


def conv() -> tuple[nn.Module, Tensor]:
    """Omniglot's net, 5-way 1-shot."""
    return mo.train.conv4(5, 64), torch.randn(TASKS, 5, 1, 28, 28)


def mlp() -> tuple[nn.Module, Tensor]:
    """A million parameters, which is much to send for what there is to compute."""
    net = nn.Sequential(nn.Linear(784, 750), nn.Tanh(), nn.Linear(750, 550), nn.Tanh(), nn.Linear(550, 5))
    return net, torch.randn(TASKS, 5, 784)


def problem(make: Callable[[], tuple[nn.Module, Tensor]]) -> tuple[list[Tensor], Callable[[int], Tensor]]:
    """The meta-parameters, and ``chunk -> outer gradient`` as one flat tensor."""
    torch.manual_seed(0)
    net, x = make()
    apply, params, _ = mo.functional(net)

    def loss_fn(params: Any, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(apply(params, batch[0]), batch[1])

    batch = (x, torch.arange(5).repeat(TASKS, 1))
    mapped = mo.map_tasks(mo.maml(loss_fn, mo.optim.sgd(lr=0.4)))
    size, leaves = TASKS // CHUNKS, mo.tree.leaves(params)

    def gradient(chunk: int) -> Tensor:
        some = mo.tree.index(batch, slice(chunk * size, (chunk + 1) * size))
        loss = mapped(params, mo.Episode(some, some)).sum()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, leaves)])

    return leaves, gradient


def ready(leaves: list[Tensor], gradient: Callable[[int], Tensor]) -> float:
    """When the first leaf's gradient is complete, as a share of a chunk's time."""
    moments: list[float] = []
    hooks = [x.register_hook(lambda g: moments.append(time.perf_counter())) for x in leaves]
    began = time.perf_counter()
    gradient(0)
    end = time.perf_counter()
    for hook in hooks:
        hook.remove()
    return (min(moments) - began) / (end - began)


def once(gradient: Callable[[int], Tensor]) -> Tensor:
    total = sum(map(gradient, range(1, CHUNKS)), gradient(0))
    dist.all_reduce(total)
    return total


def overlapped(gradient: Callable[[int], Tensor]) -> Tensor:
    total = sum(map(gradient, range(1, CHUNKS - 1)), gradient(0))
    work: Any = dist.all_reduce(total, async_op=True)
    last = gradient(CHUNKS - 1)
    work.wait()
    dist.all_reduce(last)
    return total + last


def timed(f: Callable[[], Any]) -> float:
    dist.barrier()
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def rank(number: int, size: int, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=size)
    for make in (conv, mlp):
        leaves, gradient = problem(make)
        flat = gradient(0)
        torch.testing.assert_close(once(gradient), overlapped(gradient), rtol=1e-4, atol=1e-5)
        runs = [partial(once, gradient), partial(overlapped, gradient), partial(gradient, 0)]
        runs.append(partial(dist.all_reduce, flat.clone()))
        rows = [[timed(run) for run in runs] for _ in range(rounds)]
        step, other, chunk, reduce = (1e3 * statistics.median(column) for column in zip(*rows, strict=True))
        ratio = statistics.median(b / a for a, b, *_ in rows)
        first = statistics.median(ready(leaves, gradient) for _ in range(rounds))
        if number == 0:
            said = f"{make.__name__}: {flat.numel():,} parameters, {flat.nbytes / 2**20:.1f} MiB; a chunk "
            said += f"{chunk:.0f} ms, the all-reduce {reduce:.1f} ms; a step {step:.0f} ms, overlapped "
            said += f"{other:.0f} (ratio {ratio:.2f}; ceiling {100 * reduce / step:.1f} %); the first "
            print(f"{said}gradient is ready after {100 * first:.0f} % of a chunk", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, (options.ranks, options.rounds, str(Path(folder))), options.ranks)
