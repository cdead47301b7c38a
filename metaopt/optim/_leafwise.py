"""From the equation of one leaf to an optimizer of trees.

A rule is ``rule(p, g, s, h) -> (p, s)``: parameter, gradient, state and hyperparameters of one leaf.
`leafwise` maps it over the tree, spreads the hyperparameters, keeps moments of half-precision
parameters in float32, counts the steps, and checks what comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError
from metaopt.types import Optimizer

__all__ = ["ABSENT", "COUNTER", "ZEROS", "Bounds", "is_zero", "leafwise", "plus"]

ABSENT: Any = ()  # a state field this configuration does not need
ZEROS: Any = "zeros"  # a state field shaped like params, at first zero
COUNTER: Any = "counter"  # a state field with the number of steps taken, 0-d

Bounds = tuple[float, float]  # low ≤ value < high
_HALF = (torch.float16, torch.bfloat16)


def is_zero(value: Any) -> bool:
    """Tell whether a hyperparameter is the Python number 0: switched off, not a tensor that is 0."""
    return isinstance(value, (int, float)) and value == 0


def plus(g: Tensor, factor: Any, p: Tensor) -> Tensor:
    """g + factor · p, where a factor that is switched off costs nothing."""
    return g if is_zero(factor) else g + factor * p


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


def _check_bounds(name: str, hparams: Any, bounds: Mapping[str, Bounds]) -> None:
    """Refuse numbers out of range; the values of tensors that are being transformed are not read."""
    for field, (low, high) in bounds.items():
        value = getattr(hparams, field)
        for number in tree.leaves(value):
            if isinstance(number, Tensor):
                continue
            known = isinstance(number, (int, float)) and not isinstance(number, bool)
            if not known or not low <= number < high:
                upper = "" if math.isinf(high) else f" and < {high:g}"
                raise ArgumentError(
                    f"{name}({field})",
                    f"a number >= {low:g}{upper}, a tensor or a tree",
                    repr(number),
                )


def _check_state(name: str, state: Any, template: Any, params: Any) -> None:
    if type(state) is not type(template):
        raise StructureError(
            f"{name}.update(state)",
            type(template).__name__,
            type(state).__name__,
            remedy="Start from the state that this optimizer's init(params) returns.",
        )
    for field, kind in template._asdict().items():
        if kind is ZEROS:
            tree.check_same(f"{name}.update(state.{field})", getattr(state, field), params)


def leafwise(
    name: str,
    rule: Callable[[Tensor, Tensor, Any, Any], tuple[Tensor, Any]],
    template: Any,
    hparams: Any,
    bounds: Mapping[str, Bounds],
    needs: Mapping[str, str] | None = None,
) -> Optimizer:
    """Return the Optimizer whose update of every leaf is ``rule``.

    Args: name: the public name, for messages.
          rule: ``(p, g, s, h) -> (p, s)``; ``s`` and ``h`` are ``template`` and ``hparams`` with one
                leaf's values in the fields; a counter already counts this step.
          template: the state NamedTuple with `ZEROS`, `COUNTER` or `ABSENT` in each field.
          hparams: the hyperparameter NamedTuple.
          bounds: ``field -> (low, high)``, low ≤ value < high, checked where the value is a number.
          needs: ``hyperparameter -> state field`` without which it must stay switched off.
    """
    _check_bounds(name, hparams, bounds)
    fields = template._fields

    def init(params: Any) -> Any:
        tree.check_parameters(f"{name}.init(params)", params)
        leaves, structure = tree.flatten(params)

        def start(kind: Any) -> Any:
            if kind is COUNTER:  # float64, or 1 − β^t would lose its digits at small t
                return torch.zeros((), dtype=torch.float64, device=_device(leaves))
            if kind is ZEROS:
                return tree.unflatten(structure, [torch.zeros_like(_wide(p)) for p in leaves])
            return ABSENT

        return type(template)(*(start(kind) for kind in template))

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> tuple[Any, Any]:
        tree.check_same(f"{name}.update(grads)", grads, params)
        _check_state(name, state, template, params)
        _check_bounds(name, hparams, bounds)
        for hparam, field in (needs or {}).items():
            if getattr(state, field) == ABSENT and not is_zero(getattr(hparams, hparam)):
                raise ArgumentError(
                    f"{name}.update(hparams.{hparam})",
                    f"0, since this optimizer was built with {hparam}=0 and keeps no {field}",
                    "another value",
                    remedy=f"Build it with {name}({hparam}=...); a tensor keeps it switched on at 0.",
                )
        count = len(tree.leaves(params))

        def column(kind: Any, value: Any) -> list[Any]:
            return tree.leaves(value) if kind is ZEROS else [value] * count

        state = state._replace(
            **{f: getattr(state, f) + 1 for f, kind in zip(fields, template, strict=True) if kind is COUNTER}
        )
        states = zip(*map(column, template, state), strict=True)
        spread = [
            tree.spread(f"{name}.update(hparams.{field})", value, params)
            for field, value in zip(hparams._fields, hparams, strict=True)
        ]
        slots = [f for f, kind in zip(fields, template, strict=True) if kind is ZEROS]

        def one(p: Tensor, g: Tensor, s: Any, *h: Any) -> tuple[Any, ...]:
            new, s = rule(_wide(p), _wide(g), type(template)(*s), type(hparams)(*h))
            return (new.to(p.dtype), *(getattr(s, slot) for slot in slots))

        if count == 0:
            return params, state
        new, *moments = tree.map_unzip(one, params, tree.leaves(grads), list(states), *spread)
        return new, state._replace(**dict(zip(slots, moments, strict=True)))

    return Optimizer(init, update, hparams)


def _device(leaves: list[Tensor]) -> torch.device | None:
    return leaves[0].device if leaves else None
