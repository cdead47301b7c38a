"""From the equation of one leaf to an optimizer of trees.

A rule is ``rule(p, g, s, h) -> (p, s)``: parameter, gradient, state and hyperparameters of one leaf.
`leafwise` maps it over the tree, spreads the hyperparameters, keeps moments of half-precision
parameters in float32, counts the steps, and checks what comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.exact import paused
from metaopt.optim._entries import (
    Bounds,
    check_bounds,
    check_type,
    count,
    gradients_of,
    spread_hparams,
    state_rows,
)
from metaopt.optim._join import apart, is_plain, joined, parts_of
from metaopt.types import Optimizer

__all__ = [
    "ABSENT",
    "ANY",
    "COUNTER",
    "DECAY",
    "ONE",
    "RATE",
    "SCALAR",
    "ZEROS",
    "Bounds",
    "Start",
    "is_zero",
    "leafwise",
    "plus",
    "wide",
]


class Start(NamedTuple):
    """What a state field is before the first step: ``of(p)`` for every leaf p."""

    of: Callable[[Tensor], Any]
    like: bool = False  # shaped as the parameter


ABSENT: Any = ()  # a state field this configuration does not need
COUNTER: Any = "counter"  # the number of steps taken: 0-d, or a tree where leaves sat steps out
ZEROS: Any = Start(torch.zeros_like, like=True)
SCALAR: Any = Start(lambda p: p.new_zeros((), dtype=torch.float64))
ONE: Any = Start(lambda p: p.new_ones((), dtype=torch.float64))

RATE: Bounds = (0.0, math.inf)
DECAY: Bounds = (0.0, 1.0)
ANY: Bounds = (-math.inf, math.inf)
_HALF = (torch.float16, torch.bfloat16)
_PLAIN = (torch.float32, torch.float64)
Rows = list[Any]  # one entry a leaf


def is_zero(value: Any) -> bool:
    """Tell whether a hyperparameter is the Python number 0: switched off, not a tensor that is 0."""
    return isinstance(value, (int, float)) and value == 0


def plus(g: Tensor, factor: Any, p: Tensor) -> Tensor:
    """g + factor · p, in one kernel for a number, and for nothing where it is switched off."""
    if isinstance(factor, (int, float)):
        if factor == 0:
            return g
        if not torch.compiler.is_compiling():  # inductor's addmm forgets alpha
            return torch.add(g, p, alpha=factor)
    return g + factor * p


def leafwise(
    name: str,
    rule: Callable[..., tuple[Tensor, Any]],
    template: Any,
    hparams: Any,
    bounds: Mapping[str, Bounds],
    needs: Mapping[str, str] | None = None,
    prepare: Callable[[Any, Any], Any] | None = None,
    elementwise: bool = False,
    real: bool = False,
) -> Optimizer:
    """Return the Optimizer whose update of every leaf is ``rule``.

    A gradient that is None leaves its parameter, and the state of it, as they are.

    Args: name: the public name, for messages.
          rule: ``(p, g, s, h) -> (p, s)``; ``s`` and ``h`` are ``template`` and ``hparams`` with one
                leaf's values in the fields; a counter already counts this step.
          template: the state NamedTuple with `ZEROS`, `COUNTER`, `ABSENT` or another Start in each field.
          hparams: the hyperparameter NamedTuple.
          bounds: ``field -> (low, high)``, low ≤ value < high, checked where the value is a number.
          needs: ``hyperparameter -> state field`` without which it must stay switched off.
          prepare: ``(h, step) -> c``, what every leaf with the same h and step shares, computed once;
                the rule takes it as a fifth argument.
          elementwise: no entry depends on another, so that small leaves can be updated as one (`_join`).
          real: complex parameters are refused; else their real and imaginary parts are parameters.
    """
    check_bounds(name, hparams, bounds)
    fields = template._fields
    counted = "step" in fields and template.step is COUNTER
    slots = [f for f, kind in zip(fields, template) if isinstance(kind, Start)]
    joins = elementwise and all(kind.like for kind in template if isinstance(kind, Start))
    make_state = type(template)._make

    def init(params: Any) -> Any:
        with paused():
            return started(params)

    def started(params: Any) -> Any:
        tree.check_parameters(f"{name}.init(params)", params, real)
        leaves, structure = tree.flatten(params)

        def start(kind: Any) -> Any:
            if kind is COUNTER:  # float64, or 1 − β^t would lose its digits at small t
                device = leaves[0].device if leaves else None
                return torch.zeros((), dtype=torch.float64, device=device)
            if isinstance(kind, Start):
                return tree.unflatten(structure, [kind.of(wide(p.detach())) for p in leaves])
            return ABSENT

        return make_state(map(start, template))

    def check_hparams(h: Any) -> None:
        check_type(f"{name}.update(hparams)", h, hparams, "Start from this optimizer's hparams.")
        check_bounds(name, h, bounds)
        for hparam, field in (needs or {}).items():
            if getattr(template, field) is ABSENT and not is_zero(getattr(h, hparam)):
                raise ArgumentError(
                    f"{name}.update(hparams.{hparam})",
                    f"0, since this optimizer was built with {hparam}=0 and keeps no {field}",
                    "another value",
                    remedy=f"Build it with {name}({hparam}=...); a tensor keeps it switched on at 0.",
                )

    def update(params: Any, state: Any, grads: Any, hparams_: Any) -> tuple[Any, Any]:
        with paused():  # a rule is arithmetic
            return updated(params, state, grads, hparams_)

    def updated(params: Any, state: Any, grads: Any, hparams_: Any) -> tuple[Any, Any]:
        leaves, structure = tree.flatten(params)
        gradients = gradients_of(f"{name}.update(grads)", grads, params, leaves, structure)
        check_type(
            f"{name}.update(state)", state, template, "Start from what this optimizer's init(params) returns."
        )
        if hparams_ is not hparams:  # its own were checked when it was built
            check_hparams(hparams_)
        if not leaves:
            return params, state
        columns: dict[str, Rows] = {}
        for field, kind in zip(fields, template):
            value, where = getattr(state, field), f"{name}.update(state.{field})"
            if kind is COUNTER:
                columns[field], counter = count(where, value, params, gradients)
                state = state._replace(**{field: counter})
            elif kind is ABSENT:
                columns[field] = [ABSENT] * len(leaves)
            else:
                columns[field] = state_rows(where, value, params, structure, leaves if kind.like else None)
        per_leaf = spread_hparams(name, hparams_, params, leaves, structure)
        steps = columns["step"] if counted else [None] * len(leaves)
        memo: dict[Any, Any] = {}

        def arguments(i: int) -> tuple[Any, ...]:
            """h of a leaf, and what it shares with every leaf of the same h and step."""
            h, key = (hparams_, id(steps[i])) if per_leaf is None else (per_leaf[i], i)
            if prepare is None:
                return (h,)
            if key not in memo:
                memo[key] = prepare(h, steps[i])
            return h, memo[key]

        together = per_leaf is None and (not counted or isinstance(state.step, Tensor))
        alike = [g is not None and p.dtype == g.dtype in _PLAIN for p, g in zip(leaves, gradients)]
        ps, gs, parts = leaves, gradients, None
        if together and all(alike):
            args = arguments(0)
            if joins and is_plain(leaves, gradients, *columns.values(), hparams_):
                parts = parts_of(leaves, *(columns[slot] for slot in slots))
                ps, gs = joined(parts, leaves), joined(parts, gradients)
                columns |= {slot: joined(parts, columns[slot]) for slot in slots}
            results = [rule(p, g, make_state(s), *args) for p, g, s in zip(ps, gs, zip(*columns.values()))]
        else:
            results = []
            for i, (p, g, s) in enumerate(zip(leaves, gradients, zip(*columns.values()))):
                results.append(_alone(rule, p, g, make_state(s), () if g is None else arguments(i)))

        def whole(new: Rows, old: Rows) -> Any:
            """The tree of a column, in the dtypes it had: 0-d float64 counters promote 0-d leaves."""
            new = list(map(_cast, new, old))
            return tree.unflatten(structure, new if parts is None else apart(parts, leaves, new))

        moments = {slot: whole([getattr(s, slot) for _, s in results], columns[slot]) for slot in slots}
        return whole([q for q, _ in results], ps), state._replace(**moments) if moments else state

    return Optimizer(init, update, hparams)


def wide(x: Tensor) -> Tensor:
    """Half precision as float32, in which moments are kept and rules computed."""
    return x.float() if x.dtype in _HALF else x


def _cast(x: Any, like: Any) -> Any:
    """x in the dtype of another tensor, or tuple of them."""
    if isinstance(x, tuple):
        return tuple(_cast(y, old) for y, old in zip(x, like))
    return x if x.dtype == like.dtype else x.to(like.dtype)


def _alone(rule: Any, p: Tensor, g: Any, s: Any, args: tuple[Any, ...]) -> tuple[Tensor, Any]:
    """The rule of one leaf, whatever its dtype, and with or without a gradient."""
    if g is None:
        return p, s
    if p.is_complex():
        return _as_real(rule, p, g, s, args)
    result: tuple[Tensor, Any] = rule(wide(p), wide(g), s, *args)
    return result


def _as_real(rule: Any, p: Tensor, g: Tensor, s: Any, args: tuple[Any, ...]) -> tuple[Tensor, Any]:
    """The rule on real and imaginary parts, as torch.optim treats complex parameters."""

    def pair(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return torch.view_as_real(x) if x.is_complex() else x.unsqueeze(-1) if x.ndim else x

    def join(x: Any, old: Any) -> Any:
        return torch.view_as_complex(x) if isinstance(old, Tensor) and old.is_complex() else x

    q, fresh = rule(
        pair(p), pair(g), type(s)._make(map(pair, s)), type(args[0])._make(map(pair, args[0])), *args[1:]
    )
    return torch.view_as_complex(q), type(s)._make(map(join, fresh, s))
