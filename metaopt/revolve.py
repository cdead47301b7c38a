"""Binomial checkpointing: a chain of steps differentiated with a fixed number of carries in memory.

One autograd.Function for the whole chain, not one in another: its backward walks the chain from the end,
so that it maps under ``vmap`` and is itself differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack

from metaopt import tree
from metaopt.exact import current_draws, exact, seeded
from metaopt.recompute import capture_error
from metaopt.replay import Dice, autocast_as_now, bare, jvp, moves, plain_vjp, restricted

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
    tensors = [others[i] for i in slots_of]
    draws, always = current_draws(), exact.always_on()
    counts = [] if draws is None else [draws.count]  # the draws made before each step
    if draws is not None:
        tensors.append(draws.key)  # an argument like any other: it may be mapped

    def step(carry: tuple[Tensor, ...], tensors: tuple[Tensor, ...], j: int) -> Any:
        full = list(others)
        for i, x in zip(slots_of, tensors, strict=draws is None):
            full[i] = x
        with exact(always), seeded(tensors[-1], counts[j]) if counts else nullcontext() as inner:
            state = tree.unflatten(structure, carry)
            new, losses = block(state, tree.unflatten(shape, full), range(j, j + 1))
        if inner is not None and len(counts) == j + 1:
            counts.append(inner.count)
        return tuple(tree.leaves(new)), losses[0]

    chain = _Chain(step, len(leaves), num_steps, slots)
    *end, losses = _Revolve.apply(chain, *leaves, *tensors)
    chain.dice.close()
    if draws is not None:
        draws.count = counts[-1]
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

    def back(
        self, inputs: tuple[Tensor, ...], cotangents: tuple[Tensor, ...], needed: Sequence[bool], plain: bool
    ) -> list[Any]:
        """The VJP of the chain, with respect to the whole carry and to what is ``needed`` of the rest."""
        carry, rest = inputs[: self.width], inputs[self.width :]
        moving = [moves(x) for x in carry]
        index = [i for i, x in enumerate(inputs) if (moving[i] if i < self.width else needed[i])]
        *bars, losses_bar = cotangents
        total: list[Any] = [None] * len(inputs)
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
            f, xs = restricted(flat, (*point[0], *rest), index, [*moving, True])
            bar = (*(g for g, on in zip(bars, moving, strict=True) if on), losses_bar[j])
            gradients = plain_vjp(f, xs, bar) if plain else torch.func.vjp(f, *xs)[1](bar)
            found = dict(zip(index, gradients, strict=True))
            bars = [torch.zeros_like(x) if found.get(i) is None else found[i] for i, x in enumerate(point[0])]
            total = [_plus(total[i], found.get(i)) for i in range(len(inputs))]
        return [*(g if on else None for g, on in zip(bars, moving, strict=True)), *total[self.width :]]


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
        ctx.moving = [moves(y) for y in output]
        ctx.mark_non_differentiable(*(y for y, on in zip(output, ctx.moving, strict=True) if not on))
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        chain: _Chain = ctx.chain
        plain = get_interpreter_stack() is None and not torch.is_grad_enabled()
        given = ctx.saved_tensors, cotangents, ctx.needs_input_grad[1:], plain
        if chain.dice.before is None:
            return None, *chain.back(*given)
        with torch.random.fork_rng(range(len(chain.dice.before) - 1)):
            return None, *chain.back(*given)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        chain, index = ctx.chain, [i for i, t in enumerate(tangents) if t is not None]
        split = lambda *xs: chain.forth(xs[: chain.width], xs[chain.width :])
        f, xs = restricted(split, ctx.saved_tensors, index, ctx.moving)
        found = iter(jvp(f, xs, tuple(tangents[i] for i in index)))
        return tuple(next(found) if on else None for on in ctx.moving)
