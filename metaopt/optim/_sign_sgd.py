"""Sign descent."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.optim._leafwise import COUNTER, RATE, leafwise
from metaopt.types import Optimizer

__all__ = ["SignSGDHParams", "SignSGDState", "sign_sgd"]


class SignSGDHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3


class SignSGDState(NamedTuple):
    """Steps taken."""

    step: Any


def sign_sgd(
    lr: Any = 1e-3,
    *,
    maximize: bool = False,
) -> Optimizer:
    """The sign of the gradient.

    ::

        p ← p − α sign(±g)

    Args: lr: step size α, parameter, >= 0.
          maximize: climb. The derivative flows through α and p alone.
    Returns: Optimizer with hparams SignSGDHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Bernstein et al. 2018, arXiv:1802.04434.

    >>> import torch
    >>> opt = sign_sgd(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9000)
    """

    def rule(p: Tensor, g: Tensor, s: SignSGDState, h: SignSGDHParams) -> tuple[Tensor, SignSGDState]:
        return p - h.lr * (-g if maximize else g).sign(), s

    return leafwise(
        "sign_sgd", rule, SignSGDState(COUNTER), SignSGDHParams(lr), {"lr": RATE}, elementwise=True
    )
