"""Where the caller stands: under which transforms, and in which module."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
)
from torch.autograd import forward_ad

__all__ = [
    "batched",
    "calling_module",
    "differentiated",
    "mapped",
    "once_more",
    "plain_level",
    "plain_levels",
]
__all__ += ["transformed"]


class _Local(threading.local):
    """How many inner gradients of this thread are being taken by plain autograd."""

    plain = 0


_local = _Local()


class plain_level:
    """A context in which plain autograd takes an inner gradient: a level that no tensor shows."""

    __slots__ = ()

    def __enter__(self) -> None:
        _local.plain += 1

    def __exit__(self, *exc: Any) -> None:
        _local.plain -= 1


def plain_levels() -> int:
    """How many of these contexts the caller stands in."""
    return _local.plain


def mapped() -> bool:
    """Tell whether the caller stands inside a ``torch.vmap``; while compiling, which cannot tell, True."""
    if torch.compiler.is_compiling():
        return True
    stack = get_interpreter_stack()
    return stack is not None and any(level.key() == TransformType.Vmap for level in stack)


def batched(x: Tensor) -> bool:
    """Tell whether a tensor has an axis that a ``torch.vmap`` hides."""
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return True
        x = get_unwrapped(x)
    return False


def transformed() -> bool:
    """Tell whether the caller stands inside any torch.func transform; while compiling, True."""
    return torch.compiler.is_compiling() or get_interpreter_stack() is not None


def differentiated(times: int, *tensors: object) -> bool:
    """Tell whether one of the tensors is being differentiated at so many levels, or more."""
    if torch.compiler.is_compiling():
        return True
    for x in tensors:
        if not isinstance(x, Tensor):
            continue
        levels = x.requires_grad * (1 + _local.plain)
        while is_functorch_wrapped_tensor(x):
            x = get_unwrapped(x)
            levels += x.requires_grad
        if levels >= times:
            return True
    return False


def once_more(*tensors: object) -> bool:
    """Tell whether a third derivative by one of the tensors may be taken: where that cannot be told, True.

    Who differentiates by plain autograd may do so again, by ``create_graph``; torch.func's transforms are
    all entered before the call.
    """
    found = [x for x in tensors if isinstance(x, Tensor)]
    stack = get_interpreter_stack()
    if stack is None:
        recorded = torch.is_grad_enabled() and any(x.requires_grad for x in found)
        return recorded or forward_ad._current_level >= 0
    forward = sum(level.key() == TransformType.Jvp for level in stack)
    for x in found:
        levels = forward
        while is_functorch_wrapped_tensor(x):
            levels += x.requires_grad
            x = get_unwrapped(x)
        if x.requires_grad or levels >= 3:
            return True
    return False


def calling_module() -> str:
    """The path, from the outermost module that is being called, of the innermost; for messages only.

    >>> calling_module()
    ''
    """
    frame = sys._getframe(1)
    found: list[nn.Module] = []
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            found.append(owner)
        frame = frame.f_back  # type: ignore[assignment]
    if not found:
        return ""
    paths = {id(module): path for path, module in found[-1].named_modules()}
    path = next((paths[id(module)] for module in found if id(module) in paths), "")
    return path or type(found[-1]).__name__
