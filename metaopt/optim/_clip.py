"""Gradient clipping: by value, by the norm of a leaf, by the norm of all."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.optim._chain import Transform, stateless
from metaopt.optim._entries import check_bounds, check_type
from metaopt.optim._leafwise import RATE, wide
from metaopt.optim._smooth import clamp, like, norm

__all__ = ["ClipHParams", "clip_by_global_norm", "clip_by_leaf_norm", "clip_by_value"]


class ClipHParams(NamedTuple):
    """The bound, a number or a 0-d tensor; by value and by leaf also a tree shaped like params."""

    bound: Any


def _shrink(size: Tensor, bound: Any) -> Tensor:
    """min(1, c/|g|), of slope 0 at |g| = 0."""
    c = like(bound, size)
    inside = size <= c
    return torch.where(inside, 1.0, c / torch.where(inside, 1.0, size))


def _clip(name: str, bound: Any, update: Any) -> Transform:
    def check(h: Any) -> None:
        check_type(f"{name}.update(hparams)", h, ClipHParams(1.0), "Start from this transform's hparams.")
        check_bounds(name, h, {"bound": RATE})

    return stateless(name, update, ClipHParams(bound), check, real=True)


def clip_by_global_norm(max_norm: Any) -> Transform:
    """Shrink all gradients together to a norm of at most c.

    ::

        g ← g · min(1, c / √Σ|gᵢ|²)

    Args: max_norm: c >= 0, in units of the gradient.
    Returns: Transform with hparams ClipHParams(bound).
    Raises: ArgumentError if c is negative.
    Source: Pascanu et al. 2013, arXiv:1211.5063. Exact: torch's clip_grad_norm_ divides by |g| + 1e-6.

    >>> clip = clip_by_global_norm(1.0)
    >>> clip.update([torch.zeros(2)], (), [torch.tensor([3.0, 4.0])], clip.hparams)[0]
    [tensor([0.6000, 0.8000])]
    """

    def update(params: Any, grads: Any, h: ClipHParams) -> Any:
        if not tree.leaves(grads):
            return grads
        slopes = tree.map(wide, grads)
        factor = _shrink(tree.global_norm(slopes), h.bound)
        return tree.map(lambda g, w: (w * factor).to(g.dtype), grads, slopes)

    return _clip("clip_by_global_norm", max_norm, update)


def clip_by_leaf_norm(max_norm: Any) -> Transform:
    """Shrink the gradient of every leaf to a norm of at most c.

    ::

        gᵢ ← gᵢ · min(1, c / |gᵢ|)

    Args: max_norm: c >= 0, in units of the gradient.
    Returns: Transform with hparams ClipHParams(bound).
    Raises: ArgumentError if c is negative.

    >>> clip = clip_by_leaf_norm(1.0)
    >>> clip.update([torch.zeros(2)], (), [torch.tensor([3.0, 4.0])], clip.hparams)[0]
    [tensor([0.6000, 0.8000])]
    """

    def update(params: Any, grads: Any, h: ClipHParams) -> Any:
        def one(g: Tensor, bound: Any) -> tuple[Tensor]:
            return ((wide(g) * _shrink(norm(wide(g)), bound)).to(g.dtype),)

        bounds = tree.spread("clip_by_leaf_norm.update(hparams.bound)", h.bound, grads)
        return tree.map_unzip(one, grads, bounds)[0] if bounds else grads

    return _clip("clip_by_leaf_norm", max_norm, update)


def clip_by_value(max_value: Any) -> Transform:
    """Clamp every entry.

    ::

        g ← min(max(g, −c), c)

    Args: max_value: c >= 0, in units of the gradient.
    Returns: Transform with hparams ClipHParams(bound).
    Raises: ArgumentError if c is negative.

    >>> clip = clip_by_value(1.0)
    >>> clip.update([torch.zeros(2)], (), [torch.tensor([0.5, -4.0])], clip.hparams)[0]
    [tensor([ 0.5000, -1.0000])]
    """

    def update(params: Any, grads: Any, h: ClipHParams) -> Any:
        bounds = tree.spread("clip_by_value.update(hparams.bound)", h.bound, grads)
        return tree.map_unzip(lambda g, c: (clamp(g, -c, c),), grads, bounds)[0] if bounds else grads

    return _clip("clip_by_value", max_value, update)
