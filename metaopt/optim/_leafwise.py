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
from metaopt.errors import ArgumentError, StructureError
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
    "check_bounds",
    "check_type",
    "gradients_of",
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

Bounds = tuple[float, float]  # low ≤ value < high
RATE: Bounds = (0.0, math.inf)
DECAY: Bounds = (0.0, 1.0)
ANY: Bounds = (-math.inf, math.inf)
_HALF = (torch.float16, torch.bfloat16)
Rows = list[Any]  # one entry a leaf


def is_zero(value: Any) -> bool:
    """Tell whether a hyperparameter is the Python number 0: switched off, not a tensor that is 0."""
    return isinstance(value, (int, float)) and value == 0


def plus(g: Tensor, factor: Any, p: Tensor) -> Tensor:
    """g + factor · p, in one kernel for a number, and for nothing where it is switched off."""
    if isinstance(factor, (int, float)):
        return g if factor == 0 else torch.add(g, p, alpha=factor)
    return g + factor * p


def check_bounds(name: str, hparams: Any, bounds: Mapping[str, Bounds]) -> None:
    """Refuse numbers out of range; tensors are learned or being transformed, and are not read."""
    for field, (low, high) in bounds.items():
        value = getattr(hparams, field)
        for number in (value,) if isinstance(value, (float, Tensor)) else tree.leaves(value) or (value,):
            if isinstance(number, Tensor):
                continue
            known = isinstance(number, (int, float)) and not isinstance(number, bool)
            if not known or not low <= number < high:
                lower = "" if math.isinf(low) else f" >= {low:g}"
                upper = "" if math.isinf(high) else f" and < {high:g}"
                expected = f"a number{lower}{upper}, a tensor or a tree"
                raise ArgumentError(f"{name}({field})", expected, repr(number))


def check_type(where: str, value: Any, like: Any, remedy: str) -> None:
    """Raise `StructureError` unless ``value`` is of the NamedTuple that this optimizer uses."""
    if type(value) is not type(like):
        raise StructureError(where, type(like).__name__, type(value).__name__, remedy=remedy)


