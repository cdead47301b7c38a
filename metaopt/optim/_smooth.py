"""Roots and norms with slope 0 where the true slope is infinite or undefined.

One dead unit would otherwise turn every meta-gradient into NaN: ∞ · 0 in the chain rule.

>>> x = torch.zeros(2, requires_grad=True)
>>> (norm(x) + root(x).sum()).backward()
>>> x.grad
tensor([0., 0.])
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["at_least", "clamp", "like", "norm", "root", "trust_ratio"]


def like(value: Any, x: Tensor) -> Tensor:
    """A number or tensor in the dtype, and on the device, of x."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def at_least(x: Tensor, low: Any) -> Tensor:
    """max(x, low), where low is a number or a tensor."""
    return torch.maximum(x, like(low, x))


def root(v: Tensor, eps: Any = 0.0) -> Tensor:
    """√(v + ε), with value and slope 0 where that is <= 0; an ε that is the number 0 costs nothing."""
    if isinstance(eps, Tensor) or eps:
        v = v + eps
    dead = v <= 0
    return torch.where(dead, 0.0, torch.where(dead, 1.0, v).sqrt())


def norm(x: Tensor, dim: int | None = None) -> Tensor:
    """√Σx², over all entries or over ``dim``, which is kept; every derivative is 0 at x = 0."""
    return root((x * x).sum() if dim is None else (x * x).sum(dim, keepdim=True))


def clamp(x: Tensor, low: Any, high: Any) -> Tensor:
    """min(max(x, low), high), where each bound is a number or a tensor."""
    return torch.minimum(at_least(x, low), like(high, x))


def trust_ratio(p: Tensor, u: Tensor, coefficient: Any, eps: Any) -> Tensor:
    """κ|p| / (|u| + ε), and 1 with slope 0 where one of the norms is 0."""
    of_p, of_u = norm(p), norm(u)
    dead = (of_p == 0) | (of_u == 0)
    return torch.where(dead, 1.0, coefficient * of_p / torch.where(dead, 1.0, of_u + eps))
