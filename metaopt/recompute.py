"""Run a pure function now, keep only its inputs, and run it again when its derivative is wanted.

torch's own checkpoint refuses code that contains torch.func.grad ("don't yet support saved tensor
hooks"); an autograd.Function whose backward is the function's VJP does not, and it maps: its rule under
``vmap`` is the map of its parts, so that the VJP is taken per task, inside the map, and is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_interpreter_stack

from metaopt import tree
from metaopt.errors import CaptureError
from metaopt.exact import current_draws, exact, seeded
from metaopt.replay import Dice, autocast_as_now, bare, jvp, moves, plain_vjp, restricted

__all__ = ["capture_error", "captured", "check_captured", "recompute"]

_SLOT = object()  # where a tensor goes among the static arguments


class _Recomputed(torch.autograd.Function):
    """y = f(x); ȳ ↦ vjp(f, x)(ȳ); ẋ ↦ jvp(f, x)(ẋ)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(f: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():  # all inputs are detached: whatever has history came by closure
            outputs = f(*(x.detach() for x in inputs))
        if any(bare(y).requires_grad for y in outputs):
            raise capture_error("recompute(f)", "by way of a module or an object")
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.f, *tensors = inputs
        # counters come out too, and have no derivative
        ctx.moving = [moves(y) for y in output]
        ctx.mark_non_differentiable(*(y for y, on in zip(output, ctx.moving, strict=True) if not on))
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        index = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        f, moving = restricted(ctx.f, inputs, index, ctx.moving)
        cotangents = tuple(g for g, on in zip(cotangents, ctx.moving, strict=True) if on)
        if get_interpreter_stack() is None and not torch.is_grad_enabled():
            found = plain_vjp(f, moving, cotangents)  # a third of torch.func's time and memory
        else:
            found = torch.func.vjp(f, *moving)[1](cotangents)
        gradients: list[Tensor | None] = [None] * len(inputs)
        for i, g in zip(index, found, strict=True):
            gradients[i] = g
        return None, *gradients

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        index = [i for i, t in enumerate(tangents) if t is not None]
        f, moving = restricted(ctx.f, ctx.saved_tensors, index, ctx.moving)
        found = iter(jvp(f, moving, tuple(tangents[i] for i in index)))
        return tuple(next(found) if on else None for on in ctx.moving)


def capture_error(where: str, name: str) -> CaptureError:
    """The error that names what a recomputed function captured."""
    return CaptureError(
        where,
        "every tensor that needs a gradient as an argument",
        f"one that was captured by closure: {name}",
        remedy="Pass it through phi or hparams: its gradient would be lost where steps are recomputed.",
    )


def _closure(f: Any, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a function reaches by closure, default, partial or global name."""
    if id(f) in seen:
        return
    seen.add(id(f))
    named: dict[str, tuple[Any, ...]]
    if isinstance(f, functools.partial):
        named = {"a partial argument": (f.func, *f.args, *f.keywords.values())}
    elif hasattr(f, "__code__") and (f.__module__ or "").partition(".")[0] not in ("torch", "metaopt"):
        cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
        named = {name: (cell.cell_contents,) for name, cell in cells if _filled(cell)}
        named |= {n: (f.__globals__[n],) for n in f.__code__.co_names if n in f.__globals__}
        named["a default argument"] = f.__defaults__ or ()
    else:
        return
    for name, values in named.items():
        for value in values:
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, (dict, list, tuple)):
                yield from ((name, x) for x in tree.leaves(value) if isinstance(x, Tensor))
            elif callable(value) and not isinstance(value, (nn.Module, type)):
                yield from _closure(value, seen)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def captured(function: Callable[..., Any]) -> list[str]:
    """The names by which a function captured tensors that need a gradient.

    >>> w = torch.ones((), requires_grad=True)
    >>> captured(functools.partial(torch.mul, w))
    ['a partial argument']
    """
    return [name for name, tensor in _closure(function, set()) if tensor.requires_grad]


def check_captured(where: str, *functions: Callable[..., Any]) -> None:
    """Raise `CaptureError` if one of the functions captured a tensor that needs a gradient."""
    for function in functions:
        for name in captured(function):
            raise capture_error(where, f"`{name}`")


def recompute(f: Callable[..., Any], *args: Any) -> Any:
    """Return ``f(*args)``, keeping the arguments alone for its derivative.

    Random draws are repeated as they fell, `seeded` ones and torch's own, under autocast as it was. Args
    and result are pytrees of tensors; what else is among the arguments is passed as it is.

    Args: f: a pure function; everything that needs a gradient is an argument (`check_captured`).
    Raises: CaptureError where a tensor that needs a gradient was captured all the same.
    Cost: memory O(args + outputs); the forward once more in each derivative.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> recompute(lambda x: x**2, x).backward()
    >>> x.grad
    tensor(6.)
    """
    leaves, structure = tree.flatten(args)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    static = [_SLOT if isinstance(x, Tensor) else x for x in leaves]
    result: list[Any] = []
    draws, always = current_draws(), exact.always_on()
    start = 0 if draws is None else draws.count
    if draws is not None:
        tensors.append(draws.key)  # an argument like any other: it may be mapped

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        moving = iter(tensors)
        full = [next(moving) if x is _SLOT else x for x in static]
        with exact(always), nullcontext() if draws is None else seeded(next(moving), start) as inner:
            outputs, out = tree.flatten(f(*tree.unflatten(structure, full)))
        result[:] = [out, 0 if inner is None else inner.count]
        return tuple(outputs)

    dice = Dice()
    outputs = _Recomputed.apply(dice.replaying(autocast_as_now(flat)), *tensors)
    dice.close()
    if draws is not None:
        draws.count = result[1]
    return tree.unflatten(result[0], outputs)
