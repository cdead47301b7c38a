"""LAMB."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, ZEROS, leafwise, plus
from metaopt.optim._smooth import root, trust_ratio
from metaopt.types import Optimizer

__all__ = ["LambHParams", "LambState", "lamb"]


class LambHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-6
    weight_decay: Any = 0.0
    eps_root: Any = 0.0


class LambState(NamedTuple):
    """Steps taken t, first moment m, second moment v."""

    step: Any
    exp_avg: Any
    exp_avg_sq: Any


def lamb(
    lr: Any = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """Adam with a step in proportion to the parameter, leaf by leaf.

    ::

        g ← ±g
        m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²
        u = m̂ / (√(v̂ + ε_root) + ε) + λp,   x̂ = x / (1−βᵗ)
        p ← p − α |p|/|u| u,   the ratio 1 where a norm is 0

    Args: lr: relative step size α >= 0.
          betas: (β₁, β₂) in [0, 1).
          eps: ε >= 0, in units of the gradient.
          weight_decay: λ >= 0.
          maximize: climb.
          eps_root: ε_root >= 0, gradient². The slope of Adam's direction at a tiny gradient is about
              1/ε, 1e6 with the defaults, and 1/√ε_root where it is set; the trust ratio scales it.
    Returns: Optimizer with hparams LambHParams.
    Raises: ArgumentError if a number is out of range.
    Source: You et al. 2020, arXiv:1904.00962, Algorithm 2; defaults as optax.lamb.

    >>> import torch
    >>> opt = lamb(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def corrected(h: LambHParams, step: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - h.beta1**step, 1 - h.beta2**step

    def rule(p: Tensor, g: Tensor, s: LambState, h: LambHParams, c: Any) -> tuple[Tensor, LambState]:
        g = -g if maximize else g
        m = h.beta1 * s.exp_avg + (1 - h.beta1) * g
        v = h.beta2 * s.exp_avg_sq + (1 - h.beta2) * g * g
        u = plus(m / c[0] / (root(v / c[1], h.eps_root) + h.eps), h.weight_decay, p)
        return p - h.lr * trust_ratio(p, u, 1.0, 0.0) * u, s._replace(exp_avg=m, exp_avg_sq=v)

    hparams = LambHParams(lr, *betas, eps, weight_decay, eps_root)
    bounds = dict.fromkeys(LambHParams._fields, RATE) | {"beta1": DECAY, "beta2": DECAY}
    return leafwise("lamb", rule, LambState(COUNTER, ZEROS, ZEROS), hparams, bounds, prepare=corrected)
