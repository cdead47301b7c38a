"""The direct solution, for small systems and for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.linsolve._solver import MatVec, Solver, Vector, check_tol

__all__ = ["dense"]


def dense(tol: float = 1e-6) -> Solver:
    """A as a matrix, by n products, and LU.

    A singular A gives a residual that is not finite; nothing is raised, so that under vmap the other
    tasks keep their solutions.

    Args: tol: compared with the residual for ``converged``.
    Returns: Solver.
    Raises: ArgumentError.
    Cost: n products with A at once, n² numbers, n³ operations.

    >>> dense()(lambda x: 4 * x, torch.ones(1)).value
    tensor([0.2500])
    """
    check_tol("dense(tol)", tol)

    def iterate(a: MatVec, a_t: MatVec, b: Vector, start: Vector) -> tuple[Vector, Tensor]:
        matrix = torch.vmap(a, out_dims=1)(torch.eye(b.shape[0], dtype=b.dtype, device=b.device))
        x, _ = torch.linalg.solve_ex(matrix, b)
        return x, torch.ones((), dtype=b.dtype, device=b.device)

    return Solver("dense", iterate, symmetric=False, tol=tol)
