"""The gradient of one step's loss: by plain autograd on a loop, and inside a map by torch.func's transform.

``torch.func.grad_and_value`` flattens its arguments, results and auxiliary values some twenty times a
call, 0.2 ms for six parameters; on a flat list of tensors nothing has to be flattened. Its wrappers cost
a loop over tasks of small nets another eighth, where all that is differentiated is recorded anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch

from metaopt import tree
from metaopt.exact import plain_level

__all__ = ["value_and_gradient"]

_HOOKS = "An inner step does not support saved tensor hooks: torch.func's derivatives do not."


def value_and_gradient(
    f: Callable[[Sequence[Tensor]], tuple[Tensor, Any]], xs: Sequence[Tensor], twice: bool = True
) -> tuple[Tensor, list[Tensor], Any]:
    """Return ``(f, ∂f/∂x for each x, aux)`` for ``f(xs) -> (value [], aux)``, 0 where f does not depend on x.

    Args: twice: the gradient will be differentiated; else it is a constant, and its graph is not built.

    >>> value_and_gradient(lambda xs: ((xs[0] ** 2).sum(), ()), [torch.tensor([1.0, 2.0])])[:2]
    (tensor(5.), [tensor([2., 4.])])
    """
    if torch.compiler.is_compiling():
        grads, (value, aux) = torch.func.grad_and_value(f, has_aux=True)(tuple(xs))
        return value, list(grads), aux
    if functorch.get_interpreter_stack() is None:
        if not torch.is_grad_enabled():
            xs = [x.detach() for x in xs]
        elif xs and all(x.requires_grad for x in xs):
            return _plain(f, xs, twice)
    with torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS):
        level = functorch._grad_increment_nesting()
        try:
            with torch.enable_grad():
                inputs = [functorch._wrap_for_grad(x, level) for x in xs]
                _require_grad(inputs)
                value, aux = f(inputs)
                found = _gradient(value, inputs, twice)
            grads = [functorch._unwrap_for_grad(g, level) for g in found]
            value = functorch._unwrap_for_grad(value, level)
            leaves, structure = tree.flatten(aux)
            if leaves:
                aux = tree.unflatten(structure, [functorch._unwrap_for_grad(x, level) for x in leaves])
        finally:
            functorch._grad_decrement_nesting()
    return value, grads, aux


def _plain(
    f: Callable[[Sequence[Tensor]], tuple[Tensor, Any]], xs: Sequence[Tensor], twice: bool
) -> tuple[Tensor, list[Tensor], Any]:
    inputs = [x.view_as(x) for x in xs]  # f may depend on x by other ways too, which are no part of ∂f/∂x
    with plain_level():
        value, aux = f(inputs)
        return value, _gradient(value, inputs, twice), aux


def _require_grad(xs: Sequence[Tensor]) -> None:
    before = functorch.get_inplace_requires_grad_allowed()
    functorch.set_inplace_requires_grad_allowed(True)
    try:
        for x in xs:
            x.requires_grad_()
    finally:
        functorch.set_inplace_requires_grad_allowed(before)


def _gradient(value: Tensor, xs: Sequence[Tensor], twice: bool) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in xs]
    # create_graph, or the backward pass would run under no_grad at the outer levels too
    found = torch.autograd.grad(value, xs, create_graph=twice, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, xs, strict=True)]
