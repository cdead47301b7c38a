"""Adadelta."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, ZEROS, leafwise, plus
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["AdadeltaHParams", "AdadeltaState", "adadelta"]


class AdadeltaHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1.0
    rho: Any = 0.9
    eps: Any = 1e-6
    weight_decay: Any = 0.0


class AdadeltaState(NamedTuple):
    """Steps taken; running means of squared gradients v and of squared updates u."""

    step: Any
    square_avg: Any
    acc_delta: Any


def adadelta(
    lr: Any = 1.0,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer:
    """Adadelta: steps in units of the parameter.

    ::

        g ← ±g + λp
        v ← ρv + (1−ρ)g²
        δ = √(u + ε) / √(v + ε) · g
        u ← ρu + (1−ρ)δ²
        p ← p − αδ

    Args: lr: α >= 0, without unit.
          rho: ρ in [0, 1).
          eps: ε >= 0, inside both roots.
          weight_decay: λ >= 0, an L2 penalty.
          maximize: climb.
    Returns: Optimizer with hparams AdadeltaHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Zeiler 2012, arXiv:1212.5701, Algorithm 1; as torch.optim.Adadelta.

    >>> import torch
    >>> opt = adadelta(eps=0.1, rho=0.0)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.6985)
    """

    def rule(p: Tensor, g: Tensor, s: AdadeltaState, h: AdadeltaHParams) -> tuple[Tensor, AdadeltaState]:
        g = plus(-g if maximize else g, h.weight_decay, p)
        v = h.rho * s.square_avg + (1 - h.rho) * g * g
        delta = root(s.acc_delta + h.eps) / root(v + h.eps) * g
        u = h.rho * s.acc_delta + (1 - h.rho) * delta * delta
        return p - h.lr * delta, s._replace(square_avg=v, acc_delta=u)

    hparams = AdadeltaHParams(lr, rho, eps, weight_decay)
    bounds = dict.fromkeys(AdadeltaHParams._fields, RATE) | {"rho": DECAY}
    return leafwise("adadelta", rule, AdadeltaState(COUNTER, ZEROS, ZEROS), hparams, bounds, elementwise=True)
