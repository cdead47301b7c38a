"""Averaged SGD."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import ANY, COUNTER, RATE, SCALAR, ZEROS, leafwise, plus
from metaopt.types import Optimizer

__all__ = ["ASGDHParams", "ASGDState", "asgd"]


class ASGDHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-2
    lambd: Any = 1e-4
    alpha: Any = 0.75
    t0: Any = 1e6
    weight_decay: Any = 0.0


class ASGDState(NamedTuple):
    """Steps taken t, the step size η (0-d, a leaf) for the next step, the average p̄ of the iterates."""

    step: Any
    eta: Any
    ax: Any


def asgd(
    lr: Any = 1e-2,
    lambd: Any = 1e-4,
    alpha: Any = 0.75,
    t0: Any = 1e6,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer:
    """Averaged stochastic gradient descent.

    ::

        g ← ±g + λp
        p ← (1−κη)p − ηg
        p̄ ← p̄ + μ(p − p̄),   μ = 1/max(1, t−1−t₀)
        η ← α₀ / (1 + κα₀t)^a,   η = α₀ before the first step

    Args: lr: α₀ >= 0, parameter²/loss.
          lambd: decay κ.
          alpha: power a of the step size.
          t0: t₀, the step at which averaging starts.
          weight_decay: λ >= 0, an L2 penalty.
          maximize: climb.
    Returns: Optimizer with hparams ASGDHParams. The average is ``state.ax``.
    Raises: ArgumentError if a number is out of range.
    Source: Polyak & Juditsky 1992; as torch.optim.ASGD.

    >>> opt = asgd(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def averaging(h: ASGDHParams, step: Tensor) -> tuple[Tensor, Tensor, Any]:
        late = step - 1 - h.t0
        mu = 1 / torch.where(late > 1, late, 1.0)
        return step == 1, mu, h.lr / (1 + h.lambd * h.lr * step) ** h.alpha

    def rule(p: Tensor, g: Tensor, s: ASGDState, h: ASGDHParams, c: Any) -> tuple[Tensor, ASGDState]:
        first, mu, eta_next = c
        g = plus(-g if maximize else g, h.weight_decay, p)
        eta = torch.where(first, h.lr, s.eta)
        p = p * (1 - h.lambd * eta) - eta * g
        return p, s._replace(eta=eta_next, ax=torch.where(mu == 1, p, s.ax + (p - s.ax) * mu))

    hparams = ASGDHParams(lr, lambd, alpha, t0, weight_decay)
    bounds = {"lr": RATE, "lambd": ANY, "alpha": ANY, "t0": ANY, "weight_decay": RATE}
    return leafwise("asgd", rule, ASGDState(COUNTER, SCALAR, ZEROS), hparams, bounds, prepare=averaging)
