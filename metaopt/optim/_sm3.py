"""SM3."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, ZEROS, Start, leafwise
from metaopt.types import Optimizer

__all__ = ["SM3HParams", "SM3State", "sm3"]


class SM3HParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-2
    momentum: Any = 0.9
    beta2: Any = 1.0
    eps: Any = 1e-8


class SM3State(NamedTuple):
    """Steps taken, momentum b, and for every leaf a tuple of accumulators a, one an axis."""

    step: Any
    momentum_buffer: Any
    accumulators: Any


def _per_axis(p: Tensor) -> tuple[Tensor, ...]:
    if p.ndim < 2 or p.numel() == 0:
        return (torch.zeros_like(p),)
    shapes = ([n if i == j else 1 for j, n in enumerate(p.shape)] for i in range(p.ndim))
    return tuple(p.new_zeros(shape) for shape in shapes)


AXES = Start(_per_axis)


def sm3(
    lr: Any = 1e-2,
    momentum: Any = 0.9,
    beta2: Any = 1.0,
    eps: Any = 1e-8,
    *,
    maximize: bool = False,
) -> Optimizer:
    """Adagrad in the memory of one vector an axis.

    ::

        g ← ±g
        v = β₂ min over axes of a_axis + (1−β₂ or 1) g²,   1 where β₂ = 1
        a_axis ← max of v over the other axes
        b ← μb + (1−μ) g / √(v + ε),   0 where v = 0
        p ← p − αb

    Args: lr: step size α, parameter, >= 0.
          momentum: μ in [0, 1).
          beta2: β₂ in [0, 1]; the number 1 sums, as Adagrad does.
          eps: ε >= 0, gradient².
          maximize: climb.
    Returns: Optimizer with hparams SM3HParams.
    Raises: ArgumentError if a number is out of range.
    Source: Anil et al. 2019, arXiv:1901.11150, Algorithm SM3-II; defaults as optax.sm3.

    >>> opt = sm3(lr=0.1, momentum=0.0)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """
    summing = isinstance(beta2, (int, float)) and beta2 == 1

    def rule(p: Tensor, g: Tensor, s: SM3State, h: SM3HParams) -> tuple[Tensor, SM3State]:
        g = -g if maximize else g
        v = s.accumulators[0]
        for a in s.accumulators[1:]:
            v = torch.minimum(v, a)
        v = h.beta2 * v + (1 if summing else 1 - h.beta2) * g * g
        dead = v <= 0
        u = torch.where(dead, 0.0, g * torch.rsqrt(torch.where(dead, 1.0, v) + h.eps))
        b = h.momentum * s.momentum_buffer + (1 - h.momentum) * u
        if p.ndim > 1 and p.numel():
            axes = range(p.ndim)
            accumulators = tuple(v.amax([j for j in axes if j != i], keepdim=True) for i in axes)
        else:
            accumulators = (v,) * len(s.accumulators)
        return p - h.lr * b, s._replace(momentum_buffer=b, accumulators=accumulators)

    template, hparams = SM3State(COUNTER, ZEROS, AXES), SM3HParams(lr, momentum, beta2, eps)
    bounds = {"lr": RATE, "momentum": DECAY, "beta2": (0.0, 1.0 + 2.0**-52), "eps": RATE}
    return leafwise("sm3", rule, template, hparams, bounds, real=True)
