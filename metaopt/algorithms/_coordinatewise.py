"""Learned optimizers as plain optimizers: one learned rule for every coordinate."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import StructureError
from metaopt.optim._leafwise import check_type, gradients_of, wide
from metaopt.types import Optimizer

__all__ = ["CoordinatewiseState", "coordinatewise", "dense"]


class CoordinatewiseState(NamedTuple):
    """Steps taken t, and a tree like params of what the rule remembers of every leaf."""

    step: Tensor
    memory: Any


def coordinatewise(
    name: str,
    rule: Callable[[Tensor, Tensor, Any, Tensor, Any], tuple[Tensor, Any]],
    start: Callable[[Tensor], Any],
    hparams: Any,
) -> Optimizer:
    """Return the Optimizer that moves every leaf by the same learned rule.

    ::

        p, s ← rule(p, g, s, t, φ),   t = 1, 2, …

    A leaf whose gradient is None stays as it is. Half precision is computed in float32.

    Args: name: the public name, for messages.
          rule: of one leaf; ``s`` is what ``start(p)`` returned, or the step before.
          start: ``(p) -> s``, a tree of tensors.
          hparams: φ, a NamedTuple of trees of tensors.
    """

    def init(params: Any) -> CoordinatewiseState:
        tree.check_parameters(f"{name}.init(params)", params, real=True)
        leaves, structure = tree.flatten(params)
        dtype = next((x.dtype for x in tree.leaves(hparams)), None)
        odd = {wide(p).dtype for p in leaves} - {dtype}
        if odd:
            remedy = f"Build it with {name}(dtype=...), that of the parameters, float32 for half precision."
            raise StructureError(f"{name}.init(params)", str(dtype), str(*odd), remedy=remedy)
        step = torch.zeros((), device=leaves[0].device if leaves else None)
        return CoordinatewiseState(step, tree.unflatten(structure, [start(wide(p.detach())) for p in leaves]))

    def update(params: Any, state: Any, grads: Any, hparams_: Any) -> tuple[Any, Any]:
        leaves, structure = tree.flatten(params)
        gradients = gradients_of(f"{name}.update(grads)", grads, params, leaves, structure)
        remedy = "Start from what this optimizer's init(params) returns."
        if not isinstance(state, CoordinatewiseState):
            got = type(state).__name__
            raise StructureError(f"{name}.update(state)", "CoordinatewiseState", got, remedy=remedy)
        check_type(f"{name}.update(hparams)", hparams_, hparams, "Start from this optimizer's hparams.")
        memories = tree.rows(structure, state.memory)
        if memories is None:
            raise StructureError(f"{name}.update(state.memory)", "a tree like params", "another", "", remedy)
        t, moved, kept = state.step + 1, [], []
        for p, g, s in zip(leaves, gradients, memories, strict=True):
            q, s = (p, s) if g is None else rule(wide(p), wide(g), s, t, hparams_)
            moved.append(q.to(p.dtype))
            kept.append(s)
        return tree.unflatten(structure, moved), CoordinatewiseState(t, tree.unflatten(structure, kept))

    return Optimizer(init, update, hparams)


def dense(
    sizes: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], ...]:
    """(W [in, out], b [out]) of every layer; W normal with variance 1/in, b zero."""
    return tuple(
        (
            torch.randn(fan_in, fan_out, generator=generator, dtype=torch.float64).to(dtype) / fan_in**0.5,
            torch.zeros(fan_out, dtype=dtype),
        )
        for fan_in, fan_out in itertools.pairwise(sizes)
    )
