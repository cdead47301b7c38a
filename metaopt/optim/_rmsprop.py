"""RMSprop."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.optim._leafwise import ABSENT, COUNTER, DECAY, RATE, ZEROS, is_zero, leafwise, plus
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["RMSpropHParams", "RMSpropState", "rmsprop"]


class RMSpropHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-2
    alpha: Any = 0.99
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    momentum: Any = 0.0
    eps_root: Any = 0.0


class RMSpropState(NamedTuple):
    """Steps taken, second moment v, and where they are needed the momentum b and first moment m."""

    step: Any
    square_avg: Any
    momentum_buffer: Any = ()
    grad_avg: Any = ()


def rmsprop(
    lr: Any = 1e-2,
    alpha: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    momentum: Any = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """RMSprop.

    ::

        g ← ±g + λp
        v ← ρv + (1−ρ)g²,   centered: m ← ρm + (1−ρ)g and v − m² in place of v below
        b ← μb + g / (√(v + ε_root) + ε)
        p ← p − αb

    Args: lr: step size α, parameter, >= 0.
          alpha: ρ in [0, 1).
          eps: ε >= 0, in units of the gradient.
          weight_decay: λ >= 0, an L2 penalty.
          momentum: μ >= 0. The Python number 0 switches it off and keeps no buffer.
          centered: divide by the standard deviation.
          maximize: climb.
          eps_root: ε_root >= 0, gradient²; bounds the slope at a tiny gradient by α/√ε_root
              in place of α/ε.
    Returns: Optimizer with hparams RMSpropHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Tieleman & Hinton 2012, Coursera lecture 6.5; Graves 2013, arXiv:1308.0850, for centered.

    >>> import torch
    >>> opt = rmsprop(lr=0.1, alpha=0.0)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """
    heavy = not is_zero(momentum)

    def rule(p: Tensor, g: Tensor, s: RMSpropState, h: RMSpropHParams) -> tuple[Tensor, RMSpropState]:
        g = plus(-g if maximize else g, h.weight_decay, p)
        v = h.alpha * s.square_avg + (1 - h.alpha) * g * g
        s = s._replace(square_avg=v)
        if centered:
            m = h.alpha * s.grad_avg + (1 - h.alpha) * g
            v, s = v - m * m, s._replace(grad_avg=m)
        b = g / (root(v, h.eps_root) + h.eps)
        if heavy:
            b = h.momentum * s.momentum_buffer + b
            s = s._replace(momentum_buffer=b)
        return p - h.lr * b, s

    template = RMSpropState(COUNTER, ZEROS, ZEROS if heavy else ABSENT, ZEROS if centered else ABSENT)
    hparams = RMSpropHParams(lr, alpha, eps, weight_decay, momentum, eps_root)
    bounds = dict.fromkeys(RMSpropHParams._fields, RATE) | {"alpha": DECAY}
    return leafwise(
        "rmsprop", rule, template, hparams, bounds, needs={"momentum": "momentum_buffer"}, elementwise=True
    )
