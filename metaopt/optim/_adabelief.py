"""AdaBelief."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, ZEROS, leafwise
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["AdaBeliefHParams", "AdaBeliefState", "adabelief"]


class AdaBeliefHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-16
    eps_root: Any = 1e-16


class AdaBeliefState(NamedTuple):
    """Steps taken t, first moment m, variance v."""

    step: Any
    exp_avg: Any
    exp_avg_var: Any


def adabelief(
    lr: Any = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    *,
    nesterov: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Adam with the variance about the first moment as the second.

    ::

        g ← ±g
        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)(g − m)² + ε_root
        p ← p − α m̂ / (√v̂ + ε),   v̂ = v / (1−β₂ᵗ)
        m̂ = m / (1−β₁ᵗ);   nesterov: m̂ = β₁m/(1−β₁ᵗ⁺¹) + (1−β₁)g/(1−β₁ᵗ)

    Args: lr: step size α, parameter, >= 0.
          betas: (β₁, β₂) in [0, 1).
          eps: ε >= 0, in units of the gradient.
          eps_root: ε_root >= 0, gradient². The slope of the update at a constant gradient is about
              α/√ε_root, 1e5 with the defaults: 1e-8 or more tames a hypergradient.
          nesterov: look ahead by one momentum step.
          maximize: climb.
    Returns: Optimizer with hparams AdaBeliefHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Zhuang et al. 2020, arXiv:2010.07468, Algorithm 2; defaults as optax.adabelief.

    >>> import torch
    >>> opt = adabelief(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.8889)
    """

    def corrected(h: AdaBeliefHParams, step: Tensor) -> tuple[Any, ...]:
        return 1 - h.beta1**step, 1 - h.beta1 ** (step + 1), 1 - h.beta2**step

    def rule(
        p: Tensor, g: Tensor, s: AdaBeliefState, h: AdaBeliefHParams, c: Any
    ) -> tuple[Tensor, AdaBeliefState]:
        c1, c1_next, c2 = c
        g = -g if maximize else g
        m = h.beta1 * s.exp_avg + (1 - h.beta1) * g
        v = h.beta2 * s.exp_avg_var + (1 - h.beta2) * (g - m) ** 2 + h.eps_root
        m_hat = h.beta1 * m / c1_next + (1 - h.beta1) * g / c1 if nesterov else m / c1
        return p - h.lr * m_hat / (root(v / c2) + h.eps), s._replace(exp_avg=m, exp_avg_var=v)

    hparams = AdaBeliefHParams(lr, *betas, eps, eps_root)
    bounds = dict.fromkeys(AdaBeliefHParams._fields, RATE) | {"beta1": DECAY, "beta2": DECAY}
    template = AdaBeliefState(COUNTER, ZEROS, ZEROS)
    return leafwise("adabelief", rule, template, hparams, bounds, prepare=corrected, elementwise=True)
