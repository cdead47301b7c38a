"""Rprop."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.errors import ArgumentError
from metaopt.optim._leafwise import COUNTER, RATE, ZEROS, leafwise
from metaopt.optim._smooth import clamp
from metaopt.types import Optimizer

__all__ = ["RpropHParams", "RpropState", "rprop"]


class RpropHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-2
    eta1: Any = 0.5
    eta2: Any = 1.2
    step_size1: Any = 1e-6
    step_size2: Any = 50.0


class RpropState(NamedTuple):
    """Steps taken, the gradient before, the step size of every entry."""

    step: Any
    prev: Any
    step_size: Any


def rprop(
    lr: Any = 1e-2,
    etas: tuple[Any, Any] = (0.5, 1.2),
    step_sizes: tuple[Any, Any] = (1e-6, 50.0),
    *,
    maximize: bool = False,
) -> Optimizer:
    """Resilient backpropagation: the sign of the gradient, with a step size for every entry.

    ::

        f = η₊ where g·g_prev > 0,  η₋ where < 0,  1 where 0
        s ← clamp(f·s, s_min, s_max),   s = α before the first step
        g ← 0 where f = η₋
        p ← p − sign(g)·s

    Args: lr: first step size α >= 0, parameter.
          etas: (η₋, η₊), 0 < η₋ < 1 < η₊.
          step_sizes: (s_min, s_max).
          maximize: climb.
    Returns: Optimizer with hparams RpropHParams. The update is piecewise constant in the gradient, so
             that its derivative flows through α, η and the step sizes alone.
    Raises: ArgumentError if a number is out of range.
    Source: Riedmiller & Braun 1993; as torch.optim.Rprop (iRprop−).

    >>> opt = rprop(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(7.0), opt.hparams)[0]
    tensor(0.9000)
    """
    low, high = etas
    if all(isinstance(x, (int, float)) for x in etas) and not 0 < low < 1 < high:
        raise ArgumentError("rprop(etas)", "0 < etas[0] < 1 < etas[1]", repr(etas))

    def rule(p: Tensor, g: Tensor, s: RpropState, h: RpropHParams) -> tuple[Tensor, RpropState]:
        g = -g if maximize else g
        agreement = g * s.prev
        turned = agreement < 0
        one = torch.ones_like(agreement)
        factor = torch.where(agreement > 0, h.eta2 * one, torch.where(turned, h.eta1 * one, one))
        size = torch.where(s.step == 1, h.lr, s.step_size)
        size = clamp(factor * size, h.step_size1, h.step_size2)
        g = torch.where(turned, 0.0, g)
        return p - g.sign() * size, s._replace(prev=g, step_size=size)

    hparams = RpropHParams(lr, *etas, *step_sizes)
    bounds = dict.fromkeys(RpropHParams._fields, RATE)
    return leafwise("rprop", rule, RpropState(COUNTER, ZEROS, ZEROS), hparams, bounds, elementwise=True)
