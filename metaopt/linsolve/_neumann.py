"""The Neumann series."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, check_at_least
from metaopt.linsolve._solver import MatVec, Solver, Vector, check_tol, finished, inner

__all__ = ["neumann"]


def neumann(num_terms: int = 20, scale: Any = 1.0, tol: float = 0.0) -> Solver:
    """The Neumann series, K terms past the first.

    ::

        x = α Σ_{k=0}^{K} (I − αA)^k b = [I − (I − αA)^{K+1}] A⁻¹b

    Converges where the spectral radius of I − αA is below 1: for a Hessian, α < 2/‖H‖; for the fixed
    point of a contraction, A = I − J with α = 1. With α the inner step size it is backpropagation
    truncated to K+1 steps at the optimum.

    Args: num_terms: K >= 1.
          scale: α > 0.
          tol: stop early at a term ≤ tol times the first; ``converged`` compares the residual with it.
    Returns: Solver; a warm start x₀ adds the series of b − Ax₀ to x₀.
    Raises: ArgumentError.
    Cost: K products with A, 3 vectors.
    Source: Lorraine et al. 2020, arXiv:1911.02590, Algorithm 3.

    >>> neumann(num_terms=2, scale=0.5)(lambda x: x, torch.ones(1)).value
    tensor([0.8750])
    """
    check_at_least("neumann(num_terms)", num_terms, 1)
    check_tol("neumann(tol)", tol)
    if not isinstance(scale, Tensor) and not (isinstance(scale, (int, float)) and scale > 0):
        raise ArgumentError("neumann(scale)", "a number > 0 or a tensor", repr(scale))

    def iterate(a: MatVec, a_t: MatVec, b: Vector, start: Vector) -> tuple[Vector, Tensor]:
        term = scale * (b - a(start))
        x = start + term
        goal = tol**2 * inner(term, term)
        active, count = inner(term, term) > goal, torch.zeros_like(goal)
        for _ in range(num_terms):
            if finished(active):
                break
            term = term - scale * a(term)
            x = torch.where(active, x + term, x)
            count = count + active
            active = active & (inner(term, term) > goal)
        return x, count

    return Solver("neumann", iterate, symmetric=False, tol=tol)
