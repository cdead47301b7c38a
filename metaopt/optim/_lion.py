"""Lion."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, ZEROS, leafwise, plus
from metaopt.types import Optimizer

__all__ = ["LionHParams", "LionState", "lion"]


class LionHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-4
    beta1: Any = 0.9
    beta2: Any = 0.99
    weight_decay: Any = 1e-3


class LionState(NamedTuple):
    """Steps taken, momentum m."""

    step: Any
    exp_avg: Any


def lion(
    lr: Any = 1e-4,
    betas: tuple[Any, Any] = (0.9, 0.99),
    weight_decay: Any = 1e-3,
    *,
    maximize: bool = False,
) -> Optimizer:
    """The sign of an interpolated momentum.

    ::

        g ← ±g
        p ← p − α (sign(β₁m + (1−β₁)g) + λp)
        m ← β₂m + (1−β₂)g

    Args: lr: step size α, parameter, >= 0.
          betas: (β₁, β₂) in [0, 1).
          weight_decay: λ >= 0, decoupled.
          maximize: climb. The derivative flows through α, λ and p, not through the sign.
    Returns: Optimizer with hparams LionHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Chen et al. 2023, arXiv:2302.06675, Algorithm 2; defaults as optax.lion.

    >>> import torch
    >>> opt = lion(lr=0.1, weight_decay=0.0)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def rule(p: Tensor, g: Tensor, s: LionState, h: LionHParams) -> tuple[Tensor, LionState]:
        g = -g if maximize else g
        direction = (h.beta1 * s.exp_avg + (1 - h.beta1) * g).sign()
        m = h.beta2 * s.exp_avg + (1 - h.beta2) * g
        return p - h.lr * plus(direction, h.weight_decay, p), s._replace(exp_avg=m)

    bounds = {"lr": RATE, "beta1": DECAY, "beta2": DECAY, "weight_decay": RATE}
    hparams = LionHParams(lr, *betas, weight_decay)
    return leafwise("lion", rule, LionState(COUNTER, ZEROS), hparams, bounds, elementwise=True)
