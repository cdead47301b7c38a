"""Read a value through the wrappers of torch.func, where a message or a check must know it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["peek", "readable"]


def readable() -> bool:
    """Whether tensors have numbers to look at: not where a compiler traces, by dynamo or by ``compile=``."""
    traced = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    return not traced and not torch.compiler.is_compiling()


def peek(x: Tensor) -> tuple[Tensor, int]:
    """The numbers behind ``x`` and how many mapped axes were put at their end, innermost map first.

    For checks and messages only: what is read here must not reach a result.

    >>> seen = []
    >>> _ = torch.vmap(lambda x: seen.append(peek(x)) or x)(torch.zeros(3, 2))
    >>> seen[0][0].shape, seen[0][1]
    (torch.Size([2, 3]), 1)
    """
    count = 0
    x = x.detach()
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        batched = torch._C._functorch.is_batchedtensor(x)
        axis = torch._C._functorch.maybe_get_bdim(x) if batched else -1
        x = torch._C._functorch.get_unwrapped(x)
        if batched:
            x = x.movedim(axis, -1)
            count += 1
    return x, count
