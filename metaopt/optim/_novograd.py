"""NovoGrad."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import COUNTER, DECAY, RATE, SCALAR, ZEROS, leafwise, plus
from metaopt.optim._smooth import root
from metaopt.types import Optimizer

__all__ = ["NovoGradHParams", "NovoGradState", "novograd"]


class NovoGradHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3
    beta1: Any = 0.9
    beta2: Any = 0.25
    eps: Any = 1e-6
    weight_decay: Any = 0.0
    eps_root: Any = 0.0


class NovoGradState(NamedTuple):
    """Steps taken, momentum m, the running mean v of |g|² (0-d, a leaf)."""

    step: Any
    exp_avg: Any
    norm_sq: Any


def novograd(
    lr: Any = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.25),
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """Momentum of gradients that are normalised leaf by leaf.

    ::

        g ← ±g
        v ← β₂v + (1−β₂)|g|²,   |g|² at the first step
        m ← β₁m + g / (√(v + ε_root) + ε) + λp
        p ← p − αm

    Args: lr: step size α, parameter, >= 0.
          betas: (β₁, β₂) in [0, 1).
          eps: ε >= 0, in units of the gradient.
          weight_decay: λ >= 0.
          maximize: climb.
          eps_root: ε_root >= 0, gradient². The slope of the update at a tiny gradient is about
              α/ε, 1e3 with the defaults, and α/√ε_root where it is set.
    Returns: Optimizer with hparams NovoGradHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Ginsburg et al. 2019, arXiv:1905.11286, Algorithm 1; defaults as optax.novograd.

    >>> opt = novograd(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def rule(p: Tensor, g: Tensor, s: NovoGradState, h: NovoGradHParams) -> tuple[Tensor, NovoGradState]:
        g = -g if maximize else g
        square = (g * g).sum()
        v = torch.where(s.step == 1, square, h.beta2 * s.norm_sq + (1 - h.beta2) * square)
        below = root(v, h.eps_root) + h.eps
        m = h.beta1 * s.exp_avg + plus(g / below, h.weight_decay, p)
        return p - h.lr * m, s._replace(exp_avg=m, norm_sq=v)

    hparams = NovoGradHParams(lr, *betas, eps, weight_decay, eps_root)
    bounds = dict.fromkeys(NovoGradHParams._fields, RATE) | {"beta1": DECAY, "beta2": DECAY}
    return leafwise("novograd", rule, NovoGradState(COUNTER, ZEROS, SCALAR), hparams, bounds)
