"""Stabilised biconjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.errors import check_at_least
from metaopt.linsolve._solver import MatVec, Solver, Vector, check_tol, finished, inner, safe

__all__ = ["bicgstab"]


def bicgstab(max_iters: int = 100, tol: float = 1e-6) -> Solver:
    """BiCGSTAB for any non-singular A, without products with Aᵀ.

    ::

        α = ρ / r̂ᵀAp,   s = r − αAp,   ω = (As)ᵀs / (As)ᵀ(As)
        x ← x + αp + ωs,   r ← s − ωAs,   ρ' = r̂ᵀr,   p ← r + (ρ'/ρ)(α/ω)(p − ωAp)

    Args: max_iters, tol: as in `cg`.
    Returns: Solver; its residual says where it broke down (r̂ᵀAp or ω near 0).
    Raises: ArgumentError.
    Cost: two products with A an iteration, 7 vectors.
    Source: van der Vorst 1992, doi:10.1137/0913035.

    >>> a = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    >>> bicgstab()(lambda x: a @ x, torch.tensor([3.0, 1.0])).value.round(decimals=5)
    tensor([1., 1.])
    """
    check_at_least("bicgstab(max_iters)", max_iters, 1)
    check_tol("bicgstab(tol)", tol)

    def iterate(a: MatVec, a_t: MatVec, b: Vector, start: Vector) -> tuple[Vector, Tensor]:
        x, r = start, b - a(start)
        shadow, p, rho = r, r, inner(r, r)
        goal = tol**2 * inner(b, b)
        active, count = rho > goal, torch.zeros_like(rho)
        for _ in range(max_iters):
            if finished(active):
                break
            ap = a(p)
            slant = inner(shadow, ap)
            active = active & (slant != 0)
            alpha = torch.where(active, rho / safe(slant), 0.0)
            s = r - alpha * ap
            az = a(s)
            omega = torch.where(active, inner(az, s) / safe(inner(az, az)), 0.0)
            x = x + alpha * p + omega * s
            r = torch.where(active, s - omega * az, r)
            new = inner(shadow, r)
            beta = (new / safe(rho)) * (alpha / safe(omega))
            p = torch.where(active, r + beta * (p - omega * ap), p)
            rho = torch.where(active, new, rho)
            count = count + active
            active = active & (inner(r, r) > goal) & (omega != 0) & (rho != 0)
        return x, count

    return Solver("bicgstab", iterate, symmetric=False, tol=tol)
