"""The loop over tasks on several threads: for kernels too small to share among cores, such as convolutions
over five images."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, CaptureError
from metaopt.replay import Dice, differentiable_once

__all__ = ["in_threads"]

Loop = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


class _InThreads(torch.autograd.Function):
    """[yᵢ] = [f(xᵢ)] and [x̄ᵢ] = [vjp(f, xᵢ)(ȳᵢ)], each i on a thread with a graph of its own."""

    @staticmethod
    def forward(ctx: Any, loop: Loop, number: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        width = len(tensors) // number
        ctx.save_for_backward(*tensors)
        needed = ctx.needs_input_grad[2:]
        ctx.inputs = [
            [x.detach().requires_grad_(on) for x, on in zip(tensors[i : i + width], needed[i : i + width])]
            for i in range(0, len(tensors), width)
        ]
        ctx.outputs = _each(_graph, [(loop, xs) for xs in ctx.inputs])
        found = tuple(y.detach() for ys in ctx.outputs for y in ys)
        ctx.mark_non_differentiable(*(y for y in found if not y.is_floating_point() and not y.is_complex()))
        return found

    @staticmethod
    @differentiable_once("map_tasks(workers)", "Pass workers=1, or create_graph=False.")
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        width = len(ctx.outputs[0])
        parts = [cotangents[i : i + width] for i in range(0, len(cotangents), width)]
        found = _each(_vjp, list(zip(ctx.outputs, ctx.inputs, parts, strict=True)))
        return None, None, *(g for gradients in found for g in gradients)


def _graph(loop: Loop, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        outputs = loop(inputs)
    if _reaches_others(outputs, inputs):
        raise CaptureError(
            "map_tasks(fn)",
            "every tensor that needs a gradient as an argument",
            "one that was captured",
            remedy="Pass it as an argument, or set workers=1: its gradient would be lost between threads.",
        )
    return outputs


def _reaches_others(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether the graph of the outputs has leaves that are no inputs."""
    known = {id(x) for x in inputs}
    todo = [y.grad_fn for y in outputs if y.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if id(getattr(node, "variable", inputs[0])) not in known:
            return True
        found = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= found
        todo += found
    return False


def _vjp(outputs: Sequence[Tensor], inputs: list[Tensor], cotangents: Sequence[Tensor]) -> list[Any]:
    live = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if y.requires_grad]
    needed = [x for x in inputs if x.requires_grad]
    found = iter(
        torch.autograd.grad([y for y, _ in live], needed, [g for _, g in live], allow_unused=True)
        if live
        else [None] * len(needed)
    )
    return [next(found) if x.requires_grad else None for x in inputs]


def _each(fn: Callable[..., Any], rows: Sequence[Any]) -> list[Any]:
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def run(row: Any) -> Any:
        with torch.autocast("cpu", autocast[1], enabled=autocast[0]):
            return fn(*row)

    return list(_pool(len(rows)).map(run, rows))


@functools.cache
def _pool(number: int) -> ThreadPoolExecutor:
    """Threads that share no kernel with one another: each computes on one core."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, "metaopt", torch.set_num_threads, (1,))
    list(pool.map(lambda _: torch.ones(1).sum(), range(number)))
    torch.set_num_threads(before)
    return pool


def in_threads(
    loop: Loop, tensors: Sequence[Tensor], axes: Sequence[int | None], workers: int
) -> tuple[Tensor, ...]:
    """``loop(tensors)``, whose results have a task axis 0, with the tasks dealt out to ``workers`` threads.

    Raises: CaptureError where a tensor that needs a gradient is no argument; ArgumentError for draws of
            torch's generator, which the threads share.
    Source: none; the arithmetic is the loop's, the sum over what is shared is in the order of the parts.

    >>> x = torch.arange(4.0, requires_grad=True)
    >>> (y,) = in_threads(lambda xs: (xs[0] ** 2,), [x], [0], workers=2)
    >>> torch.autograd.grad(y.sum(), x)[0]
    tensor([0., 2., 4., 6.])
    """
    (size,) = {x.shape[a] for x, a in zip(tensors, axes, strict=True) if a is not None}
    ends = [size * i // workers for i in range(workers + 1)]
    parts = [
        x if a is None else x.narrow(a, start, end - start)
        for start, end in itertools.pairwise(ends)
        for x, a in zip(tensors, axes, strict=True)
    ]
    dice = Dice()
    found = _InThreads.apply(loop, workers, *parts)
    dice.close()
    if dice.before is not None:  # which thread drew first is chance, and not repeated by a recomputation
        raise ArgumentError(
            "map_tasks(seed)", "a seed, where workers draw", "None", remedy="Pass seed=, or workers=1."
        )
    width = len(found) // workers
    return tuple(torch.cat(found[i::width]) for i in range(width))
