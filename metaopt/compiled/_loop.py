"""The inner loop over a compiled step: the loop stays in Python, and compile time does not grow with it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.compiled._compiled import owner
from metaopt.compiled._lower import Marks, lowered
from metaopt.compiled._steps import Steps
from metaopt.errors import CompileError
from metaopt.exact import advance, current_draws, seeded, unseeded
from metaopt.memory import Memory, run
from metaopt.step import Order, inner_step
from metaopt.types import LossFn, Optimizer, Unrolled

__all__ = ["Loop"]


class Loop(NamedTuple):
    """`unroll` with its step compiled, below every map of the caller.

    `Steps` is given the step of one task and plain tensors with the tasks in front.
    """

    loss_fn: LossFn
    opt: Optimizer
    order: Order
    stepped: bool
    per_step_hparams: bool
    num_steps: int
    memory: Memory
    backend: Any

    def __call__(self, params: Any, state: Any, buffers: Any, batch: Any, hparams: Any, phi: Any) -> Unrolled:
        """Raises: CompileError where the step cannot be compiled."""
        carry, carried = tree.flatten((params, state, buffers))
        rest, given = tree.flatten((batch, hparams, phi))
        slots = [i for i, x in enumerate(rest) if isinstance(x, Tensor)]
        static = {i: x for i, x in enumerate(rest) if not isinstance(x, Tensor)}
        rowed = self._rowed(rest, batch, hparams)
        if not all(isinstance(x, Tensor) for x in carry):
            raise CompileError("unroll(state)", "tensors alone", "a number")
        draws = current_draws()
        keys = [] if draws is None else [advance(draws.key, draws.count)]
        size = len(carry)
        box: list[Any] = []

        def step(*tensors: Tensor) -> list[Tensor]:
            filled = static | dict(zip(slots, tensors[size:], strict=False))
            params, state, buffers = tree.unflatten(carried, tensors[:size])
            batch, hparams, phi = tree.unflatten(given, [filled[i] for i in range(len(rest))])
            with seeded(tensors[-1]) if keys else nullcontext() as inner:
                params, state, loss, *moved = inner_step(
                    self.loss_fn, self.opt, params, state, batch, hparams, phi,
                    order=self.order, buffers=buffers,
                )  # fmt: skip
            leaves, structure = tree.flatten((params, state, moved[0] if moved else None))
            box[:] = [structure, inner.count if inner else 0]
            return [*leaves, loss]

        kind = carried, given, tuple(slots), tuple(static), self.order, len(keys)
        depends = owner(kind, self.loss_fn, self.opt.update, *static.values())

        def loop(tensors: list[Tensor], marks: list[Marks]) -> list[Tensor]:
            levels = len(marks[0]) if marks else 0
            given = [*rowed, *(False for _ in keys)]
            steps = Steps(step, size, marks, given, bool(keys), levels, depends, self.backend, box)
            with unseeded():
                last, losses = run(
                    steps.block, tuple(tensors[:size]), tensors[size:], self.num_steps, self.memory
                )
            return [*last, torch.cat(losses, levels)]

        *last, losses = lowered(loop, [*carry, *(rest[i] for i in slots), *keys])
        structure, count = box
        if draws is not None:
            draws.count += self.num_steps * count
        params, state, buffers = tree.unflatten(structure, last)
        return Unrolled(params, state, losses, buffers)

    def _rowed(self, rest: Any, batch: Any, hparams: Any) -> list[bool]:
        """Which tensors of ``rest`` have one row a step."""
        number = len(tree.leaves(batch))
        found = []
        for i, x in enumerate(rest):
            of_hparams = number <= i < number + len(tree.leaves(hparams))
            if isinstance(x, Tensor):
                found.append(
                    (self.stepped and i < number) or (self.per_step_hparams and of_hparams and x.ndim > 0)
                )
        return found
