"""Which memory strategy an unrolled hypergradient can afford, predicted from a few measured steps."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

from metaopt import show
from metaopt.errors import ArgumentError
from metaopt.hypergrad._problem import Problem, count_steps, segment
from metaopt.hypergrad._unrolled import unrolled
from metaopt.memory import Binomial, Memory
from metaopt.peak import peak_memory
from metaopt.progress import progress
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

    Each is linear, and its coefficients are measured on two or three runs of 4 to 16 steps.

    Args: problem: J = num_steps, or the batch's step axis.
          budget: bytes; None chooses the fastest.
          phi: as in `unrolled`; the problem's params where None.
    Returns: Plan(choice, strategies); ``unrolled(problem, phi, memory=plan.choice.memory)``.
    Raises: ArgumentError if nothing fits; it names the leanest.
    Cost: about 150 inner steps.

    >>> import torch, metaopt as mo
    >>> loss = lambda p, b: ((b @ p) ** 2).mean()
    >>> problem = Problem(loss, mo.optim.sgd(lr=0.1), torch.ones(50, 8), 200, params=torch.ones(8))
    >>> len(mo.plan(problem).strategies)
    8
    """
    phi = Meta(problem.params) if phi is None else phi
    total = count_steps(problem)
    if problem.outer_every is not None:
        raise ArgumentError("plan(problem)", "outer_every=None", str(problem.outer_every))
    if total < 16:
        raise ArgumentError("plan(problem)", "at least 16 steps to plan for", str(total))

    def measured(steps: int, memory: Memory) -> tuple[float, float]:
        batch, num_steps, hparams = segment(problem, _hparams(problem, phi), 0, steps)
        short = problem._replace(batch=batch, num_steps=num_steps)
        cut = phi if not problem.per_step_hparams else Meta(phi.params, hparams, phi.phi)
        peak, _ = peak_memory(lambda: unrolled(short, cut, memory=memory))
        start = time.perf_counter()
        unrolled(short, cut, memory=memory)
        return peak, (time.perf_counter() - start) / steps

    measured(2, "all")  # warm up
    runs: list[tuple[int, Memory]] = [(8, "all"), (16, "all"), (8, 2), (16, 2), (16, 4)]
    runs += [(16, Binomial(1)), (16, Binomial(3))]
    (p8, _), (p16, f_all), (b8, _), (b16, _), (wide, f_k), (d1, f_1), (d3, _) = [
        measured(*run) for run in progress(runs, "plan")
    ]
    g = (p16 - p8) / 8
    rows = [Strategy("all", int(p16 + g * (total - 16)), f_all * total)]

    c = (b16 - b8) / 4
    slope = (wide - b16 + 4 * c) / 2  # 8 blocks of 2 against 4 blocks of 4
    root = math.isqrt(total - 1) + 1
    best = max(1, min(total, round(math.sqrt(total * c / max(slope, 1.0)))))
    for memory, k in (("sqrt", root), (best, best)):
        peak = wide + (math.ceil(total / k) - 4) * c + (k - 4) * slope
        rows.append(Strategy(memory, int(peak), f_k * total))  # type: ignore[arg-type]

    e = max(d3 - d1, 0) / 2  # tiny carries drown in when Python frees what it no longer needs
    for slots in (2, 4, 8, 16, 32):
        work = (repetitions(total, slots) + 2) / (repetitions(16, 1) / 2 + 2)
        rows.append(Strategy(Binomial(slots), int(d1 + (slots - 1) * e), f_1 * work * total))
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


def _hparams(problem: Problem, phi: Any) -> Any:
    given = phi.hparams if isinstance(phi, Meta) else None
    return problem.opt.hparams if given is None else given
