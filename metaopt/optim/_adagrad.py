"""Adagrad."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import COUNTER, RATE, ZEROS, is_zero, leafwise, plus
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["AdagradHParams", "AdagradState", "adagrad"]


class AdagradHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-2
    lr_decay: Any = 0.0
    weight_decay: Any = 0.0
    initial_accumulator_value: Any = 0.0
    eps: Any = 1e-10
    eps_root: Any = 0.0


class AdagradState(NamedTuple):
    """Steps taken t; the sum of squared gradients v, which the first step starts at τ."""

    step: Any
    sum: Any


def adagrad(
    lr: Any = 1e-2,
    lr_decay: Any = 0.0,
    weight_decay: Any = 0.0,
    initial_accumulator_value: Any = 0.0,
    eps: Any = 1e-10,
    *,
    maximize: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """Adaptive subgradients.

    ::

        g ← ±g + λp
        v ← v + g²,  v = τ before the first step
        p ← p − α / (1 + (t−1)η) · g / (√(v + ε_root) + ε)

    Args: lr: step size α, parameter, >= 0.
          lr_decay: η >= 0.
          weight_decay: λ >= 0, an L2 penalty.
          initial_accumulator_value: τ >= 0, gradient²; read at the first step.
          eps: ε >= 0, in units of the gradient.
          maximize: climb.
          eps_root: ε_root >= 0, gradient². The slope of the update at a tiny gradient is about
              α/ε, 1e8 with the defaults, and α/√ε_root where it is set.
    Returns: Optimizer with hparams AdagradHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Duchi et al. 2011, JMLR 12; as torch.optim.Adagrad.

    >>> opt = adagrad(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def decayed(h: AdagradHParams, step: Tensor) -> tuple[Any, Any]:
        rate = h.lr if is_zero(h.lr_decay) else h.lr / (1 + (step - 1) * h.lr_decay)
        return rate, step == 1

    def rule(p: Tensor, g: Tensor, s: AdagradState, h: AdagradHParams, c: Any) -> tuple[Tensor, AdagradState]:
        rate, first = c
        g = plus(-g if maximize else g, h.weight_decay, p)
        v = s.sum
        if not is_zero(h.initial_accumulator_value):
            v = torch.where(first, h.initial_accumulator_value, v)
        v = v + g * g
        return p - rate * g / (root(v, h.eps_root) + h.eps), s._replace(sum=v)

    hparams = AdagradHParams(lr, lr_decay, weight_decay, initial_accumulator_value, eps, eps_root)
    bounds = dict.fromkeys(AdagradHParams._fields, RATE)
    return leafwise(
        "adagrad", rule, AdagradState(COUNTER, ZEROS), hparams, bounds, prepare=decayed, elementwise=True
    )
