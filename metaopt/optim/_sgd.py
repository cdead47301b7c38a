"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.errors import ArgumentError
from metaopt.optim._leafwise import ABSENT, COUNTER, RATE, ZEROS, is_zero, leafwise, plus
from metaopt.types import Optimizer

__all__ = ["SGDHParams", "SGDState", "sgd"]


class SGDHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3
    momentum: Any = 0.0
    dampening: Any = 0.0
    weight_decay: Any = 0.0


class SGDState(NamedTuple):
    """``momentum_buffer`` v, and the number of steps where dampening needs it; else ``()``."""

    momentum_buffer: Any = ()
    step: Any = ()


def sgd(
    lr: Any = 1e-3,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> Optimizer:
    """Stochastic gradient descent, with momentum.

    ::

        g ← ±g + λp
        v ← g at the first step, then μv + (1−τ)g
        d = g + μv if nesterov else v
        p ← p − αd

    Args: lr: step size α, parameter²/loss, >= 0.
          momentum: μ >= 0. The Python number 0 switches it off and keeps no buffer; a 0-d tensor
              keeps the buffer, and its slope at 0, on.
          dampening: τ >= 0.
          weight_decay: λ >= 0, an L2 penalty.
          nesterov: look ahead by one momentum step; needs momentum, and dampening 0.
          maximize: climb.
    Returns: Optimizer with hparams SGDHParams.
    Raises: ArgumentError if a number is out of range, or nesterov lacks its momentum.
    Source: Sutskever et al. 2013, ICML; defaults and first step as torch.optim.SGD.

    >>> opt = sgd(lr=0.5)
    >>> params, state = opt.update([torch.ones(1)], opt.init([torch.ones(1)]), [torch.ones(1)], opt.hparams)
    >>> params
    [tensor([0.5000])]
    """
    hparams = SGDHParams(lr, momentum, dampening, weight_decay)
    heavy = not is_zero(momentum)
    dampened = heavy and not is_zero(dampening)
    if nesterov and (not heavy or dampened):
        raise ArgumentError("sgd(nesterov)", "momentum > 0 and dampening = 0", f"{momentum=}, {dampening=}")

    def rule(p: Tensor, g: Tensor, s: SGDState, h: SGDHParams) -> tuple[Tensor, SGDState]:
        g = plus(-g if maximize else g, h.weight_decay, p)
        if not heavy:
            return plus(p, -h.lr, g), s
        v = plus((1 - h.dampening) * g if dampened else g, h.momentum, s.momentum_buffer)
        if dampened:
            v = torch.where(s.step == 1, g, v)
        d = plus(g, h.momentum, v) if nesterov else v
        return plus(p, -h.lr, d), SGDState(v, s.step)

    template = SGDState(ZEROS if heavy else ABSENT, COUNTER if dampened else ABSENT)
    return leafwise(
        "sgd",
        rule,
        template,
        hparams,
        bounds=dict.fromkeys(SGDHParams._fields, RATE),
        needs={"momentum": "momentum_buffer", "dampening": "step"},
        elementwise=True,
    )
