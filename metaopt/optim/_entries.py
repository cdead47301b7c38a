"""What comes into an update, one entry a leaf, and checked: numbers, gradients, states, hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError

__all__ = [
    "Bounds",
    "check_bounds",
    "check_type",
    "count",
    "gradients_of",
    "spread_hparams",
    "state_rows",
]

Bounds = tuple[float, float]  # low ≤ value < high
Rows = list[Any]  # one entry a leaf


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


def state_rows(where: str, value: Any, params: Any, structure: Any, like: Rows | None) -> Rows:
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


def count(where: str, value: Any, params: Any, gradients: Rows) -> tuple[Rows, Any]:
    """t + 1 for every leaf that has a gradient, and the counter to keep: a tree once they differ."""
    if isinstance(value, Tensor) and value.ndim == 0 and all(g is not None for g in gradients):
        return [value + 1] * len(gradients), value + 1
    rows = [t if g is None else t + 1 for t, g in zip(tree.spread(where, value, params), gradients)]
    return rows, tree.unflatten(tree.structure(params), rows)


def spread_hparams(name: str, hparams: Any, params: Any, leaves: Rows, structure: Any) -> Rows | None:
    """The hyperparameters of every leaf, or None where they are the same for all."""
    if all(isinstance(x, (int, float)) or (isinstance(x, Tensor) and x.ndim == 0) for x in hparams):
        return None
    spread = []
    for field, value in zip(hparams._fields, hparams):
        where = f"{name}.update(hparams.{field})"
        rows = tree.rows(structure, value)
        spread.append(tree.spread(where, value, params) if rows is None else rows)
        for i, (x, p) in enumerate(zip(spread[-1], leaves)):
            if isinstance(x, Tensor) and x.ndim and not _fits(x.shape, p.shape):
                expected = f"a number or a tensor that broadcasts to {list(p.shape)}"
                raise StructureError(where, expected, str(list(x.shape)), tree.paths(params)[i] or "the leaf")
    return [type(hparams)._make(row) for row in zip(*spread)]


def _fits(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(shape[::-1], target[::-1]))
