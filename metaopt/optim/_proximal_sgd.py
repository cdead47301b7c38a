"""Proximal gradient descent."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.optim._leafwise import COUNTER, RATE, is_zero, leafwise
from metaopt.types import Optimizer

__all__ = ["ProximalSGDHParams", "ProximalSGDState", "proximal_sgd"]


class ProximalSGDHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3
    l1: Any = 0.0
    l2: Any = 0.0


class ProximalSGDState(NamedTuple):
    """Steps taken."""

    step: Any


def proximal_sgd(
    lr: Any = 1e-3,
    l1: Any = 0.0,
    l2: Any = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer:
    """A gradient step, then the proximal map of an elastic net.

    ::

        u = p − α(±g)
        p ← argmin_z |z − u|²/2α + λ₁|z|₁ + λ₂|z|²/2 = sign(u) max(|u| − αλ₁, 0) / (1 + αλ₂)

    Args: lr: step size α, parameter²/loss, >= 0.
          l1: λ₁ >= 0, makes entries exactly 0.
          l2: λ₂ >= 0; as 1/α it is iMAML's pull towards 0.
          maximize: climb.
    Returns: Optimizer with hparams ProximalSGDHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Beck & Teboulle 2009, SIAM J. Imaging Sci. 2 (ISTA); Parikh & Boyd 2014, section 6.5.

    >>> import torch
    >>> opt = proximal_sgd(lr=0.1, l1=0.5)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.8500)
    """

    def rule(
        p: Tensor, g: Tensor, s: ProximalSGDState, h: ProximalSGDHParams
    ) -> tuple[Tensor, ProximalSGDState]:
        u = p - h.lr * (-g if maximize else g)
        if not is_zero(h.l1):
            u = u.sign() * (u.abs() - h.lr * h.l1).relu()
        return u if is_zero(h.l2) else u / (1 + h.lr * h.l2), s

    bounds = dict.fromkeys(ProximalSGDHParams._fields, RATE)
    return leafwise(
        "proximal_sgd",
        rule,
        ProximalSGDState(COUNTER),
        ProximalSGDHParams(lr, l1, l2),
        bounds,
        elementwise=True,
    )
