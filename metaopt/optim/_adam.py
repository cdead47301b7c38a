"""Adam."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import ABSENT, COUNTER, DECAY, RATE, ZEROS, is_zero, leafwise, plus
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["AdamHParams", "AdamState", "adam"]


class AdamHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    eps_root: Any = 0.0


class AdamState(NamedTuple):
    """Steps taken t, first moment m, second moment v, and its running maximum or ``()``."""

    step: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any = ()


BOUNDS = {"lr": RATE, "beta1": DECAY, "beta2": DECAY, "eps": RATE, "weight_decay": RATE, "eps_root": RATE}


def adam(
    lr: Any = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """Adam, adaptive moment estimation.

    ::

        g ← ±g + λp                                 decoupled: g ← ±g and p ← (1−αλ)p
        m ← β₁m + (1−β₁)g,   m̂ = m / (1−β₁ᵗ)
        v ← β₂v + (1−β₂)g²,  v̂ = v / (1−β₂ᵗ)      amsgrad: v ← running maximum in v̂
        p ← p − α m̂ / (√(v̂ + ε_root) + ε)

    Args: lr: step size α, parameter, >= 0.
          betas: decay rates (β₁, β₂) of the moments, in [0, 1); each differentiable.
          eps: ε >= 0, in units of the gradient.
          weight_decay: λ >= 0, an L2 penalty.
          amsgrad: divide by the largest second moment so far.
          maximize: climb.
          decoupled_weight_decay: decay the parameter, not the gradient (`adamw`).
          eps_root: ε_root >= 0, gradient². The slope of the update at a tiny gradient is about
              α/ε, 1e5 with the defaults, and α/√ε_root where that is set: 1e-8 tames a
              hypergradient that passes through many Adam steps.
    Returns: Optimizer with hparams AdamHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1; Reddi et al. 2018 for amsgrad.

    >>> opt = adam(lr=0.1)
    >>> params, state = opt.update([torch.ones(1)], opt.init([torch.ones(1)]), [torch.ones(1)], opt.hparams)
    >>> params
    [tensor([0.9000])]
    """
    hparams = AdamHParams(lr, *betas, eps, weight_decay, eps_root)
    return build("adam", hparams, amsgrad, maximize, decoupled_weight_decay)


def build(name: str, hparams: AdamHParams, amsgrad: bool, maximize: bool, decoupled: bool) -> Optimizer:
    """Adam under the name that its messages give it."""

    def corrected(h: AdamHParams, step: Tensor) -> tuple[Any, Tensor]:
        return h.lr / (1 - h.beta1**step), 1 - h.beta2**step

    def rule(p: Tensor, g: Tensor, s: AdamState, h: AdamHParams, c: Any) -> tuple[Tensor, AdamState]:
        rate, correction = c
        g = -g if maximize else g
        if decoupled:
            p = p if is_zero(h.weight_decay) else p * (1 - h.lr * h.weight_decay)
        else:
            g = plus(g, h.weight_decay, p)
        m = plus(h.beta1 * s.exp_avg, 1 - h.beta1, g)
        v = plus(h.beta2 * s.exp_avg_sq, 1 - h.beta2, g * g)
        s = AdamState(s.step, m, v, torch.maximum(s.max_exp_avg_sq, v) if amsgrad else ABSENT)
        v = s.max_exp_avg_sq if amsgrad else v
        return p - rate * m / (root(v / correction, h.eps_root) + h.eps), s

    template = AdamState(COUNTER, ZEROS, ZEROS, ZEROS if amsgrad else ABSENT)
    return leafwise(name, rule, template, hparams, BOUNDS, prepare=corrected, elementwise=True)
