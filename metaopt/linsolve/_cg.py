"""Conjugate gradients, and the same on the normal equations."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.errors import check_at_least
from metaopt.linsolve._solver import MatVec, Solver, Vector, check_tol, finished, inner, safe

__all__ = ["cg", "normal_cg"]


def cg(max_iters: int = 100, tol: float = 1e-6) -> Solver:
    """Conjugate gradients for symmetric positive definite A.

    ::

        α = rᵀr / pᵀAp,   x ← x + αp,   r' = r − αAp,   p ← r' + (r'ᵀr' / rᵀr) p

    Stops, and says so by its residual, at a direction of no or negative curvature pᵀAp ≤ 0.

    Args: max_iters: iterations at most; all of them are run under vmap, masked per task.
          tol: stop at ‖b − Ax‖ ≤ tol ‖b‖.
    Returns: Solver.
    Raises: ArgumentError.
    Cost: one product with A an iteration, 4 vectors.
    Source: Hestenes & Stiefel 1952.

    >>> solution = cg()(lambda x: 2 * x, torch.tensor([2.0, 4.0]))
    >>> solution.value, solution.aux.converged
    (tensor([1., 2.]), tensor(True))
    """
    check_at_least("cg(max_iters)", max_iters, 1)
    check_tol("cg(tol)", tol)

    def iterate(a: MatVec, a_t: MatVec, b: Vector, start: Vector) -> tuple[Vector, Tensor]:
        return _descend(a, b, start, max_iters, tol)

    return Solver("cg", iterate, symmetric=True, tol=tol)


def normal_cg(max_iters: int = 100, tol: float = 1e-6) -> Solver:
    """Conjugate gradients on AᵀA x = Aᵀb, for any A; the condition number is squared.

    A singular A gives a least-squares solution and the residual that remains.

    Args: max_iters, tol: as in `cg`, of the normal equations.
    Returns: Solver.
    Raises: ArgumentError.
    Cost: one product with A and one with Aᵀ an iteration.
    Source: Björck 1996, section 7.4.1 (CGLS).

    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> normal_cg()(lambda x: turn @ x, torch.tensor([1.0, 2.0])).value
    tensor([ 2., -1.])
    """
    check_at_least("normal_cg(max_iters)", max_iters, 1)
    check_tol("normal_cg(tol)", tol)

    def iterate(a: MatVec, a_t: MatVec, b: Vector, start: Vector) -> tuple[Vector, Tensor]:
        return _descend(lambda x: a_t(a(x)), a_t(b), start, max_iters, tol)

    return Solver("normal_cg", iterate, symmetric=False, tol=tol)


def _descend(a: MatVec, b: Vector, start: Vector, max_iters: int, tol: float) -> tuple[Vector, Tensor]:
    x, r = start, b - a(start)
    p, rr = r, inner(r, r)
    goal = tol**2 * inner(b, b)
    active, count = rr > goal, torch.zeros_like(rr)
    for _ in range(max_iters):
        if finished(active):
            break
        ap = a(p)
        curvature = inner(p, ap)
        active = active & (curvature > 0)
        alpha = torch.where(active, rr / safe(curvature), 0.0)
        x = x + alpha * p
        r = r - alpha * ap
        new = inner(r, r)
        p = torch.where(active, r + (new / safe(rr)) * p, p)
        rr = torch.where(active, new, rr)
        count = count + active
        active = active & (rr > goal)
    return x, count
