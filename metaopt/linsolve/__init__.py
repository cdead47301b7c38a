"""Linear solvers as values: ``solve(matvec, b, *args, start=None) -> Solution(value, aux)``."""

from metaopt.linsolve._bicgstab import bicgstab
from metaopt.linsolve._cg import cg, normal_cg
from metaopt.linsolve._dense import dense
from metaopt.linsolve._gmres import gmres
from metaopt.linsolve._neumann import neumann
from metaopt.linsolve._nystrom import nystrom
from metaopt.linsolve._solver import Solution, SolveInfo, Solver

__all__ = [
    "Solution",
    "SolveInfo",
    "Solver",
    "bicgstab",
    "cg",
    "dense",
    "gmres",
    "neumann",
    "normal_cg",
    "nystrom",
]
