"""A run of compiled steps as one node of the graph, whose derivative is a run of compiled derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.compiled._compiled import Compiled, Owner, find
from metaopt.compiled._lower import Marks, raised
from metaopt.compiled._trace import Captured
from metaopt.errors import CompileError
from metaopt.exact import advance, exact, paused
from metaopt.replay import autocast_as_now, differentiable_once, moves

__all__ = ["Steps"]

Tensors = Sequence[Tensor]


class Steps(NamedTuple):
    """The inner steps of all tasks, on plain tensors with the tasks in front.

    ::

        F:  θ_{j+1}, ℓ_j = step(θ_j, x_j)
        B:  θ̄_j, x̄_j = vjp(step, (θ_j, x_j))(θ̄_{j+1}, ℓ̄_j)

    B computes the step again beside its derivative: a compiler that sees both at once keeps nothing for
    later, and takes a third of the time of one that hands over from a forward to a backward graph. So all
    that is remembered of a step is its carry θ_j. F and B are compiled twice at most: the tasks may share
    the first carry, and have one of their own after a step.
    """

    task: Callable[..., list[Tensor]]  # a step of one task: (*carry, *x_j, key?) -> [*carry, loss]
    size: int  # tensors in the carry
    marks: list[Marks]  # of the first carry, and of the rest, which the steps are given
    rowed: list[bool]  # which of the rest have one row a step
    keyed: bool  # whether the last of the rest is a key that every step advances
    levels: int
    owner: Owner
    backend: Any
    aux: list[Any]  # what tracing `task` tells: the structure of its result, the number of its draws

    def block(self, carry: Any, rest: Any, over: range) -> tuple[tuple[Any, ...], Tensor]:
        """The carry after the steps ``over``, and their losses. CompileError where F cannot be compiled."""
        with paused():
            with torch.no_grad():
                first = self._f(carry, rest, over[0])
            learned = [x for x in first.captured if x.requires_grad]
            *carry, losses = _Run.apply(self, first, over, len(rest), *carry, *rest, *learned)
        return tuple(carry), losses

    def forward(
        self, first: Compiled, carry: Tensors, rest: Tensors, over: range
    ) -> tuple[list[Tensors], list[Tensor]]:
        """The carries before the first step and after each, and the losses."""
        carries, losses, code = [carry], [], _Steady()
        for j in over:
            f = code.steady or code.next(first if j == over[0] else self._f(carry, rest, j))
            *carry, loss = f.code(*carry, *self._given(rest, j))
            carries.append(carry)
            losses.append(loss)
        return carries, losses

    def backward(self, run: _Ran, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The cotangents of the inputs of a run: its first carry, the rest, and what was captured."""
        *of_carry, of_losses = cotangents
        moving = [i for i, x in enumerate(run.carries[0]) if moves(x)]
        pulled = [_dense(of_carry[i], run.carries[-1][i]) for i in moving]
        sums: dict[int, Tensor] = {}
        code = _Steady()
        for k, j in reversed(list(enumerate(run.over))):
            inputs = [*run.carries[k], *self._given(run.rest, j), *run.learned]
            if of_losses is not None:
                pulled.append(of_losses.select(self.levels, k).contiguous())
            b = (code.steady if j else None) or code.next(self._b(run, j, inputs, pulled, moving))
            found = b.code(*inputs, *pulled)
            pulled = list(found[: len(moving)])
            for i, g in zip(run.needed, found[len(moving) :], strict=True):
                sums[i] = self._added(sums.get(i), g, run.rest, i - self.size, j)
        sums |= dict(zip(moving, pulled, strict=True))
        return [sums.get(i) for i in range(len(inputs))]

    def _at(self, j: int) -> list[Marks]:
        own = [(True,) * self.levels] * self.size
        return [*own, *self.marks[self.size :]] if j else self.marks

    def _given(self, rest: Tensors, j: int) -> list[Tensor]:
        """What of the rest step j is given."""
        marks = self.marks[self.size :]
        now = [x.select(sum(m), j) if row else x for x, row, m in zip(rest, self.rowed, marks, strict=True)]
        if self.keyed and j:
            now[-1] = advance(now[-1], j * self.aux[1])
        return now

    def _added(self, total: Tensor | None, g: Tensor, rest: Tensors, i: int, j: int) -> Tensor:
        """``total`` with the cotangent of step j: in its row, where there are rows."""
        if i >= len(rest) or not self.rowed[i]:
            return g if total is None else total + g
        total = torch.zeros_like(rest[i]) if total is None else total
        total.select(sum(self.marks[self.size + i]), j).copy_(g)
        return total

    def _f(self, carry: Tensors, rest: Tensors, j: int) -> Compiled:
        at = self._at(j)

        def flat(*xs: Tensor) -> tuple[list[Tensor], Any]:
            found = raised(self.task, at)(*xs)
            if [moves(x) for x in xs[: self.size]] != [moves(x) for x in found[:-1]]:
                raise CompileError("unroll(state)", "a step that leaves the dtypes as they are", "others")
            return found, tuple(self.aux)

        tensors = [*carry, *self._given(rest, j)]
        f = find("unroll step", flat, tensors, self.owner, self.backend, tuple(at))
        self.aux[:] = f.aux
        return f

    def _b(self, run: _Ran, j: int, inputs: Tensors, cotangents: Tensors, moving: list[int]) -> Compiled:
        at, number = self._at(j), self.size + len(run.rest)
        index = [*moving, *run.needed]
        outputs = [*moving, self.size][: len(cotangents)]

        def flat(*xs: Tensor) -> tuple[list[Tensor], None]:
            def step(*moved: Tensor) -> list[Tensor]:
                full = list(xs[: len(inputs)])
                for i, x in zip(index, moved, strict=True):
                    full[i] = x
                swap = {id(x): y for x, y in zip(run.learned, full[number:], strict=True)}
                with Captured(swap) if swap else nullcontext():
                    found = raised(self.task, at)(*full[:number])
                return [found[i] for i in outputs]

            vjp: Any = torch.func.vjp(step, *(xs[i] for i in index))[1]
            return [g.contiguous() for g in vjp(list(xs[len(inputs) :]))], None

        kind = tuple(at), tuple(index), len(outputs), tuple(map(id, run.learned))
        tensors = [*inputs, *cotangents]
        try:
            return find("unroll step, derivative", flat, tensors, self.owner, self.backend, kind)
        except CompileError:  # which is in the report
            return Compiled.eager(lambda *xs: flat(*xs)[0])


