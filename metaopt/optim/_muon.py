"""Muon."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError, is_count
from metaopt.optim._leafwise import ANY, RATE, ZEROS, is_zero, leafwise
from metaopt.optim._smooth import at_least, root
from metaopt.types import Optimizer

__all__ = ["MuonHParams", "MuonState", "muon", "orthogonalise"]


class MuonHParams(NamedTuple):
    """Each a number, a 0-d tensor or a tree shaped like params; (ns_a, ns_b, ns_c) is the quintic."""

    lr: Any = 1e-3
    weight_decay: Any = 0.1
    momentum: Any = 0.95
    ns_a: Any = 3.4445
    ns_b: Any = -4.7750
    ns_c: Any = 2.0315
    eps: Any = 1e-7


class MuonState(NamedTuple):
    """The running mean b of the gradient."""

    momentum_buffer: Any


def orthogonalise(g: Tensor, a: Any, b: Any, c: Any, eps: Any, steps: int) -> Tensor:
    """UVᵀ of g = USVᵀ, about: X ← aX + (b XXᵀ + c (XXᵀ)²)X from X = g/max(|g|, ε).

    >>> orthogonalise(torch.eye(2), 1.5, -0.5, 0.0, 1e-7, 20)
    tensor([[1., 0.],
            [0., 1.]])
    """
    wide = g.float() if g.dtype == torch.bfloat16 else g
    size = root((wide * wide).sum()).to(g.dtype)
    x = g / at_least(size, eps)
    x = x.mT if g.shape[0] > g.shape[1] else x
    fixed = all(isinstance(k, (int, float)) for k in (a, b, c))
    for _ in range(steps):
        gram = x @ x.mT
        if fixed:  # one rounding in half precision, as torch's
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        else:
            x = a * x + (b * gram + c * gram @ gram).to(x.dtype) @ x
    return x.mT if g.shape[0] > g.shape[1] else x


def muon(
    lr: Any = 1e-3,
    weight_decay: Any = 0.1,
    momentum: Any = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[Any, Any, Any] = (3.4445, -4.7750, 2.0315),
    eps: Any = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    ns_dtype: torch.dtype | None = torch.bfloat16,
) -> Optimizer:
    """Momentum, orthogonalised by a Newton-Schulz iteration.

    ::

        b ← μb + (1−μ)g
        d = (1−μ)g + μb if nesterov else b
        p ← (1−αλ)p − α·r·orthogonalise(d),   r = √max(1, rows/cols)

    Args: lr: step size α, parameter, >= 0.
          weight_decay: λ >= 0, decoupled.
          momentum: μ >= 0.
          nesterov: look ahead by one momentum step.
          ns_coefficients: (a, b, c) of the quintic.
          eps: ε >= 0, the least norm to divide by.
          ns_steps: iterations, fewer than 100.
          adjust_lr_fn: "original" or None, r as above; "match_rms_adamw", r = 0.2 √max(rows, cols).
          ns_dtype: dtype of the iteration; None, the parameter's: the one to differentiate through.
    Returns: Optimizer with hparams MuonHParams, for trees of matrices (`partition` gives the rest to
             another rule).
    Raises: ArgumentError if an argument is out of range; StructureError for a leaf that is no matrix.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982,
            for "match_rms_adamw"; as torch.optim.Muon.

    >>> opt = muon(lr=0.1, weight_decay=0.0, ns_coefficients=(1.5, -0.5, 0.0), ns_steps=20, ns_dtype=None)
    >>> opt.update(torch.zeros(2, 2), opt.init(torch.eye(2)), torch.eye(2), opt.hparams)[0]
    tensor([[-0.1000,  0.0000],
            [ 0.0000, -0.1000]])
    """
    if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
        raise ArgumentError("muon(adjust_lr_fn)", "'original', 'match_rms_adamw' or None", repr(adjust_lr_fn))
    if not is_count(ns_steps, 0) or ns_steps >= 100:
        raise ArgumentError("muon(ns_steps)", "an integer >= 0 and < 100", repr(ns_steps))
    if len(ns_coefficients) != 3:
        raise ArgumentError("muon(ns_coefficients)", "three numbers", repr(ns_coefficients))

    def rule(p: Tensor, g: Tensor, s: MuonState, h: MuonHParams) -> tuple[Tensor, MuonState]:
        b = h.momentum * s.momentum_buffer + (1 - h.momentum) * g
        d = (1 - h.momentum) * g + h.momentum * b if nesterov else b
        d = d if ns_dtype is None else d.to(ns_dtype)
        d = orthogonalise(d, h.ns_a, h.ns_b, h.ns_c, h.eps, ns_steps).to(p.dtype)
        rows, cols = p.shape
        ratio = math.sqrt(max(1, rows / max(cols, 1)))
        if adjust_lr_fn == "match_rms_adamw":
            ratio = 0.2 * math.sqrt(max(rows, cols))
        if not is_zero(h.weight_decay):
            p = p * (1 - h.lr * h.weight_decay)
        return p - h.lr * ratio * d, s._replace(momentum_buffer=b)

    hparams = MuonHParams(lr, weight_decay, momentum, *ns_coefficients, eps)
    bounds = dict.fromkeys(MuonHParams._fields, RATE) | dict.fromkeys(("ns_a", "ns_b", "ns_c"), ANY)
    opt = leafwise("muon", rule, MuonState(ZEROS), hparams, bounds)

    def init(params: Any) -> Any:
        state = opt.init(params)
        for path, leaf in zip(tree.paths(params), tree.leaves(params), strict=True):
            if leaf.ndim != 2 or leaf.is_complex():
                got = f"shape {list(leaf.shape)} of {leaf.dtype}"
                remedy = "Give vectors and convolutions to another rule with partition(...)."
                raise StructureError("muon.init(params)", "a real matrix", got, path or "the leaf", remedy)
        return state

    return opt._replace(init=init)
