"""Schedule-free SGD and AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.optim._leafwise import (
    ABSENT,
    COUNTER,
    DECAY,
    RATE,
    SCALAR,
    ZEROS,
    Start,
    leafwise,
    plus,
)
from metaopt.optim._smooth import like, root
from metaopt.types import Optimizer

__all__ = ["ScheduleFreeHParams", "ScheduleFreeState", "schedule_free_adamw", "schedule_free_sgd"]


class ScheduleFreeHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params; SGD reads no beta2, eps, eps_root."""

    lr: Any
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    weight_lr_power: Any = 2.0
    eps_root: Any = 0.0


class ScheduleFreeState(NamedTuple):
    """Steps taken, the largest α so far and Σw (0-d, a leaf), the iterate z, its average x, and v.

    ``x`` is what to evaluate with; params are y, where gradients are taken.
    """

    step: Any
    lr_max: Any
    weight_sum: Any
    z: Any
    x: Any
    exp_avg_sq: Any = ()


COPY = Start(torch.clone, like=True)


def schedule_free_sgd(
    lr: Any = 1.0,
    beta: Any = 0.9,
    weight_decay: Any = 0.0,
    weight_lr_power: Any = 2.0,
    *,
    maximize: bool = False,
) -> Optimizer:
    """SGD whose averaged iterate needs no schedule.

    ::

        z ← z − α(±g + λy)                            g at y, the params
        w = (max α)^r,  c = w / Σw,  x ← (1−c)x + cz
        y ← (1−β)z + βx

    Args: lr: step size α, parameter²/loss, >= 0.
          beta: β in [0, 1).
          weight_decay: λ >= 0, at y.
          weight_lr_power: r >= 0.
          maximize: climb.
    Returns: Optimizer with hparams ScheduleFreeHParams; evaluate with ``state.x``.
    Raises: ArgumentError if a number is out of range.
    Source: Defazio et al. 2024, arXiv:2405.15682; defaults as optax.contrib.schedule_free_sgd.

    >>> opt = schedule_free_sgd(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """
    hparams = ScheduleFreeHParams(lr, beta, 0.0, 0.0, weight_decay, weight_lr_power)
    return _build("schedule_free_sgd", hparams, maximize, lambda g, s, h: (g, s), adaptive=False)


def schedule_free_adamw(
    lr: Any = 0.0025,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    weight_lr_power: Any = 2.0,
    *,
    maximize: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """AdamW whose averaged iterate needs no schedule.

    ::

        v ← β₂v + (1−β₂)g²
        z ← z − α(±g / (√(v/(1−β₂ᵗ) + ε_root) + ε) + λy)
        w = (max α)^r,  c = w / Σw,  x ← (1−c)x + cz
        y ← (1−β₁)z + β₁x

    Args: lr: step size α, parameter, >= 0.
          betas: (β₁, β₂) in [0, 1): averaging, and second moment.
          eps: ε >= 0, in units of the gradient.
          weight_decay: λ >= 0, at y.
          weight_lr_power: r >= 0.
          maximize: climb.
          eps_root: ε_root >= 0, gradient². The slope of the update at a tiny gradient is about
              α/ε, 2.5e5 with the defaults, and α/√ε_root where it is set.
    Returns: Optimizer with hparams ScheduleFreeHParams; evaluate with ``state.x``.
    Raises: ArgumentError if a number is out of range.
    Source: Defazio et al. 2024, arXiv:2405.15682; defaults as optax.contrib.schedule_free_adamw.

    >>> opt = schedule_free_adamw(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def normalised(g: Tensor, s: ScheduleFreeState, h: ScheduleFreeHParams) -> tuple[Tensor, Any]:
        v = h.beta2 * s.exp_avg_sq + (1 - h.beta2) * g * g
        return g / (root(v / (1 - h.beta2**s.step), h.eps_root) + h.eps), s._replace(exp_avg_sq=v)

    hparams = ScheduleFreeHParams(lr, *betas, eps, weight_decay, weight_lr_power, eps_root)
    return _build("schedule_free_adamw", hparams, maximize, normalised, adaptive=True)


def _build(
    name: str,
    hparams: ScheduleFreeHParams,
    maximize: bool,
    direction: Callable[..., tuple[Tensor, Any]],
    adaptive: bool,
) -> Optimizer:
    def rule(
        y: Tensor, g: Tensor, s: ScheduleFreeState, h: ScheduleFreeHParams
    ) -> tuple[Tensor, ScheduleFreeState]:
        u, s = direction(-g if maximize else g, s, h)
        z = s.z - h.lr * plus(u, h.weight_decay, y)
        lr_max = torch.maximum(s.lr_max, like(h.lr, s.lr_max))
        weight = lr_max**h.weight_lr_power
        total = s.weight_sum + weight
        idle = total == 0
        c = torch.where(idle, 0.0, weight / torch.where(idle, 1.0, total))
        x = (1 - c) * s.x + c * z
        return (1 - h.beta1) * z + h.beta1 * x, s._replace(lr_max=lr_max, weight_sum=total, z=z, x=x)

    bounds = dict.fromkeys(ScheduleFreeHParams._fields, RATE) | {"beta1": DECAY, "beta2": DECAY}
    template = ScheduleFreeState(COUNTER, SCALAR, SCALAR, COPY, COPY, ZEROS if adaptive else ABSENT)
    return leafwise(name, rule, template, hparams, bounds)
