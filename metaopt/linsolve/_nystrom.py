"""The Nyström approximation of the inverse."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, check_at_least
from metaopt.linsolve._solver import MatVec, Solver, Vector, check_tol

__all__ = ["nystrom"]


def nystrom(rank: int = 10, rho: float = 1e-2, seed: int = 0, tol: float = 1e-6) -> Solver:
    """(H_k + ρI)⁻¹ b, H_k the Nyström approximation of symmetric H from k of its columns.

    ::

        H_k = C W⁺ Cᵀ,  C = H[:, K],  W = H[K, K]
        x = b/ρ − C (ρW + CᵀC)⁻¹ Cᵀb / ρ                    (Woodbury)

    No iteration, no step size; stable where CG and Neumann are not. It solves another equation than
    A x = b: the residual says how far off it is.

    Args: rank: k, all columns if there are no more.
          rho: ρ > 0.
          seed: of the choice of columns.
          tol: compared with the residual for ``converged``.
    Returns: Solver; a warm start x₀ is corrected by one application.
    Raises: ArgumentError.
    Cost: k products with H, at once under a map; k vectors.
    Source: Hataya & Yamada 2023, arXiv:2302.09726, equation 6.

    >>> nystrom(rank=1, rho=0.5)(lambda x: 1.5 * x, torch.ones(1)).value
    tensor([0.5000])
    """
    check_at_least("nystrom(rank)", rank, 1)
    check_tol("nystrom(tol)", tol)
    if isinstance(rho, bool) or not isinstance(rho, (int, float)) or not rho > 0:
        raise ArgumentError("nystrom(rho)", "a number > 0", repr(rho))

    def iterate(a: MatVec, a_t: MatVec, b: Vector, start: Vector) -> tuple[Vector, Tensor]:
        size = b.shape[0]
        chosen = sorted(random.Random(seed).sample(range(size), min(rank, size)))
        units = torch.zeros(len(chosen), size, dtype=b.dtype, device=b.device)
        units[range(len(chosen)), chosen] = 1.0
        columns = torch.vmap(a)(units)  # rows of H, which are its columns by symmetry
        r = b - a(start)
        small = rho * columns[:, chosen] + columns @ columns.T
        y = torch.linalg.pinv((small + small.T) / 2, hermitian=True) @ (columns @ r)
        return start + (r - y @ columns) / rho, torch.ones((), dtype=b.dtype, device=b.device)

    return Solver("nystrom", iterate, symmetric=True, tol=tol)
