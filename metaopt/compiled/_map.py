"""All tasks, with all their steps, as one compiled function; and which way of compiling is the fastest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack

from metaopt.compiled._choice import Compile, compiling, counting_steps
from metaopt.compiled._compiled import Owner, compiled
from metaopt.compiled._gradient import losses_with_gradients
from metaopt.compiled._lower import Marks, lowered, raised
from metaopt.compiled._table import Table
from metaopt.errors import CompileError

__all__ = ["Flat", "mapped_by"]

Flat = Callable[..., tuple[Tensor, ...]]
Axes = list[int | None]
Mapped = Callable[[Flat, Axes, Any], tuple[Tensor, ...]]
_LONG = 16  # more inner steps than this take minutes to compile whole, and gain nothing over "step"
_fastest = Table()


def mapped_by(
    mapped: Mapped, flat: Flat, axes: Axes, tensors: Any, choice: Compile | None, depends: Owner, result: Any
) -> tuple[Tensor, ...]:
    """``mapped(flat, axes, tensors)``, compiled as ``choice`` says; ``result`` is what ``flat`` fills in."""
    if choice is not None and choice.how == "auto":
        choice = _measured(mapped, flat, axes, tensors, choice, depends, result)
    if choice is None:
        return mapped(flat, axes, tensors)
    if choice.how == "step":
        with compiling(choice):
            return mapped(flat, axes, tensors)
    try:
        return _whole(mapped, flat, axes, tensors, choice.backend, depends, result)
    except CompileError:  # which is in the report
        with compiling(False):
            return mapped(flat, axes, tensors)


def _whole(
    mapped: Mapped, flat: Flat, axes: Axes, tensors: Any, backend: Any, depends: Owner, result: Any
) -> tuple[Tensor, ...]:
    """All that the tasks do: one loss a task and its gradient as one graph, else a value and a derivative."""
    given = losses_with_gradients(mapped, flat, axes, tensors, backend, depends, result)
    if given is not None:
        return given

    def run(plain: list[Tensor], marks: list[Marks]) -> tuple[Tensor, ...]:
        def all_tasks(*xs: Tensor) -> tuple[tuple[Tensor, ...], Any]:
            with compiling(False):
                return raised(lambda *ys: mapped(flat, axes, ys), marks)(*xs), tuple(result)

        outputs, result[:] = compiled("map_tasks", all_tasks, plain, depends, backend, tuple(marks))
        return outputs

    return tuple(lowered(run, tensors))


def _measured(
    mapped: Mapped, flat: Flat, axes: Axes, tensors: Any, choice: Compile, depends: Owner, result: Any
) -> Compile | None:
    """The fastest of eager, step and whole, value and derivative, at these shapes on this machine."""
    if get_interpreter_stack() is not None:  # a map inside a map: the outer one measures
        return Compile("step", choice.backend)
    key = depends.token, choice.backend, torch.is_grad_enabled(), tuple((x.shape, x.dtype) for x in tensors)
    if key not in _fastest:
        copies = [x.detach().requires_grad_(x.requires_grad) for x in tensors]

        def seconds(way: Compile | None) -> float:
            run = lambda: mapped_by(mapped, flat, axes, copies, way, depends, result)
            with torch.random.fork_rng():
                return min(_seconds(run, copies) for _ in range(4))

        step, whole = Compile("step", choice.backend), Compile("whole", choice.backend)
        with counting_steps() as steps:
            taken: dict[Compile | None, float] = {None: seconds(None)}
        taken[step] = seconds(step)
        if max(steps, default=0) <= _LONG:
            taken[whole] = seconds(whole)
        _fastest.keep(key, min(taken, key=taken.__getitem__))
    return _fastest[key]


def _seconds(run: Callable[[], tuple[Tensor, ...]], inputs: list[Tensor]) -> float:
    start = time.perf_counter()
    outputs = [y.sum() for y in run() if y.requires_grad]
    needed = [x for x in inputs if x.requires_grad]
    if outputs:
        torch.autograd.grad(torch.stack(outputs).sum(), needed, allow_unused=True)
    return time.perf_counter() - start
