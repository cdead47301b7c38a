"""Embedding with a padding row: out = W[i], whose gradient never reaches W[padding_idx].

Under ``vmap`` torch's kernel compares ``padding_idx`` with indices that the batching rule has moved on
by a task's worth of rows, and zeroes the gradient of the wrong ones, without a word.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from metaopt.errors import ArgumentError
from metaopt.exact._levels import calling_module, mapped

__all__ = ["embedding"]


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``F.embedding`` as W[i], detached where i is the padding row."""
    asked = {
        "max_norm, which writes to the weight in place": max_norm is not None,
        "scale_grad_by_freq": scale_grad_by_freq and mapped(),
        "sparse gradients": sparse,
    }
    for what, on in asked.items():
        if on:
            raise ArgumentError(
                "functional(embedding)",
                "a plain embedding",
                what,
                at=calling_module() or "a functional call",
                remedy=f"Leave {what.split(',')[0].split(' ')[0]} out.",
            )
    if scale_grad_by_freq:
        return F.embedding(input, weight, padding_idx, scale_grad_by_freq=True)
    out = F.embedding(input, weight)
    if padding_idx is None:
        return out
    row = padding_idx if padding_idx >= 0 else weight.shape[0] + padding_idx
    moving = (input != row).unsqueeze(-1)
    return out.where(moving, out.detach())
