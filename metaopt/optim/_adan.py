"""Adan."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, ZEROS, leafwise, plus
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["AdanHParams", "AdanState", "adan"]


class AdanHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3
    beta1: Any = 0.98
    beta2: Any = 0.92
    beta3: Any = 0.99
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    eps_root: Any = 1e-8


class AdanState(NamedTuple):
    """Steps taken t, moments m, w, n, and the gradient before."""

    step: Any
    exp_avg: Any
    exp_avg_diff: Any
    exp_avg_sq: Any
    previous_grad: Any


def adan(
    lr: Any = 1e-3,
    betas: tuple[Any, Any, Any] = (0.98, 0.92, 0.99),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    eps_root: Any = 1e-8,
) -> Optimizer:
    """Adaptive Nesterov momentum.

    ::

        g ← ±g,  d = g − g_prev, 0 at the first step
        m ← β₁m + (1−β₁)g,  w ← β₂w + (1−β₂)d,  n ← β₃n + (1−β₃)(g + β₂d)²
        p ← p − α [(m̂ + β₂ŵ) / (√(n̂ + ε_root) + ε) + λp],   x̂ = x / (1−βᵗ)

    Args: lr: step size α, parameter, >= 0.
          betas: decay rates (β₁, β₂, β₃) in [0, 1); the paper's are 1 − β.
          eps: ε >= 0, in units of the gradient.
          weight_decay: λ >= 0, decoupled.
          maximize: climb.
          eps_root: ε_root >= 0, gradient²; bounds the slope at a tiny gradient by about α/√ε_root, 10
              with the defaults; α/ε where it is 0.
    Returns: Optimizer with hparams AdanHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Xie et al. 2022, arXiv:2208.06677, Algorithm 1, whose β₂ optax.adan 0.2.8 takes for 1 − β₂.

    >>> opt = adan(lr=0.1, eps_root=0.0)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def corrected(h: AdanHParams, step: Tensor) -> tuple[Any, ...]:
        return step == 1, *(1 - beta**step for beta in (h.beta1, h.beta2, h.beta3))

    def rule(p: Tensor, g: Tensor, s: AdanState, h: AdanHParams, c: Any) -> tuple[Tensor, AdanState]:
        first, c1, c2, c3 = c
        g = -g if maximize else g
        d = torch.where(first, 0.0, g - s.previous_grad)
        m = h.beta1 * s.exp_avg + (1 - h.beta1) * g
        w = h.beta2 * s.exp_avg_diff + (1 - h.beta2) * d
        n = h.beta3 * s.exp_avg_sq + (1 - h.beta3) * (g + h.beta2 * d) ** 2
        u = (m / c1 + h.beta2 * w / c2) / (root(n / c3, h.eps_root) + h.eps)
        return p - h.lr * plus(u, h.weight_decay, p), AdanState(s.step, m, w, n, g)

    hparams = AdanHParams(lr, *betas, eps, weight_decay, eps_root)
    bounds = dict.fromkeys(AdanHParams._fields, RATE) | dict.fromkeys(("beta1", "beta2", "beta3"), DECAY)
    template = AdanState(COUNTER, ZEROS, ZEROS, ZEROS, ZEROS)
    return leafwise("adan", rule, template, hparams, bounds, prepare=corrected, elementwise=True)
