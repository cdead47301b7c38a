"""One loss a task, and its gradient, compiled as one graph instead of a forward and a backward one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack

from metaopt.compiled._choice import compiling
from metaopt.compiled._compiled import Owner, compiled, kind_of
from metaopt.compiled._table import Table
from metaopt.compiled._trace import dry_run
from metaopt.replay import differentiable_once

__all__ = ["losses_with_gradients"]

Flat = Callable[..., tuple[Tensor, ...]]
Axes = Sequence[int | None]
Mapped = Callable[[Flat, Any, Any], tuple[Tensor, ...]]
_found = Table()  # of a kind of call: which output is the loss, and what was captured


def losses_with_gradients(
    mapped: Mapped, flat: Flat, axes: Axes, tensors: Sequence[Tensor], backend: Any, owner: Owner, result: Any
) -> tuple[Tensor, ...] | None:
    """``mapped(flat, axes, tensors)``, whose gradient comes with it; None where there is not one loss a task.

    ::

        forward:   ℓ_t, g_t = ∂ℓ_t/∂x          of every task t, in one graph
        backward:  Σ_t c_t g_t  for what the tasks share,   c_t g_t  for what each has of its own

    A compiler that sees the derivative beside the value keeps nothing for later and fuses across both.

    Raises: CompileError where it cannot be traced; the backward pass cannot be differentiated again.
    Cost: half of a compiled forward and backward pass, or less; it is paid where no gradient is asked for,
          too, unless under ``torch.no_grad``. Memory of one gradient a task.
    """
    needed = [i for i, x in enumerate(tensors) if x.requires_grad]
    if not needed or not torch.is_grad_enabled() or get_interpreter_stack() is not None:
        return None

    def plain(*xs: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        with compiling(False):
            return mapped(flat, axes, xs), tuple(result)

    key = kind_of("losses", tensors, owner, backend)
    if key not in _found:
        _found.keep(key, _loss_among(plain, tensors))
    k, captured = _found[key]
    if k is None or any(x.requires_grad for x in captured):
        return None

    def with_gradients(*xs: Tensor) -> tuple[Tensor, ...]:
        def loss(inputs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            given = dict(enumerate(xs)) | dict(zip(needed, inputs, strict=True))
            outputs = flat(*given.values())
            return outputs[k], outputs

        grads, outputs = torch.func.grad(loss, has_aux=True)(tuple(xs[i] for i in needed))
        return *outputs, *grads

    layout = _Layout([tensors[i] for i in needed], [axes[i] for i in needed])

    def all_tasks(*xs: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        with compiling(False):
            values = mapped(with_gradients, axes, xs)
        return (*values[: -len(needed)], *layout.joined(values[-len(needed) :])), tuple(result)

    with torch.no_grad():
        values, result[:] = compiled("map_tasks", all_tasks, tensors, owner, backend, "gradients")
    number = len(layout.rows) + len(layout.own)
    outputs, grads = list(values[:-number]), values[-number:]
    outputs[k] = _Loss.apply(outputs[k], layout, grads, *(tensors[i] for i in needed))
    return tuple(outputs)


class _Layout(NamedTuple):
    """How the gradients of all tasks are handed on: those of what the tasks share as one matrix a dtype."""

    xs: list[Tensor]  # what needs a gradient
    axes: list[int | None]  # its task axis, None where the tasks share it

    @property
    def rows(self) -> list[list[int]]:
        """What the tasks share, of one dtype on one device each."""
        groups: dict[Any, list[int]] = {}
        for i, (x, axis) in enumerate(zip(self.xs, self.axes, strict=True)):
            if axis is None:
                groups.setdefault((x.dtype, x.device), []).append(i)
        return list(groups.values())

    @property
    def own(self) -> list[int]:
        """What every task has of its own."""
        return [i for i, axis in enumerate(self.axes) if axis is not None]

    def joined(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """From [task, *shape] each to [task, entry] of every group, and the others as they are."""
        rows = [torch.cat([grads[i].reshape(len(grads[i]), -1) for i in group], 1) for group in self.rows]
        return [*rows, *(grads[i] for i in self.own)]

    def weighed(self, c: Tensor, joined: Sequence[Tensor]) -> list[Tensor]:
        """Σ_t c_t g_t, or c_t g_t with the tasks on their axis."""
        found: dict[int, Tensor] = {}
        for group, g in zip(self.rows, joined, strict=False):
            sums = (c.to(g.dtype) @ g).split([self.xs[i].numel() for i in group])
            found |= {i: x.view(self.xs[i].shape) for i, x in zip(group, sums, strict=True)}
        for i, g in zip(self.own, joined[len(self.rows) :], strict=False):
            weights = c.to(g.dtype).view(-1, *(1,) * (g.ndim - 1))
            found[i] = (weights * g).movedim(0, self.axes[i] or 0)
        return [found[i] for i in range(len(self.xs))]


def _loss_among(plain: Any, tensors: Sequence[Tensor]) -> tuple[int | None, list[Tensor]]:
    """The one output that needs a gradient, if it is a number a task; and the tensors that were captured."""
    try:
        (outputs, _), captured = dry_run(plain, tensors, track=True)
    except Exception:  # the way without gradients finds out, and says so
        return None, []
    tracked = [i for i, y in enumerate(outputs) if y.requires_grad]
    alone = len(tracked) == 1 and outputs[tracked[0]].ndim == 1
    return (tracked[0] if alone else None), captured


class _Loss(torch.autograd.Function):
    """The losses, whose gradients are known."""

    @staticmethod
    def forward(
        ctx: Any, losses: Tensor, layout: _Layout, grads: tuple[Tensor, ...], *inputs: Tensor
    ) -> Tensor:
        ctx.layout = layout
        ctx.save_for_backward(*grads, *inputs)
        return losses.view_as(losses)

    @staticmethod
    @differentiable_once("map_tasks(compile)", "Pass compile=False, or create_graph=False.")
    def backward(ctx: Any, c: Tensor) -> Any:
        return None, None, None, *ctx.layout.weighed(c, ctx.saved_tensors)