class _Ran(NamedTuple):
    """What a run leaves for its derivative."""

    carries: list[Tensors]  # before the first step and after each
    rest: Tensors
    learned: Tensors  # what was captured and needs a gradient
    over: range
    needed: list[int]  # the inputs beside the carry that need a gradient


class _Run(torch.autograd.Function):
    """The steps ``over``: from a carry, the rest and what was captured to the last carry and all losses."""

    @staticmethod
    def forward(
        ctx: Any, steps: Steps, first: Compiled, over: range, width: int, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        end = steps.size + width
        carry, rest, learned = inputs[: steps.size], inputs[steps.size : end], inputs[end:]
        carries, losses = steps.forward(first, carry, rest, over)
        ctx.save_for_backward(*(x for carry in carries for x in carry), *rest, *learned)
        ctx.width, ctx.over = width, over
        always = exact.always_on()

        def backward(ran: _Ran, cotangents: Any) -> list[Tensor | None]:
            with exact(always), paused():
                return steps.backward(ran, cotangents)

        ctx.steps, ctx.backward_as_now = steps, autocast_as_now(backward)
        last = tuple(carries[-1])
        ctx.mark_non_differentiable(*(x for x in last if not moves(x)))
        ctx.set_materialize_grads(False)
        return *last, torch.stack(losses, steps.levels)

    @staticmethod
    @differentiable_once("unroll(compile)", "Pass compile=False, or create_graph=False.")
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        size, saved = ctx.steps.size, ctx.saved_tensors
        end = size * (len(ctx.over) + 1)
        carries = [saved[i : i + size] for i in range(0, end, size)]
        rest, learned = saved[end : end + ctx.width], saved[end + ctx.width :]
        needed = [i for i, on in enumerate(ctx.needs_input_grad[4:]) if on and i >= size]
        return (
            None,
            None,
            None,
            None,
            *ctx.backward_as_now(_Ran(carries, rest, learned, ctx.over, needed), cotangents),
        )


class _Steady:
    """The code of a step, once it was that of the step before, too.

    Its inputs are then its own outputs, and of the same kinds from there on: nothing is looked up again, but
    for step 0, whose carry the tasks may share.
    """

    def __init__(self) -> None:
        self.before: Compiled | None = None
        self.steady: Compiled | None = None

    def next(self, code: Compiled) -> Compiled:
        self.steady = code if code is self.before else None
        self.before = code
        return code


def _dense(cotangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like).contiguous() if cotangent is None else cotangent.contiguous()
