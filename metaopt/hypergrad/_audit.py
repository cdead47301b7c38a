"""Every estimator on one problem, beside finite differences and beside each other."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import show, tree
from metaopt.errors import ArgumentError
from metaopt.hypergrad._differentiate import moving
from metaopt.hypergrad._es import es_antithetic, noise
from metaopt.hypergrad._first_order import first_order
from metaopt.hypergrad._forward import forward
from metaopt.hypergrad._implicit import Implicit, fixed_point, implicit
from metaopt.hypergrad._mixed import mixed
from metaopt.hypergrad._problem import Problem, complete, count_steps, rollout
from metaopt.hypergrad._truncated import one_step, truncated
from metaopt.hypergrad._unrolled import unrolled
from metaopt.peak import peak_memory
from metaopt.progress import progress
from metaopt.types import Hypergrad

__all__ = ["Audit", "Audited", "audit"]

Estimator = Callable[[Problem, Any], Hypergrad]


class Audited(NamedTuple):
    """One estimator.

    ``cosine`` with and ``norm`` relative to the unrolled hypergradient; ``error`` ‖g − g*‖/‖g*‖;
    ``slope_error``, the worst relative error of its directional derivatives against central differences;
    ``residual`` of the linear solve and ``optimality`` of the point, where it has them; ``seconds``;
    ``peak`` bytes; ``note``, why it has no numbers.
    """

    name: str
    cosine: float = float("nan")
    norm: float = float("nan")
    error: float = float("nan")
    slope_error: float = float("nan")
    residual: float = float("nan")
    optimality: float = float("nan")
    seconds: float = float("nan")
    peak: int = 0
    note: str = ""


class Audit(NamedTuple):
    """The rows; a table here and in Jupyter, a picture by `metaopt.plot.agreement`."""

    rows: tuple[Audited, ...]

    def _cells(self) -> list[tuple[str, ...]]:
        head = (
            "estimator",
            "cosine",
            "norm",
            "error",
            "slope err",
            "residual",
            "optimality",
            "ms",
            "peak KiB",
        )
        lines: list[tuple[str, ...]] = [head]
        for r in self.rows:
            numbers = [r.cosine, r.norm, r.error, r.slope_error, r.residual, r.optimality]
            cells = [f"{x:.3g}" if x == x else "" for x in numbers]
            lines.append((r.name, *cells, f"{1e3 * r.seconds:.3g}", f"{r.peak / 1024:.1f}"))
        return lines

    def __repr__(self) -> str:
        lines = [f"{name:<16}" + "".join(f"{c:>12}" for c in cells) for name, *cells in self._cells()]
        for i, r in enumerate(self.rows, 1):
            if r.note:
                lines[i] = f"{r.name:<16}  {r.note}"
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        noted = [(r.name, r.note) if r.note else line for r, line in zip(self.rows, body, strict=True)]
        return show.table(head, noted)


def audit(
    problem: Problem,
    phi: Any,
    estimators: Mapping[str, Estimator] | None = None,
    *,
    num_directions: int = 3,
    step: float = 1e-5,
    seed: int = 0,
) -> Audit:
    """Compare estimators on a problem: which one should be used here?

    Args: problem, phi: as in `unrolled`.
          estimators: ``name -> (problem, phi) -> Hypergrad``; a choice of all where None.
          num_directions: random unit directions along which central differences are taken.
          step: of the central differences, in units of φ.
          seed: of the directions and of the noise of ES.
    Returns: Audit; an estimator that cannot see this φ has a row that says so.
    Raises: as `unrolled`, the reference.
    Cost: three estimates of each; 2 num_directions inner loops.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: (p**2).sum() / 2, mo.optim.sgd(lr=0.5), num_steps=4)
    >>> report = mo.audit(problem, torch.ones(3).double())
    >>> report.rows[0].name, round(report.rows[0].cosine, 6)
    ('unrolled', 1.0)
    """
    index, _, _ = moving("audit", phi)
    reference = _flat(unrolled(problem, phi).grad, index)
    directions = [_flat(row, index) for row in tree.unstack(noise(phi, num_directions, seed))]
    directions = [d / d.norm() for d in directions]
    with torch.no_grad():
        slopes = [_slope(problem, phi, index, d, step) for d in directions]
    chosen = _all(problem, phi, seed) if estimators is None else estimators
    rows = [
        _row(name, estimator, problem, phi, index, reference, directions, slopes)
        for name, estimator in progress(chosen.items(), "audit")
    ]
    return Audit(tuple(rows))


def _all(problem: Problem, phi: Any, seed: int) -> dict[str, Estimator]:
    total = count_steps(problem)
    found: dict[str, Estimator] = {"unrolled": unrolled, "mixed": mixed}
    index, leaves, _ = moving("audit", phi)
    if sum(leaves[i].numel() for i in index) <= 1000:
        found["forward"] = forward
    found["first_order"] = first_order
    for last in sorted({total // 2, total // 4, total // 8} - {0, 1}):
        found[f"truncated {last}"] = functools.partial(truncated, last=last)
    found |= {"one_step": one_step, "implicit": implicit, "fixed_point": fixed_point}
    found["es_antithetic"] = lambda problem, phi: es_antithetic(
        problem, phi, sigma=0.01, noise=noise(phi, 256, seed)
    )
    return found


def _row(
    name: str,
    estimator: Estimator,
    problem: Problem,
    phi: Any,
    index: list[int],
    reference: Tensor,
    directions: list[Tensor],
    slopes: list[Tensor],
) -> Audited:
    try:
        estimator(problem, phi)
    except ArgumentError as refusal:
        return Audited(name, note=str(refusal))
    peak, result = peak_memory(lambda: estimator(problem, phi))
    start = time.perf_counter()
    estimator(problem, phi)
    seconds = time.perf_counter() - start
    g = _flat(result.grad, index)
    size = float(reference.norm())
    scale = max(float(torch.stack(slopes).abs().max()), 1e-300)
    worst = max(float((g @ d - s).abs()) for d, s in zip(directions, slopes, strict=True)) / scale
    aux = result.aux
    solved = isinstance(aux, Implicit)
    return Audited(
        name,
        cosine=float(g @ reference / (g.norm() * reference.norm())),
        norm=float(g.norm()) / size if size else float("nan"),
        error=float((g - reference).norm()) / size if size else float("nan"),
        slope_error=worst,
        residual=float(aux.solve.residual.detach()) if solved else float("nan"),
        optimality=float(aux.optimality.detach()) if solved else float("nan"),
        seconds=seconds,
        peak=peak,
    )


def _flat(x: Any, index: list[int]) -> Tensor:
    leaves = tree.leaves(x)
    return torch.cat([leaves[i].reshape(-1).double() for i in index]).detach()


def _slope(problem: Problem, phi: Any, index: list[int], direction: Tensor, step: float) -> Tensor:
    """(F(φ + hv) − F(φ − hv)) / 2h."""
    leaves, structure = tree.flatten(phi)
    parts = direction.split([leaves[i].numel() for i in index])

    def value(h: float) -> Tensor:
        moved = list(leaves)
        for i, v in zip(index, parts, strict=True):
            moved[i] = leaves[i] + h * v.reshape(leaves[i].shape).to(leaves[i].dtype)
        return rollout(problem, complete("audit", problem, tree.unflatten(structure, moved))).value.double()

    return (value(step) - value(-step)) / (2 * step)
