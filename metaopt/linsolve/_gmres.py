"""Generalised minimal residuals, restarted."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.errors import check_at_least
from metaopt.linsolve._solver import MatVec, Solver, Vector, check_tol, finished, inner, safe

__all__ = ["gmres"]


def gmres(restart: int = 20, max_restarts: int = 5, tol: float = 1e-6) -> Solver:
    """GMRES for any A: the smallest residual over a Krylov space, built anew every ``restart`` vectors.

    ::

        A V_m = V_{m+1} H,   y = argmin ‖βe₁ − Hy‖,   x ← x + V_m y

    An exhausted Krylov space leaves zero columns in H; the least-squares solution of least norm ignores
    them, so that a task which is done early, or has b = 0, disturbs no other.

    Args: restart: m, at most the number of unknowns are used.
          max_restarts: Krylov spaces at most.
          tol: as in `cg`.
    Returns: Solver.
    Raises: ArgumentError.
    Cost: m+1 products with A a restart, m+1 vectors; the basis is orthogonalised twice.
    Source: Saad & Schultz 1986, doi:10.1137/0907058.

    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> gmres()(lambda x: turn @ x, torch.tensor([1.0, 2.0])).value.round(decimals=5)
    tensor([ 2., -1.])
    """
    check_at_least("gmres(restart)", restart, 1)
    check_at_least("gmres(max_restarts)", max_restarts, 1)
    check_tol("gmres(tol)", tol)

    def iterate(a: MatVec, a_t: MatVec, b: Vector, start: Vector) -> tuple[Vector, Tensor]:
        x, r = start, b - a(start)
        goal = tol * inner(b, b).sqrt()
        active = inner(r, r).sqrt() > goal
        count = torch.zeros_like(goal)
        width = min(restart, b.shape[0])
        for _ in range(max_restarts):
            if finished(active):
                break
            x = torch.where(active, x + _krylov(a, r, width), x)
            r = b - a(x)
            count = count + width * active
            active = active & (inner(r, r).sqrt() > goal)
        return x, count

    return Solver("gmres", iterate, symmetric=False, tol=tol)


def _krylov(a: MatVec, r: Vector, width: int) -> Vector:
    """argmin ‖r − A z‖ over the Krylov space of ``width`` vectors."""
    beta = inner(r, r).sqrt()
    basis = [r / safe(beta)]
    columns = []
    scale = torch.finfo(r.dtype).eps * 10
    for k in range(width):
        w = a(basis[k])
        size = inner(w, w).sqrt()
        v = torch.stack(basis)
        h = v @ w
        w = w - h @ v
        more = v @ w  # once more, or rounding spoils the basis
        w, h = w - more @ v, h + more
        norm = inner(w, w).sqrt()
        norm = torch.where(norm > scale * size, norm, 0.0)  # else the space is exhausted
        basis.append(torch.where(norm > 0, w / safe(norm), 0.0))
        columns.append(torch.cat([h, norm[None], torch.zeros_like(r[:1]).expand(width - k - 1)]))
    hessenberg = torch.stack(columns, 1)
    target = torch.cat([beta[None], torch.zeros_like(r[:1]).expand(width)])
    y = torch.linalg.pinv(hessenberg, rtol=scale) @ target
    return y @ torch.stack(basis[:-1])
