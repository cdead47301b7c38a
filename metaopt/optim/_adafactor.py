"""Adafactor."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.errors import ArgumentError
from metaopt.optim._leafwise import ANY, COUNTER, RATE, Start, is_zero, leafwise
from metaopt.optim._smooth import at_least, like, norm
from metaopt.types import Optimizer

__all__ = ["AdafactorHParams", "AdafactorState", "adafactor"]


class AdafactorHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params; eps1 = 0 is the machine epsilon."""

    lr: Any = 1e-2
    beta2_decay: Any = -0.8
    eps1: Any = 0.0
    eps2: Any = 1e-3
    d: Any = 1.0
    weight_decay: Any = 0.0


class AdafactorState(NamedTuple):
    """Steps taken t; row and column means R, C of a matrix's second moment; a vector's moment v.

    Where a leaf has none of these its entry is ``()``.
    """

    step: Any
    row_var: Any
    col_var: Any
    variance: Any


ROW = Start(lambda p: p.new_zeros((*p.shape[:-1], 1)) if p.ndim > 1 else ())
COL = Start(lambda p: p.new_zeros((*p.shape[:-2], 1, p.shape[-1])) if p.ndim > 1 else ())
VECTOR = Start(lambda p: torch.zeros_like(p) if p.ndim <= 1 else ())


def adafactor(
    lr: Any = 1e-2,
    beta2_decay: Any = -0.8,
    eps: tuple[Any, Any] = (None, 1e-3),
    d: Any = 1.0,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer:
    """Adafactor: second moments of matrices as a product of two vectors.

    ::

        g ← ±g,  p ← (1−αλ)p,  w = t^τ
        R ← R + w(mean_cols g² − R),  C ← C + w(mean_rows g² − C),  V = R C / max(mean R, ε₁)
        vectors: V ← V + w(g² − V)
        u = g / √max(V, ε₁²)
        p ← p − max(ε₂, rms(p)) · min(α, 1/√t) · u / max(1, rms(u)/d),   rms(p) before its decay

    Args: lr: relative step size α >= 0.
          beta2_decay: τ <= 0.
          eps: (ε₁, ε₂) >= 0; ε₁ None is the machine epsilon of the arithmetic.
          d: clipping threshold d >= 1.
          weight_decay: λ >= 0, decoupled.
          maximize: climb.
    Returns: Optimizer with hparams AdafactorHParams; matrices are the last two axes of a leaf.
    Raises: ArgumentError if a number is out of range.
    Source: Shazeer & Stern 2018, arXiv:1804.04235; as torch.optim.Adafactor.

    >>> opt = adafactor(lr=0.1)
    >>> opt.update(torch.ones(2, 2), opt.init(torch.ones(2, 2)), torch.ones(2, 2), opt.hparams)[0][0]
    tensor([0.9000, 0.9000])
    """
    if isinstance(beta2_decay, (int, float)) and beta2_decay > 0:
        raise ArgumentError("adafactor(beta2_decay)", "a number <= 0, a tensor or a tree", repr(beta2_decay))

    def rule(p: Tensor, g: Tensor, s: AdafactorState, h: AdafactorHParams) -> tuple[Tensor, AdafactorState]:
        g = -g if maximize else g
        eps1 = torch.finfo(p.dtype).eps if is_zero(h.eps1) else h.eps1
        weight = s.step**h.beta2_decay
        slowest = torch.minimum(like(h.lr, s.step), 1 / s.step.sqrt())
        size = at_least(norm(p) / math.sqrt(p.numel() or 1), h.eps2)
        if not is_zero(h.weight_decay):
            p = p * (1 - h.lr * h.weight_decay)
        if p.ndim > 1:
            row = s.row_var + weight * ((g * g).mean(-1, keepdim=True) - s.row_var)
            col = s.col_var + weight * ((g * g).mean(-2, keepdim=True) - s.col_var)
            v = row @ col / at_least(row.mean(-2, keepdim=True), eps1)
            s = s._replace(row_var=row, col_var=col)
        else:
            v = s.variance + weight * (g * g - s.variance)
            s = s._replace(variance=v)
        u = g * at_least(v, eps1 * eps1).rsqrt()
        clip = (norm(u) / math.sqrt(p.numel() or 1) / h.d).clamp(min=1)
        return p - slowest * size / clip * u, s

    eps1, eps2 = eps
    hparams = AdafactorHParams(lr, beta2_decay, 0.0 if eps1 is None else eps1, eps2, d, weight_decay)
    bounds = dict.fromkeys(AdafactorHParams._fields, RATE) | {"beta2_decay": ANY, "d": (1.0, math.inf)}
    return leafwise("adafactor", rule, AdafactorState(COUNTER, ROW, COL, VECTOR), hparams, bounds, real=True)
