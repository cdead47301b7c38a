"""Yogi."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, ZEROS, leafwise
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["YogiHParams", "YogiState", "yogi"]


class YogiHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-2
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-3
    initial_accumulator_value: Any = 1e-6
    eps_root: Any = 0.0


class YogiState(NamedTuple):
    """Steps taken t, first moment m, second moment v."""

    step: Any
    exp_avg: Any
    exp_avg_sq: Any


def yogi(
    lr: Any = 1e-2,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-3,
    initial_accumulator_value: Any = 1e-6,
    *,
    maximize: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """Adam whose second moment moves by at most a gradient's size.

    ::

        g ← ±g,  m = v = τ before the first step
        m ← β₁m + (1−β₁)g
        v ← v − (1−β₂) sign(v − g²) g²
        p ← p − α m̂ / (√(v̂ + ε_root) + ε),   x̂ = x / (1−βᵗ)

    Args: lr: step size α, parameter, >= 0.
          betas: (β₁, β₂) in [0, 1).
          eps: ε >= 0, in units of the gradient.
          initial_accumulator_value: τ >= 0; read at the first step.
          maximize: climb.
          eps_root: ε_root >= 0, gradient². The slope of the update at a tiny gradient is about
              α/ε, 10 with the defaults, and α/√ε_root where it is set.
    Returns: Optimizer with hparams YogiHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Zaheer et al. 2018, NeurIPS, Algorithm 2; defaults, and m = τ, as optax.yogi.

    >>> opt = yogi(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9001)
    """

    def corrected(h: YogiHParams, step: Tensor) -> tuple[Any, ...]:
        return step == 1, h.lr / (1 - h.beta1**step), 1 - h.beta2**step

    def rule(p: Tensor, g: Tensor, s: YogiState, h: YogiHParams, c: Any) -> tuple[Tensor, YogiState]:
        first, rate, correction = c
        g = -g if maximize else g
        start = h.initial_accumulator_value
        m, v = (torch.where(first, start, x) for x in (s.exp_avg, s.exp_avg_sq))
        m = h.beta1 * m + (1 - h.beta1) * g
        v = v - (1 - h.beta2) * (v - g * g).sign() * g * g
        return p - rate * m / (root(v / correction, h.eps_root) + h.eps), s._replace(exp_avg=m, exp_avg_sq=v)

    hparams = YogiHParams(lr, *betas, eps, initial_accumulator_value, eps_root)
    bounds = dict.fromkeys(YogiHParams._fields, RATE) | {"beta1": DECAY, "beta2": DECAY}
    return leafwise(
        "yogi", rule, YogiState(COUNTER, ZEROS, ZEROS), hparams, bounds, prepare=corrected, elementwise=True
    )
