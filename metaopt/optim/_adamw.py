"""AdamW."""

from __future__ import annotations

from typing import Any

from metaopt.optim._adam import AdamHParams, build
from metaopt.types import Optimizer

__all__ = ["adamw"]


def adamw(
    lr: Any = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    eps_root: Any = 0.0,
) -> Optimizer:
    """Adam with decoupled weight decay.

    ::

        p ← (1−αλ)p,  then Adam's update with the gradient alone

    Args: as `adam`; weight_decay: λ >= 0, per unit of α.
    Returns: Optimizer with hparams AdamHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2.

    >>> import torch
    >>> opt = adamw(lr=0.1, weight_decay=0.5)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(0.0), opt.hparams)[0]
    tensor(0.9500)
    """
    return build("adamw", AdamHParams(lr, *betas, eps, weight_decay, eps_root), amsgrad, maximize, True)
