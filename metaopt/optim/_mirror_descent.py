"""Mirror descent."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt.errors import ArgumentError
from metaopt.optim._leafwise import COUNTER, RATE, leafwise
from metaopt.types import Optimizer

__all__ = ["MirrorDescentHParams", "MirrorDescentState", "mirror_descent"]


class MirrorDescentHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params."""

    lr: Any = 1e-3


class MirrorDescentState(NamedTuple):
    """Steps taken."""

    step: Any


def mirror_descent(
    lr: Any = 1e-3,
    geometry: str = "entropy",
    *,
    maximize: bool = False,
) -> Optimizer:
    """A gradient step in the dual of a convex ψ: multiplicative updates of positive parameters.

    ::

        p ← ∇ψ*(∇ψ(p) − α(±g))
        "entropy":  ψ = Σ p log p − p,          p ← p exp(−αg),  p > 0
        "simplex":  the same on Σ p = 1,        p ← p exp(−αg) / Σ, over the last axis

    Args: lr: step size α, 1/gradient, >= 0.
          geometry: "entropy" for positive parameters, "simplex" for distributions over the last axis.
          maximize: climb.
    Returns: Optimizer with hparams MirrorDescentHParams.
    Raises: ArgumentError if a number is out of range.
    Source: Beck & Teboulle 2003, Oper. Res. Lett. 31; Kivinen & Warmuth 1997 (exponentiated gradient).

    >>> import torch
    >>> opt = mirror_descent(lr=0.1)
    >>> opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)[0]
    tensor(0.9048)
    """
    if geometry not in ("entropy", "simplex"):
        raise ArgumentError("mirror_descent(geometry)", "'entropy' or 'simplex'", repr(geometry))

    def rule(
        p: Tensor, g: Tensor, s: MirrorDescentState, h: MirrorDescentHParams
    ) -> tuple[Tensor, MirrorDescentState]:
        dual = -h.lr * (-g if maximize else g)
        if geometry == "entropy" or p.numel() == 0:
            return p * dual.exp(), s
        weight = p * (dual - dual.amax(-1, keepdim=True)).exp()
        return weight / weight.sum(-1, keepdim=True), s

    return leafwise(
        "mirror_descent", rule, MirrorDescentState(COUNTER), MirrorDescentHParams(lr), {"lr": RATE}, real=True
    )
