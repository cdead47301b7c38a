"""Adamax."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, ZEROS, leafwise, plus
from metaopt.types import Optimizer

__all__ = ["AdamaxHParams", "AdamaxState", "adamax"]


class AdamaxHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 2e-3
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.0


class AdamaxState(NamedTuple):
    """Steps taken t, first moment m, weighted infinity norm u."""

    step: Any
    exp_avg: Any
    exp_inf: Any


def adamax(
    lr: Any = 2e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer:
    """Adam in the infinity norm.

    ::

        g ← ±g + λp
        m ← β₁m + (1−β₁)g
        u ← max(β₂u, |g| + ε)
        p ← p − α m / ((1−β₁ᵗ) u)

    Args: lr: step size α, parameter, >= 0.
          betas: (β₁, β₂) in [0, 1).
          eps: ε >= 0, in units of the gradient; at 0 a gradient that is 0 from the start gives 0/0.
          weight_decay: λ >= 0, an L2 penalty.
          maximize: climb.
    Returns: Optimizer with hparams AdamaxHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Kingma & Ba 2015, arXiv:1412.6980, Algorithm 2; as torch.optim.Adamax.

    >>> opt = adamax(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def corrected(h: AdamaxHParams, step: Tensor) -> Any:
        return h.lr / (1 - h.beta1**step)

    def rule(p: Tensor, g: Tensor, s: AdamaxState, h: AdamaxHParams, rate: Any) -> tuple[Tensor, AdamaxState]:
        g = plus(-g if maximize else g, h.weight_decay, p)
        m = h.beta1 * s.exp_avg + (1 - h.beta1) * g
        u = torch.maximum(h.beta2 * s.exp_inf, g.abs() + h.eps)
        return p - rate * m / u, s._replace(exp_avg=m, exp_inf=u)

    hparams = AdamaxHParams(lr, *betas, eps, weight_decay)
    bounds = dict.fromkeys(AdamaxHParams._fields, RATE) | {"beta1": DECAY, "beta2": DECAY}
    return leafwise(
        "adamax",
        rule,
        AdamaxState(COUNTER, ZEROS, ZEROS),
        hparams,
        bounds,
        prepare=corrected,
        elementwise=True,
    )
