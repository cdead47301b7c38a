"""The inner loop over a compiled step: the loop stays in Python, and compile time does not grow with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.compiled._compiled import compiled, owner
from metaopt.compiled._lower import Marks, lowered, raised
from metaopt.errors import CompileError
from metaopt.exact import advance, current_draws, seeded, unseeded
from metaopt.memory import Memory, run
from metaopt.step import Order, inner_step
from metaopt.types import LossFn, Optimizer, Unrolled

__all__ = ["Loop"]


class Loop(NamedTuple):
    """`unroll` with its step compiled, below every map of the caller.

    The step is ``vmap(step)`` on plain tensors with the tasks in front, one graph with its VJP: in the
    first step the parameters may be shared by all tasks, and in the others each task has its own, so
    that two variants are compiled at most.
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

        depends = owner(
            (carried, given, tuple(slots), self.order, len(keys)), self.loss_fn, self.opt.update, static
        )
        variants: dict[Any, Any] = {}

        def loop(tensors: list[Tensor], marks: list[Marks]) -> list[Tensor]:
            levels = len(marks[0]) if marks else 0
            own = [(True,) * levels] * size  # after a step, every task has a carry of its own

            def block(carry: Any, rest: Any, steps: range) -> Any:
                losses = []
                for j in steps:
                    at = [*(marks[:size] if j == 0 else own), *marks[size:]]
                    now = [
                        x.select(sum(mark), j) if row else x
                        for x, row, mark in zip(rest, rowed, marks[size:], strict=False)
                    ]
                    if keys:
                        count = variants[()][1] if j else 0
                        now.append(advance(rest[-1], j * count))
                    task = raised(step, at)
                    *carry, loss = self._step(task, [*carry, *now], at, depends, box, variants)
                    losses.append(loss)
                return tuple(carry), torch.stack(losses, levels)

            with unseeded():
                last, losses = run(block, tuple(tensors[:size]), tensors[size:], self.num_steps, self.memory)
            return [*last, torch.cat(losses, levels)]

        *last, losses = lowered(loop, [*carry, *(rest[i] for i in slots), *keys])
        structure, count = variants[()]
        if draws is not None:
            draws.count += self.num_steps * count
        params, state, buffers = tree.unflatten(structure, last)
        return Unrolled(params, state, losses, buffers)

    def _step(
        self, task: Any, tensors: Sequence[Tensor], at: Any, depends: Any, box: Any, variants: Any
    ) -> Any:
        flat = lambda *xs: (task(*xs), tuple(box))
        outputs, aux = compiled("unroll step", flat, tensors, depends, self.backend, tuple(at))
        variants[()] = aux
        return outputs

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
