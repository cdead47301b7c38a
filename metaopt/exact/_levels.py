"""Where the caller stands: under which transforms, and in which module."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
)

__all__ = ["batched", "calling_module", "differentiated", "mapped", "transformed"]


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
        levels = int(x.requires_grad)
        while is_functorch_wrapped_tensor(x):
            x = get_unwrapped(x)
            levels += x.requires_grad
        if levels >= times:
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
