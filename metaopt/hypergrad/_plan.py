"""Which memory strategy an unrolled hypergradient can afford, predicted from a few measured steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from metaopt import show, tree
from metaopt.errors import ArgumentError
from metaopt.hypergrad._problem import Problem, complete, count_steps, segment
from metaopt.hypergrad._unrolled import unrolled
from metaopt.memory import Binomial, Memory, Offload
from metaopt.peak import peak_memory
from metaopt.revolve import repetitions
from metaopt.types import Meta

__all__ = ["Plan", "Strategy", "plan"]


class Strategy(NamedTuple):
    """A value of ``memory``, the peak bytes and the seconds it is predicted to take."""

    memory: Memory
    peak: int
    seconds: float


class Plan(NamedTuple):
    """The choice, and all strategies it was made from; a table here and in Jupyter, a picture by
    `metaopt.plot.costs`.
    """

    choice: Strategy
    strategies: tuple[Strategy, ...]

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                str(s.memory),
                f"{s.peak / 2**20:.2f}",
                f"{s.seconds:.3f}",
                "<- chosen" if s == self.choice else "",
            )
            for s in self.strategies
        ]

    def __repr__(self) -> str:
        rows = [("memory", "peak MiB", "seconds", ""), *self._cells()]
        return "\n".join(f"{m:<20} {peak:>10} {s:>9}  {mark}".rstrip() for m, peak, s, mark in rows)

    def _repr_html_(self) -> str:
        return show.table(("memory", "peak MiB", "seconds", ""), self._cells())


def plan(problem: Problem, budget: float | None = None, phi: Any = None) -> Plan:
    """Predict peak memory and time of each memory strategy, and choose the fastest that fits.

    ::

        peak(all) = a + J g,   peak(K) = b + ⌈J/K⌉ c + K g',   peak(Binomial(s)) = d + s e

    Each is linear, and its coefficients are measured on two or three runs of 4 to 16 steps; K is the one
    that minimises the peak, since every K takes the same time. With ``outer_every`` E the strategy holds
    within each stretch of E steps, and the peak is linear in their number, measured on two and four.

    Args: problem: J = num_steps, or the batch's step axis.
          budget: bytes on the device of the parameters; None chooses the fastest.
          phi: as in `unrolled`; the problem's params where None.
    Returns: Plan(choice, strategies); ``unrolled(problem, phi, memory=plan.choice.memory)``.
    Raises: ArgumentError if nothing fits; it names the leanest.
    Cost: about 250 inner steps; some 70 stretches with ``outer_every``.

    >>> import torch, metaopt as mo
    >>> loss = lambda p, b: ((b @ p) ** 2).mean()
    >>> problem = Problem(loss, mo.optim.sgd(lr=0.1), torch.ones(50, 8), 200, params=torch.ones(8))
    >>> len(mo.plan(problem).strategies)
    9
    """
    phi = Meta(problem.params) if phi is None else phi
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, (int, float))):
        raise ArgumentError("plan(budget)", "a number of bytes, or None", repr(budget))
    complete("plan", problem, phi)
    total, least = count_steps(problem), 16 if problem.outer_every is None else 4 * problem.outer_every
    if total < least:
        raise ArgumentError("plan(problem)", f"at least {least} steps to plan for", str(total))
    measured = _meter(problem, phi)
    rows = _whole(measured, total) if problem.outer_every is None else _stretches(measured, problem, total)
    fitting = [s for s in rows if budget is None or s.peak <= budget]
    if not fitting:
        leanest = min(rows, key=lambda s: s.peak)
        raise ArgumentError(
            "plan(budget)",
            f"at least {leanest.peak} bytes, what memory={leanest.memory} needs",
            f"{budget:g}",
            remedy="Use forward, implicit or truncated, or map tasks in chunks.",
        )
    return Plan(min(fitting, key=lambda s: s.seconds), tuple(rows))


Meter = Callable[[int, Memory], tuple[float, float]]  # (steps, memory) -> (peak bytes, seconds a step)


def _meter(problem: Problem, phi: Any) -> Meter:
    whole = phi.hparams if isinstance(phi, Meta) and phi.hparams is not None else problem.opt.hparams
    devices = [x.device for x in tree.leaves((phi, problem.params)) if isinstance(x, Tensor)]

    def measured(steps: int, memory: Memory) -> tuple[float, float]:
        batch, num_steps, hparams = segment(problem, whole, 0, steps)
        short = problem._replace(batch=batch, num_steps=num_steps)
        cut = phi if not problem.per_step_hparams else Meta(phi.params, hparams, phi.phi)
        peak, _ = peak_memory(lambda: unrolled(short, cut, memory=memory), devices[0])
        start = time.perf_counter()
        unrolled(short, cut, memory=memory)
        return peak, (time.perf_counter() - start) / steps

    measured(2 * (problem.outer_every or 1), "all")  # warm up
    return measured


def _whole(measured: Meter, total: int) -> list[Strategy]:
    """One stretch of J steps."""
    (p8, _), (p16, f_all) = measured(8, "all"), measured(16, "all")
    g = (p16 - p8) / 8
    rows = [Strategy("all", int(p16 + g * (total - 16)), f_all * total)]

    root = math.isqrt(total - 1) + 1
    for kind in (lambda k: k, Offload):
        (b8, _), (b16, _), (wide, f_k) = (measured(j, kind(k)) for j, k in ((8, 2), (16, 2), (16, 4)))
        c = (b16 - b8) / 4
        slope = (wide - b16 + 4 * c) / 2  # 8 blocks of 2 against 4 blocks of 4
        best = max(1, min(total, round(math.sqrt(total * max(c, 0) / max(slope, 1.0)))))
        choices: list[tuple[Memory, int]] = [("sqrt", root), (best, best)]
        for memory, k in choices if kind is not Offload else [(Offload(best), best)]:
            peak = wide + (math.ceil(total / k) - 4) * c + (k - 4) * slope
            rows.append(Strategy(memory, int(peak), f_k * total))

    (d1, f_1), (d3, _) = measured(16, Binomial(1)), measured(16, Binomial(3))
    e = (d3 - d1) / 2
    for slots in (2, 4, 8, 16, 32):
        work = (repetitions(total, slots) + 2) / (repetitions(16, 1) / 2 + 2)
        rows.append(Strategy(Binomial(slots), int(d1 + (slots - 1) * e), f_1 * work * total))
    return rows


def _stretches(measured: Meter, problem: Problem, total: int) -> list[Strategy]:
    """J/E stretches of E steps, each with the strategy to itself."""
    every = problem.outer_every or 1
    strategies: list[Memory] = ["all", "sqrt", every, Offload(every), Binomial(2), Binomial(8)]
    rows = []
    for memory in strategies:
        (p2, _), (p4, seconds) = measured(2 * every, memory), measured(4 * every, memory)
        rows.append(Strategy(memory, int(p4 + (p4 - p2) / 2 * (total / every - 4)), seconds * total))
    return rows
