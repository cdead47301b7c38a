"""Small leaves as one: a rule that works entry by entry costs a call of each kernel for all of them.

A leaf of 256 numbers spends its time on the way into a kernel, not in it. Where nobody takes a derivative,
the small leaves of one dtype are laid end to end, updated as one vector, and cut apart again. Where
somebody does, they stay apart, because a parameter that the loss does not use must stay outside its graph.

>>> leaves = [torch.ones(2), torch.ones(()), torch.ones(1, 2), torch.zeros(1)]
>>> parts = parts_of(leaves)
>>> (flat,) = joined(parts, leaves)
>>> flat.shape, [x.shape for x in apart(parts, leaves, [flat + 1])]
(torch.Size([6]), [torch.Size([2]), torch.Size([]), torch.Size([1, 2]), torch.Size([1])])
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack

__all__ = ["apart", "is_plain", "joined", "parts_of"]

SMALL = 4096  # entries: above it the copy costs as much as the calls it saves
FEW = 4  # leaves: below it there is nothing to save
Parts = list[list[int]]  # positions of leaves that are updated together


def is_plain(*columns: Any) -> bool:
    """Tell whether no derivative can be asked for, and no transform is at work."""
    if torch.compiler.is_compiling() or get_interpreter_stack() is not None:
        return False
    if not torch.is_grad_enabled():
        return True
    return not any(isinstance(x, Tensor) and x.requires_grad for column in columns for x in column)


def parts_of(leaves: list[Tensor], *moments: list[Tensor]) -> Parts:
    """Which leaves are laid end to end; a part of one is a leaf as it is."""
    groups: dict[Any, list[int]] = {}
    for i, p in enumerate(leaves):
        key: Any = i
        if p.numel() <= SMALL and p.is_contiguous():
            key = (p.device, p.dtype, *[column[i].dtype for column in moments])
        groups.setdefault(key, []).append(i)
    few = [[i] for group in groups.values() if len(group) < FEW for i in group]
    return [group for group in groups.values() if len(group) >= FEW] + few


def joined(parts: Parts, column: list[Any]) -> list[Any]:
    """One entry for each part: its leaves as one vector."""
    flatten = torch._C._nn.flatten_dense_tensors
    return [column[p[0]] if len(p) == 1 else flatten([column[i] for i in p]) for p in parts]


def apart(parts: Parts, leaves: list[Tensor], column: list[Any]) -> list[Any]:
    """Undo `joined`: one entry for each leaf, in its shape."""
    found: list[Any] = [None] * len(leaves)
    for part, x in zip(parts, column, strict=True):
        if len(part) == 1:
            found[part[0]] = x
            continue
        pieces = torch._C._nn.unflatten_dense_tensors(x, [leaves[i] for i in part])
        for i, piece in zip(part, pieces, strict=True):
            found[i] = piece
    return found
