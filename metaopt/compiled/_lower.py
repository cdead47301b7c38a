"""Below ``vmap``: the tensors that a mapped function really works on.

A compiler wants plain tensors and their axes, not the wrappers of torch.func. `lowered` steps out of
every map that the caller stands in, and hands over the tensors with the mapped axes in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from metaopt.errors import CompileError

__all__ = ["Marks", "lowered", "raised"]

# one entry a map, outermost first: whether the tensor has an axis of it, in front and in this order
Marks = tuple[bool, ...]
Run = Callable[[list[Tensor], list[Marks]], Sequence[Tensor]]


def lowered(run: Run, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what ``run(plain tensors, marks)`` returns, wrapped again for the maps of the caller.

    A map that none of the tensors depends on has no mark. Every result has an axis of every other map
    in front, in the order of the marks.

    Raises: CompileError inside a derivative of torch.func, which has no plain tensors to offer.

    >>> torch.vmap(lambda x: lowered(lambda xs, marks: [xs[0] * 2], [x])[0])(torch.ones(3))
    tensor([2., 2., 2.])
    """
    return _lowered(run, list(tensors), [()] * len(tensors))


def _lowered(run: Run, tensors: list[Tensor], marks: list[Marks]) -> list[Tensor]:
    stack = functorch.get_interpreter_stack()
    if not stack:
        if any(functorch.is_functorch_wrapped_tensor(x) for x in tensors):
            raise CompileError("compile", "tensors of a transform that is running", "one of another")
        return list(run(tensors, marks))
    if stack[-1].key() != functorch.TransformType.Vmap:
        raise CompileError("compile", "plain autograd or vmap around it", "torch.func's grad, vjp or jvp")
    interpreter = retrieve_current_functorch_interpreter()
    level = interpreter.level()
    own = [functorch.is_batchedtensor(x) and functorch.maybe_get_level(x) == level for x in tensors]
    plain = [
        functorch.get_unwrapped(x).movedim(functorch.maybe_get_bdim(x), 0) if on else x
        for x, on in zip(tensors, own, strict=True)
    ]
    with interpreter.lower():
        # an outer map's axis goes in front of this one's
        if not any(own):
            return _lowered(run, plain, marks)
        found = _lowered(run, plain, [(on, *mark) for on, mark in zip(own, marks, strict=True)])
    return [functorch._add_batch_dim(x, 0, level) for x in found]


def raised(fn: Callable[..., Any], marks: Sequence[Marks]) -> Callable[..., Any]:
    """``fn`` of one task as a function of the plain tensors with these marks."""
    for level in reversed(range(len(marks[0]) if marks else 0)):  # the innermost map first
        in_dims = tuple(0 if mark[level] else None for mark in marks)
        fn = torch.vmap(fn, in_dims=in_dims, randomness="different")
    return fn
