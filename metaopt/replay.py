"""What it takes to run a function again: derivatives from its inputs alone, the draws as they fell, and
autocast as it was."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import DerivativeError

__all__ = [
    "Dice",
    "autocast_as_now",
    "bare",
    "differentiable_once",
    "jvp",
    "moves",
    "plain_vjp",
    "restricted",
    "scaled_zero",
]


def moves(x: Tensor) -> bool:
    """Whether a tensor has a derivative: counters and keys go in and out, and have none."""
    return x.is_floating_point() or x.is_complex()


def restricted(
    f: Any, inputs: Sequence[Tensor], index: list[int], outputs: list[bool]
) -> tuple[Any, tuple[Tensor, ...]]:
    """f as a function of the inputs at ``index`` alone, to the outputs that are on, and these inputs."""

    def partial(*moving: Tensor) -> tuple[Tensor, ...]:
        full = list(inputs)
        for i, x in zip(index, moving, strict=True):
            full[i] = x
        return tuple(y for y, on in zip(f(*full), outputs, strict=True) if on)

    return partial, tuple(inputs[i] for i in index)


def plain_vjp(
    f: Any, inputs: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """vjp(f, inputs)(cotangents) by plain autograd."""
    with torch.enable_grad():
        inputs = tuple(x.detach().requires_grad_() for x in inputs)
        outputs = f(*inputs)
    live = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not live:
        return (None,) * len(inputs)
    return torch.autograd.grad([y for y, _ in live], inputs, [g for _, g in live], allow_unused=True)


def jvp(f: Any, inputs: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """jvp(f, inputs)(tangents), as the transpose of the transpose.

    torch nests no forward mode in another, and a Function's jvp is called from within one.
    """
    forward: Any = torch.func.vjp(f, *inputs)
    outputs, vjp = forward
    transposed = torch.func.vjp(vjp, tuple(torch.zeros_like(y) for y in outputs))[1]
    return transposed(tangents)[0]


def bare(x: Tensor) -> Tensor:
    """The tensor below every functorch wrapper."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def scaled_zero(func: Any, args: Any) -> bool:
    """Whether a dispatch mode is given a number times known zeros, a tangent's, where torch 2.13 overflows
    its stack: they are ``args[0]``."""
    return func is torch.ops.aten.mul.Scalar and args[0]._is_zerotensor()


def autocast_as_now(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` under torch.autocast as it is now: a backward pass, which runs ``f`` again, is outside of it.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     product = autocast_as_now(torch.mm)
    >>> product(torch.ones(1, 1), torch.ones(1, 1)).dtype
    torch.bfloat16
    """
    then = _autocast()

    def run(*args: Any) -> Any:
        if _autocast() == then:
            return f(*args)
        with ExitStack() as stack:
            for device, enabled, dtype in then:
                stack.enter_context(torch.autocast(device, dtype, enabled, cache_enabled=False))
            return f(*args)

    return run


def _autocast() -> list[tuple[str, bool, torch.dtype]]:
    devices = ("cpu", "cuda")
    return [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]


def differentiable_once(where: str, remedy: str) -> Callable[[Any], Any]:
    """Decorate a Function's ``backward`` that has no derivative: `DerivativeError` where one is taken.

    The Function's inputs are among what it saved, for it is by them that a second derivative comes here.
    """
    error = DerivativeError(where, "one derivative", "a second", remedy=remedy)

    def decorate(backward: Callable[..., Any]) -> Any:
        @functools.wraps(backward)
        def once(ctx: Any, *cotangents: Any) -> Any:
            with torch.no_grad():
                found = backward(ctx, *cotangents)
            if not torch.is_grad_enabled():
                return found
            given = [x for x in (*ctx.saved_tensors, *cotangents) if x is not None]
            number = sum(x is not None for x in found)
            refused = iter(_Refused.apply(error, number, *(x for x in found if x is not None), *given))
            return tuple(None if x is None else next(refused) for x in found)

        return once

    return decorate


class _Refused(torch.autograd.Function):
    """The first of the tensors, whose derivative by any of them is an error."""

    @staticmethod
    def forward(ctx: Any, error: Exception, number: int, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.error = error
        return tuple(x.view_as(x) for x in xs[:number])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise ctx.error


class Dice:
    """The random state before the first run; kept for the next runs only if that run drew from it."""

    def __init__(self) -> None:
        self.rolled = False
        self.before: Any = self.state()

    @staticmethod
    def state() -> list[Tensor]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return [torch.get_rng_state(), *cuda]

    @staticmethod
    def restore(state: list[Tensor] | None) -> None:
        """Put the generators back into a state; None leaves them alone."""
        if state is not None:
            torch.set_rng_state(state[0])
            if len(state) > 1:
                torch.cuda.set_rng_state_all(state[1:])

    def close(self) -> None:
        now = self.state()
        self.rolled = True
        if all(_bytes(a) == _bytes(b) for a, b in zip(self.before, now, strict=True)):
            self.before = None

    def replaying(self, f: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if not self.rolled or self.before is None:
                return f(*args)
            with torch.random.fork_rng(range(len(self.before) - 1)):
                self.restore(self.before)
                return f(*args)

        return run


def _bytes(state: Tensor) -> bytes:
    """A generator's state, read behind the back of whatever traces torch's calls."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)
