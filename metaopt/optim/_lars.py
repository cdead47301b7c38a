"""LARS."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.optim._leafwise import COUNTER, RATE, ZEROS, leafwise, plus
from metaopt.optim._smooth import trust_ratio
from metaopt.types import Optimizer

__all__ = ["LarsHParams", "LarsState", "lars"]


class LarsHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3
    momentum: Any = 0.9
    weight_decay: Any = 0.0
    trust_coefficient: Any = 1e-3
    eps: Any = 0.0


class LarsState(NamedTuple):
    """Steps taken, momentum b."""

    step: Any
    momentum_buffer: Any


def lars(
    lr: Any = 1e-3,
    momentum: Any = 0.9,
    weight_decay: Any = 0.0,
    trust_coefficient: Any = 1e-3,
    eps: Any = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> Optimizer:
    """SGD with a step in proportion to the parameter, leaf by leaf.

    ::

        d = ±g + λp
        b ← μb + α κ|p|/(|d| + ε) d,   the ratio 1 where a norm is 0
        p ← p − (d' + μb if nesterov else b),   d' the term added to b

    Args: lr: step size α >= 0.
          momentum: μ >= 0.
          weight_decay: λ >= 0.
          trust_coefficient: κ >= 0.
          eps: ε >= 0, in units of the gradient.
          nesterov: look ahead by one momentum step.
          maximize: climb.
    Returns: Optimizer with hparams LarsHParams.
    Raises: ArgumentError if a number is out of range.
    Source: You et al. 2017, arXiv:1708.03888; defaults as optax.lars.

    >>> import torch
    >>> opt = lars(lr=100.0)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def rule(p: Tensor, g: Tensor, s: LarsState, h: LarsHParams) -> tuple[Tensor, LarsState]:
        d = plus(-g if maximize else g, h.weight_decay, p)
        d = h.lr * trust_ratio(p, d, h.trust_coefficient, h.eps) * d
        b = h.momentum * s.momentum_buffer + d
        return p - (d + h.momentum * b if nesterov else b), s._replace(momentum_buffer=b)

    hparams = LarsHParams(lr, momentum, weight_decay, trust_coefficient, eps)
    return leafwise(
        "lars", rule, LarsState(COUNTER, ZEROS), hparams, dict.fromkeys(LarsHParams._fields, RATE)
    )
