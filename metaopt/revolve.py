"""Binomial checkpointing: a chain of steps differentiated with a fixed number of carries in memory.

One autograd.Function for the whole chain, not one in another: its backward walks the chain from the end,
so that it maps under ``vmap`` and is itself differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack

from metaopt import tree
from metaopt.recompute import capture_error
from metaopt.replay import Dice, autocast_as_now, bare, jvp, plain_vjp

__all__ = ["repetitions", "revolve"]

Step = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], int], tuple[tuple[Tensor, ...], Tensor]]


def repetitions(num_steps: int, slots: int) -> int:
    """The least t with C(slots + t, slots) >= num_steps.

    >>> repetitions(10_000, 20)
    4
    """
    t = 0
    while math.comb(slots + t, slots) < num_steps:
        t += 1
    return t


def revolve(
    block: Callable[..., Any], carry: Any, rest: Any, num_steps: int, slots: int
) -> tuple[Any, Tensor]:
    """``block(carry, rest, steps) -> (carry, losses [steps])`` over all steps: the carry, and losses [J].

    With s slots beside the start, C(s+t, s) steps are computed t times in the backward pass.

    Args: block, carry, rest: pure; tensors that need a gradient are in carry or rest.
          num_steps: J >= 1.
          slots: s >= 1.
    Returns: (carry, losses [J]).
    Raises: CaptureError.
    Cost: memory of s+1 carries and one step's graph.
    Source: Griewank & Walther 2000, doi:10.1145/347837.347846.

    >>> halve = lambda x, _, steps: (x / 2, torch.stack([x for _ in steps]))
    >>> x = torch.tensor(8.0, requires_grad=True)
    >>> revolve(halve, x, (), 3, 1)[0].backward()
    >>> x.grad
    tensor(0.1250)
    """
    leaves, structure = tree.flatten(carry)
    others, shape = tree.flatten(rest)
    slots_of = [i for i, x in enumerate(others) if isinstance(x, Tensor)]

    def step(carry: tuple[Tensor, ...], tensors: tuple[Tensor, ...], j: int) -> Any:
        full = list(others)
        for i, x in zip(slots_of, tensors, strict=True):
            full[i] = x
        new, losses = block(tree.unflatten(structure, carry), tree.unflatten(shape, full), range(j, j + 1))
        return tuple(tree.leaves(new)), losses[0]

    chain = _Chain(step, len(leaves), num_steps, slots)
    *end, losses = _Revolve.apply(chain, *leaves, *(others[i] for i in slots_of))
    chain.dice.close()
    return tree.unflatten(structure, end), losses


class _Chain:
    """The steps, and the random state before the first."""

    def __init__(self, step: Step, width: int, num_steps: int, slots: int) -> None:
        self.step = autocast_as_now(step)
        self.width, self.num_steps, self.slots = width, num_steps, slots
        self.dice = Dice()

    def forth(self, carry: tuple[Tensor, ...], rest: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """All steps: the last carry, and the losses."""
        losses = []
        for j in range(self.num_steps):
            carry, loss = self.step(carry, rest, j)
            losses.append(loss)
        return (*carry, torch.stack(losses))

    def advance(self, point: Any, rest: tuple[Tensor, ...], start: int, stop: int) -> Any:
        """The carry and the random state before step ``stop``, from those before step ``start``."""
        carry, random = point
        Dice.restore(random)
        for j in range(start, stop):
            carry, _ = self.step(carry, rest, j)
        return carry, None if random is None else Dice.state()

    def back(self, inputs: tuple[Tensor, ...], cotangents: tuple[Tensor, ...], plain: bool) -> list[Any]:
        """The VJP of the chain."""
        carry, rest = inputs[: self.width], inputs[self.width :]
        *bars, losses_bar = cotangents
        total: list[Any] = [None] * len(rest)
        points = [(0, (carry, self.dice.before))]
        for j in reversed(range(self.num_steps)):
            start, point = points[-1]
            while start < j:  # place checkpoints on the way to j, as many as are free
                free = self.slots + 1 - len(points)
                stop = j if free < 1 else start + _split(j + 1 - start, free)
                point, start = self.advance(point, rest, start, stop), stop
                if free >= 1 and start < j:
                    points.append((start, point))
            if points[-1][0] == j:
                points.pop()
            Dice.restore(point[1])
            flat = lambda *xs, j=j: _joined(self.step(xs[: self.width], xs[self.width :], j))
            bar = (*bars, losses_bar[j])
            if plain:
                found: Any = plain_vjp(flat, (*point[0], *rest), bar)
            else:
                found = torch.func.vjp(flat, *point[0], *rest)[1](bar)
            bars = [torch.zeros_like(x) if g is None else g for x, g in zip(point[0], found, strict=False)]
            total = [_plus(a, b) for a, b in zip(total, found[self.width :], strict=True)]
        return [*bars, *total]


def _split(steps: int, free: int) -> int:
    """How far the next checkpoint lies ahead in so many steps with so many slots free."""
    t = repetitions(steps, free)
    return max(steps - math.comb(free - 1 + t, free - 1), 1)


def _joined(result: Any) -> tuple[Tensor, ...]:
    carry, loss = result
    return (*carry, loss)


def _plus(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


class _Revolve(torch.autograd.Function):
    """The chain, keeping its inputs alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(chain: _Chain, *inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = tuple(x.detach() for x in inputs)
        with torch.enable_grad():  # all inputs are detached: whatever has history came by closure
            outputs = chain.forth(inputs[: chain.width], inputs[chain.width :])
        if any(bare(y).requires_grad for y in outputs):
            raise capture_error("unroll(loss_fn)", "by way of a module or an object")
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.chain, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        chain: _Chain = ctx.chain
        plain = get_interpreter_stack() is None and not torch.is_grad_enabled()
        if chain.dice.before is None:
            return None, *chain.back(ctx.saved_tensors, cotangents, plain)
        with torch.random.fork_rng(range(len(chain.dice.before) - 1)):
            return None, *chain.back(ctx.saved_tensors, cotangents, plain)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        chain, inputs = ctx.chain, ctx.saved_tensors
        dots = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=True))
        split = lambda *xs: chain.forth(xs[: chain.width], xs[chain.width :])
        return jvp(split, inputs, dots)