def leafwise(
    name: str,
    rule: Callable[..., tuple[Tensor, Any]],
    template: Any,
    hparams: Any,
    bounds: Mapping[str, Bounds],
    needs: Mapping[str, str] | None = None,
    prepare: Callable[[Any, Any], Any] | None = None,
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
    """
    check_bounds(name, hparams, bounds)
    fields = template._fields
    counted = "step" in fields and template.step is COUNTER
    slots = [f for f, kind in zip(fields, template) if isinstance(kind, Start)]
    make_state, make_hparams = type(template)._make, type(hparams)._make

    def init(params: Any) -> Any:
        tree.check_parameters(f"{name}.init(params)", params)
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
                columns[field], counter = _count(where, value, params, gradients)
                state = state._replace(**{field: counter})
            elif kind is ABSENT:
                columns[field] = [ABSENT] * len(leaves)
            else:
                columns[field] = _rows(where, value, params, structure, leaves if kind.like else None)
        spread, shared = _spread(name, hparams_, params, leaves, structure)
        steps = columns["step"] if counted else [None] * len(leaves)
        memo: dict[Any, Any] = {}
        common = make_hparams(row[0] for row in spread) if shared else None
        new: Rows = []
        moments: dict[str, Rows] = {slot: [] for slot in slots}
        for i, (p, g, s, h) in enumerate(zip(leaves, gradients, zip(*columns.values()), zip(*spread))):
            old = make_state(s)
            if g is None:
                new.append(p)
                for slot in slots:
                    moments[slot].append(getattr(old, slot))
                continue
            args: tuple[Any, ...] = (common or make_hparams(h),)
            if prepare is not None:
                key = id(steps[i]) if shared else i
                if key not in memo:
                    memo[key] = prepare(args[0], steps[i])
                args += (memo[key],)
            if p.is_complex():
                q, fresh = _as_real(rule, p, g, old, args)
            else:
                q, fresh = rule(wide(p), wide(g), old, *args)
            new.append(_cast(q, p))
            for slot in slots:
                moments[slot].append(_cast(getattr(fresh, slot), getattr(old, slot)))
        trees = {slot: tree.unflatten(structure, column) for slot, column in moments.items()}
        return tree.unflatten(structure, new), state._replace(**trees) if trees else state

    return Optimizer(init, update, hparams)


def wide(x: Tensor) -> Tensor:
    """Half precision as float32, in which moments are kept and rules computed."""
    return x.float() if x.dtype in _HALF else x


def _cast(x: Any, like: Any) -> Any:
    """x in the dtype it had: 0-d leaves are promoted by 0-d float64 counters."""
    if isinstance(x, tuple):
        return tuple(_cast(y, old) for y, old in zip(x, like))
    return x if x.dtype == like.dtype else x.to(like.dtype)


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


def gradients_of(where: str, grads: Any, params: Any, leaves: Rows, structure: Any) -> Rows:
    """The gradient of every leaf, None where there is none."""
    found, shape = tree.flatten(grads)
    if shape != structure:
        entries = tree.none_rows(structure, grads)
        if entries is None:
            tree.check_same(where, grads, params)
        found = entries or found
    for i, (g, p) in enumerate(zip(found, leaves)):
        if g is None:
            continue
        if not isinstance(g, Tensor) or g.shape != p.shape:
            got = f"{list(g.shape)}" if isinstance(g, Tensor) else type(g).__name__
            path = tree.paths(params)[i] or "the leaf"
            raise StructureError(where, f"shape {list(p.shape)}", got, path, "Give both the same shapes.")
    return found


def _rows(where: str, value: Any, params: Any, structure: Any, like: Rows | None) -> Rows:
    """The entry of a state tree for every leaf of params."""
    rows = tree.rows(structure, value)
    if rows is None:
        tree.check_same(where, value, params)
        raise StructureError(where, "a tree shaped like params", type(value).__name__)
    for i, (s, p) in enumerate(zip(rows, like or ())):
        if not isinstance(s, Tensor) or s.shape != p.shape:
            got = f"{list(s.shape)}" if isinstance(s, Tensor) else type(s).__name__
            path = tree.paths(params)[i] or "the leaf"
            remedy = "This is the state of another params: call init(params)."
            raise StructureError(where, f"shape {list(p.shape)}", got, path, remedy)
    return rows


def _count(where: str, value: Any, params: Any, gradients: Rows) -> tuple[Rows, Any]:
    """t + 1 for every leaf that has a gradient, and the counter to keep: a tree once they differ."""
    if isinstance(value, Tensor) and value.ndim == 0 and all(g is not None for g in gradients):
        return [value + 1] * len(gradients), value + 1
    rows = [t if g is None else t + 1 for t, g in zip(tree.spread(where, value, params), gradients)]
    return rows, tree.unflatten(tree.structure(params), rows)


def _spread(name: str, hparams: Any, params: Any, leaves: Rows, structure: Any) -> tuple[list[Rows], bool]:
    """One row of every hyperparameter for every leaf, and whether all rows are the same."""
    spread, shared = [], True
    for field, value in zip(hparams._fields, hparams):
        if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
            spread.append([value] * len(leaves))
            continue
        shared = False
        where = f"{name}.update(hparams.{field})"
        rows = tree.rows(structure, value)
        spread.append(tree.spread(where, value, params) if rows is None else rows)
        for i, (x, p) in enumerate(zip(spread[-1], leaves)):
            if isinstance(x, Tensor) and x.ndim and not _fits(x.shape, p.shape):
                expected = f"a number or a tensor that broadcasts to {list(p.shape)}"
                raise StructureError(where, expected, str(list(x.shape)), tree.paths(params)[i] or "the leaf")
    return spread, shared


def _fits(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(shape[::-1], target[::-1]))
