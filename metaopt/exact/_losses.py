"""Losses whose own checks or masks read data, which vmap forbids, in primitives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["cross_entropy", "gaussian_nll_loss", "smoothed"]


def smoothed(args: Any, kwargs: Any) -> bool:
    """Tell whether a call of ``F.cross_entropy`` smooths labels under class weights, which torch masks."""
    weighted = kwargs.get("weight") is not None
    return weighted and kwargs.get("label_smoothing", 0.0) > 0 and not args[1].is_floating_point()


def cross_entropy(input: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
    """``F.cross_entropy`` of classes, weighted and smoothed.

    ::

        ℓ_i = −(1−ε) w_{y_i} log p_{y_i} − ε/C Σ_c w_c log p_c;   mean: Σ ℓ_i / Σ w_{y_i}
    """
    weight, smoothing = kwargs["weight"], kwargs["label_smoothing"]
    reduction, ignore = kwargs.get("reduction", "mean"), kwargs.get("ignore_index", -100)
    axis = 0 if input.ndim == 1 else 1
    p = input.log_softmax(axis)
    counted = (target != ignore).to(p.dtype)
    classes = torch.where(target == ignore, 0, target)
    true = -p.gather(axis, classes.unsqueeze(axis)).squeeze(axis)
    own = F.embedding(classes, weight.unsqueeze(-1)).squeeze(-1) * counted
    every = -(p.movedim(axis, -1) * weight).sum(-1) * counted
    losses = (1 - smoothing) * own * true + smoothing / input.shape[axis] * every
    if reduction == "none":
        return losses
    return losses.sum() / own.sum() if reduction == "mean" else losses.sum()


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """``F.gaussian_nll_loss``: ½ (log v + (x−y)²/v), v = max(var, ε) with the slope of var.

    That no variance is negative cannot be asked under vmap: one that is gives NaN.
    """
    if not isinstance(var, Tensor):
        var = torch.full_like(input, var)
    if var.shape != input.shape and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    v = torch.where(var < eps, eps + (var - var.detach()), var)
    v = torch.where(var < 0, torch.nan, v)
    losses = (v.log() + (input - target).square() / v) / 2
    if full:
        losses = losses + math.log(2 * math.pi) / 2
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
