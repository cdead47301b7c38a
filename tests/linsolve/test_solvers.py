"""Every solver: the solution, its derivatives of two orders, tasks that do not disturb each other."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios
import torch
from scenarios import assert_close

import metaopt as mo
from metaopt import linsolve
from metaopt.errors import ArgumentError, CaptureError, StructureError

ROWS: dict[str, linsolve.Solver] = {
    "cg": linsolve.cg(30, 1e-14),
    "normal_cg": linsolve.normal_cg(30, 1e-15),
    "gmres": linsolve.gmres(8, 4, 1e-14),
    "gmres restarted": linsolve.gmres(3, 40, 1e-14),
    "bicgstab": linsolve.bicgstab(30, 1e-14),
    "neumann": linsolve.neumann(250, 0.6),
    "nystrom": linsolve.nystrom(rank=5, rho=1e-6),
    "dense": linsolve.dense(),
}
TOL = {"nystrom": 1e-5}
every = pytest.mark.parametrize("name", ROWS)
N = 5


def product(x: Any, matrix: torch.Tensor) -> Any:
    return matrix @ x


def test_every_public_solver_has_a_row() -> None:
    public = {n for n in linsolve.__all__ if n[0].islower()}
    assert public == {name.split()[0] for name in ROWS}


@every
def test_solves(name: str) -> None:
    matrix, b = scenarios.positive(N, 1), scenarios.vector(N, 2)
    x, info = ROWS[name](product, b, matrix)
    assert_close(x, torch.linalg.solve(matrix, b), TOL.get(name, 1e-12))
    assert info.residual < TOL.get(name, 1e-12)
    assert info.num_iters >= 1


@every
def test_a_tree_is_a_vector(name: str) -> None:
    b = {"w": scenarios.vector(4, 3).reshape(2, 2), "b": scenarios.f64(1.0)}
    x, _ = ROWS[name](lambda t: mo.tree.scale(t, 1.25), b)
    assert_close(x, mo.tree.scale(b, 0.8), TOL.get(name, 1e-12))


@every
def test_derivatives_of_two_orders(name: str) -> None:
    root, b = torch.diag(torch.linspace(0.8, 1.2, N)).double(), scenarios.vector(N, 2)
    root[0, 1] = 0.1

    shift = 0.1 if name == "nystrom" else 0.0  # of full rank it solves (A + ρI)x = b, exactly
    solver = linsolve.nystrom(N, shift) if shift else ROWS[name]

    def solve(root: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return solver(product, b, root.T @ root).value

    inputs = (root.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(solve, inputs)
    assert torch.autograd.gradgradcheck(solve, inputs)
    jacobian = torch.func.jacfwd(solve, 1)(root.detach(), b.detach())
    assert_close(jacobian, torch.linalg.inv(root.T @ root + shift * torch.eye(N).double()).detach(), 1e-10)


@every
def test_a_task_with_a_zero_right_hand_side_disturbs_no_other(name: str) -> None:
    matrices = torch.stack([scenarios.positive(N, s) for s in (1, 2, 3)])
    b = torch.stack([scenarios.vector(N, 4), torch.zeros(N).double(), scenarios.vector(N, 5)])
    x, info = torch.vmap(lambda m, r: ROWS[name](product, r, m))(matrices, b)
    assert_close(x, torch.linalg.solve(matrices, b), TOL.get(name, 1e-12))
    assert info.residual[1] == 0
    assert bool((x[1] == 0).all())

    slope = torch.vmap(torch.func.grad(lambda r, m: ROWS[name](product, r, m).value.sum()))(b, matrices)
    assert_close(slope, torch.linalg.solve(matrices, torch.ones(3, N).double()), TOL.get(name, 1e-12))


@every
def test_a_warm_start_at_the_solution_stays_there(name: str) -> None:
    matrix, b = scenarios.positive(N, 1), scenarios.vector(N, 2)
    x = torch.linalg.solve(matrix, b)
    again, info = ROWS[name](product, b, matrix, start=x)
    assert_close(again, x, TOL.get(name, 1e-12))
    assert info.residual < 1e-5


@pytest.mark.parametrize("name", ["normal_cg", "gmres", "bicgstab", "dense"])
def test_indefinite_and_unsymmetric_matrices(name: str) -> None:
    matrix = torch.tensor([[1.0, 2.0, 0.0], [-0.5, -2.0, 1.0], [0.3, 0.0, 3.0]]).double()
    b = scenarios.vector(3, 2)
    solver = {"normal_cg": linsolve.normal_cg(60, 1e-15)}.get(name, ROWS[name])
    assert_close(solver(product, b, matrix).value, torch.linalg.solve(matrix, b), 1e-11)
    slope = torch.func.grad(lambda r: solver(product, r, matrix).value[0])(b)
    assert_close(slope, torch.linalg.inv(matrix)[0], 1e-11)


@every
def test_a_singular_matrix_shows_in_the_residual(name: str) -> None:
    matrix, b = torch.diag(torch.tensor([1.0, 1.5, 0.0])).double(), torch.ones(3).double()
    _, info = ROWS[name](product, b, matrix)
    assert not info.converged
    assert not info.residual < 0.1


def test_cg_refuses_negative_curvature() -> None:
    matrix = torch.diag(torch.tensor([1.0, -1.0])).double()
    _, info = ROWS["cg"](product, torch.tensor([0.5, 1.0]).double(), matrix)
    assert not info.converged
    assert info.residual > 0.1


@pytest.mark.parametrize("terms", [1, 2, 5, 20])
def test_the_error_of_the_neumann_series(terms: int) -> None:
    """8. K terms past the first: [I − (I − αH)^{K+1}] H⁻¹v."""
    h, v, alpha = scenarios.positive(N, 1), scenarios.vector(N, 2), 0.4
    eye = torch.eye(N, dtype=torch.float64)
    want = (eye - torch.linalg.matrix_power(eye - alpha * h, terms + 1)) @ torch.linalg.solve(h, v)
    assert_close(linsolve.neumann(terms, alpha)(product, v, h).value, want)


def test_nystrom_of_low_rank_is_its_formula() -> None:
    c = scenarios.vector(2 * N, 3).reshape(N, 2)
    h, b, rho = c @ c.T, scenarios.vector(N, 2), 0.3
    x, info = linsolve.nystrom(rank=3, rho=rho)(product, b, h)
    assert_close(x, torch.linalg.solve(h + rho * torch.eye(N).double(), b), 1e-10)
    assert not info.converged


def test_masks_freeze_a_finished_task() -> None:
    """Iterations are counted per task: one that is done in one step does not go on."""
    matrices = torch.stack([torch.eye(N).double(), scenarios.positive(N, 2)])
    b = torch.stack([scenarios.vector(N, 1)] * 2)
    counts = torch.vmap(lambda m, r: linsolve.cg(20, 1e-10)(product, r, m).aux.num_iters)(matrices, b)
    assert counts[0] == 1
    assert 1 < counts[1] <= N + 1


def test_bad_input() -> None:
    matrix = torch.eye(2, requires_grad=True)
    with pytest.raises(CaptureError, match="`matrix`"):
        linsolve.cg()(lambda x: matrix @ x, torch.ones(2))
    with pytest.raises(StructureError, match=r"cg\(start\): expected shape \[2\], got \[3\]"):
        linsolve.cg()(lambda x: x, torch.ones(2), start=torch.ones(3))
    with pytest.raises(StructureError, match=r"cg\(b\): expected a floating-point tensor, got torch.int64"):
        linsolve.cg()(lambda x: x, torch.ones(2, dtype=torch.int64))
    with pytest.raises(ArgumentError, match=r"cg\(b\): expected at least one tensor"):
        linsolve.cg()(lambda x: x, ())
    with pytest.raises(StructureError, match=r"cg\(matvec\)"):
        linsolve.cg()(lambda x: {"other": x}, torch.ones(2))


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda: linsolve.cg(0), r"cg\(max_iters\)"),
        (lambda: linsolve.cg(tol=-1), r"cg\(tol\)"),
        (lambda: linsolve.normal_cg(True), r"normal_cg\(max_iters\)"),
        (lambda: linsolve.gmres(restart=0), r"gmres\(restart\)"),
        (lambda: linsolve.gmres(max_restarts=0), r"gmres\(max_restarts\)"),
        (lambda: linsolve.bicgstab(tol=float("nan")), r"bicgstab\(tol\)"),
        (lambda: linsolve.neumann(0), r"neumann\(num_terms\)"),
        (lambda: linsolve.neumann(scale=0.0), r"neumann\(scale\)"),
        (lambda: linsolve.nystrom(rho=0.0), r"nystrom\(rho\)"),
        (lambda: linsolve.dense(tol=None), r"dense\(tol\)"),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range_are_named(call: Any, where: str) -> None:
    with pytest.raises(ArgumentError, match=where):
        call()
