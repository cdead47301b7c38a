"""weight_norm and bilinear in primitives."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bilinear", "weight_norm"]


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``torch._weight_norm``: g v / ‖v‖, the norm over all axes but ``dim``; over all for −1.

    The double backward of torch's kernel is wrong, on a loop too (torch 2.13; found by the finite
    differences of the exactness table, and not on torch's list of issues when it was found).
    """
    axes = tuple(range(v.ndim)) if dim == -1 else tuple(i for i in range(v.ndim) if i != dim)
    return v * (g / v.square().sum(axes, keepdim=dim != -1).sqrt())


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.bilinear``: y_k = Σ_ij x_i W_kij z_j + b_k; torch's has no batching rule."""
    out = torch.einsum("...i,kij,...j->...k", input1, weight, input2)
    return out if bias is None else out + bias
