"""RAdam."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, ZEROS, is_zero, leafwise, plus
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["RAdamHParams", "RAdamState", "radam"]


class RAdamHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    eps_root: Any = 0.0


class RAdamState(NamedTuple):
    """Steps taken t, first moment m, second moment v."""

    step: Any
    exp_avg: Any
    exp_avg_sq: Any


def radam(
    lr: Any = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """Rectified Adam: momentum alone until the variance of the adaptive rate is known.

    ::

        g ← ±g + λp                                     decoupled: g ← ±g and p ← (1−αλ)p
        m ← β₁m + (1−β₁)g,  m̂ = m / (1−β₁ᵗ);   v ← β₂v + (1−β₂)g²
        ρ∞ = 2/(1−β₂) − 1,  ρ = ρ∞ − 2tβ₂ᵗ/(1−β₂ᵗ)
        r = √[(ρ−4)(ρ−2)ρ∞ / ((ρ∞−4)(ρ∞−2)ρ)]
        p ← p − α m̂ r √(1−β₂ᵗ) / (√(v + ε_root) + ε)  where ρ > 5,  else  p − α m̂

    Args: lr: step size α, parameter, >= 0.
          betas: (β₁, β₂) in [0, 1).
          eps: ε >= 0, in units of the gradient.
          weight_decay: λ >= 0.
          decoupled_weight_decay: decay the parameter, not the gradient.
          maximize: climb.
          eps_root: ε_root >= 0, gradient². The slope of the update at a tiny gradient is about
              αr√(1−β₂ᵗ)/ε, up to 1e5 with the defaults, and αr√(1−β₂ᵗ)/√ε_root where it is set.
    Returns: Optimizer with hparams RAdamHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Liu et al. 2020, arXiv:1908.03265, Algorithm 2; as torch.optim.RAdam.

    >>> opt = radam(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def rectified(h: RAdamHParams, step: Tensor) -> tuple[Any, Tensor, Tensor]:
        power = h.beta2**step
        rho_inf = 2 / (1 - h.beta2) - 1
        rho = rho_inf - 2 * step * power / (1 - power)
        known = rho > 5
        below = torch.where(known, rho * (rho_inf - 4) * (rho_inf - 2), 1.0)
        ratio = torch.where(known, (rho - 4) * (rho - 2) * rho_inf / below, 1.0)
        return h.lr / (1 - h.beta1**step), known, (ratio * (1 - power)).sqrt()

    def rule(p: Tensor, g: Tensor, s: RAdamState, h: RAdamHParams, c: Any) -> tuple[Tensor, RAdamState]:
        rate, known, rectifier = c
        g = -g if maximize else g
        if decoupled_weight_decay:
            p = p if is_zero(h.weight_decay) else p * (1 - h.lr * h.weight_decay)
        else:
            g = plus(g, h.weight_decay, p)
        m = h.beta1 * s.exp_avg + (1 - h.beta1) * g
        v = h.beta2 * s.exp_avg_sq + (1 - h.beta2) * g * g
        scale = torch.where(known, rectifier / (root(v, h.eps_root) + h.eps), 1.0)
        return p - rate * m * scale, s._replace(exp_avg=m, exp_avg_sq=v)

    hparams = RAdamHParams(lr, *betas, eps, weight_decay, eps_root)
    bounds = dict.fromkeys(RAdamHParams._fields, RATE) | {"beta1": DECAY, "beta2": DECAY}
    return leafwise(
        "radam", rule, RAdamState(COUNTER, ZEROS, ZEROS), hparams, bounds, prepare=rectified, elementwise=True
    )
