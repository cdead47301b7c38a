"""NAdam."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, ONE, RATE, ZEROS, is_zero, leafwise, plus
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["NAdamHParams", "NAdamState", "nadam"]


class NAdamHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 2e-3
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    momentum_decay: Any = 4e-3
    eps_root: Any = 0.0


class NAdamState(NamedTuple):
    """Steps taken t, the product Πμ of momenta (0-d, a leaf), first moment m, second moment v."""

    step: Any
    mu_product: Any
    exp_avg: Any
    exp_avg_sq: Any


def nadam(
    lr: Any = 2e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    momentum_decay: Any = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """Adam with Nesterov momentum.

    ::

        g ← ±g + λp                                  decoupled: g ← ±g and p ← (1−αλ)p
        μ_t = β₁(1 − ½·0.96^{tψ})
        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)g²,  v̂ = v / (1−β₂ᵗ)
        p ← p − α [(1−μ_t) g / (1−Π_{i≤t}μ_i) + μ_{t+1} m / (1−Π_{i≤t+1}μ_i)] / (√(v̂ + ε_root) + ε)

    Args: lr: step size α, parameter, >= 0.
          betas: (β₁, β₂) in [0, 1).
          eps: ε >= 0, in units of the gradient.
          weight_decay: λ >= 0.
          momentum_decay: ψ >= 0.
          decoupled_weight_decay: decay the parameter, not the gradient.
          maximize: climb.
          eps_root: ε_root >= 0, gradient². The slope of the update at a tiny gradient is about
              α/ε, 2e5 with the defaults, and α/√ε_root where it is set.
    Returns: Optimizer with hparams NAdamHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Dozat 2016, ICLR workshop; as torch.optim.NAdam.

    >>> import torch
    >>> opt = nadam(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.8944)
    """

    def momenta(h: NAdamHParams, step: Tensor) -> tuple[Any, Any, Tensor]:
        mu, mu_next = (h.beta1 * (1 - 0.5 * 0.96 ** (t * h.momentum_decay)) for t in (step, step + 1))
        return mu, mu_next, 1 - h.beta2**step

    def rule(p: Tensor, g: Tensor, s: NAdamState, h: NAdamHParams, c: Any) -> tuple[Tensor, NAdamState]:
        mu, mu_next, correction = c
        g = -g if maximize else g
        if decoupled_weight_decay:
            p = p if is_zero(h.weight_decay) else p * (1 - h.lr * h.weight_decay)
        else:
            g = plus(g, h.weight_decay, p)
        product = s.mu_product * mu
        m = h.beta1 * s.exp_avg + (1 - h.beta1) * g
        v = h.beta2 * s.exp_avg_sq + (1 - h.beta2) * g * g
        ahead = h.lr * (1 - mu) / (1 - product) * g + h.lr * mu_next / (1 - product * mu_next) * m
        p = p - ahead / (root(v / correction, h.eps_root) + h.eps)
        return p, s._replace(mu_product=product, exp_avg=m, exp_avg_sq=v)

    hparams = NAdamHParams(lr, *betas, eps, weight_decay, momentum_decay, eps_root)
    bounds = dict.fromkeys(NAdamHParams._fields, RATE) | {"beta1": DECAY, "beta2": DECAY}
    return leafwise("nadam", rule, NAdamState(COUNTER, ONE, ZEROS, ZEROS), hparams, bounds, prepare=momenta)
