"""Implicit estimates: closed forms 7 and 12, agreement with unrolled, residuals that tell the truth."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios
import torch
from scenarios import assert_close, f64

import metaopt as mo
from metaopt import hypergrad as hg
from metaopt import linsolve
from metaopt.errors import ArgumentError

SOLVERS = {
    "cg": linsolve.cg(40, 1e-14),
    "normal_cg": linsolve.normal_cg(60, 1e-15),
    "gmres": linsolve.gmres(8, 4, 1e-14),
    "bicgstab": linsolve.bicgstab(40, 1e-14),
    "dense": linsolve.dense(),
}
solvers = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())


@solvers
@pytest.mark.parametrize("make", [scenarios.ridge, scenarios.imaml], ids=lambda f: f.__name__)
@pytest.mark.parametrize("estimator", [hg.implicit, hg.fixed_point], ids=lambda f: f.__name__)
def test_closed_forms(make: Any, solve: Any, estimator: Any) -> None:
    scenario = make()
    result = estimator(scenario.problem, scenario.phi, solve=solve)
    assert_close(result.grad, scenario.truth)
    assert result.aux.optimality < 1e-12
    assert result.aux.solve.residual < 1e-12


def test_imaml_at_the_proximal_point_is_the_total_derivative() -> None:
    """(I+Q/λ)⁻¹Q(θ*−c) is the derivative of F(θ*(φ)): both ways of writing 12 agree."""
    scenario = scenarios.imaml()
    q, centre = scenario.problem.batch
    (prior,) = scenario.phi.phi

    def value(prior: torch.Tensor) -> torch.Tensor:
        point = torch.linalg.solve(q + 0.6 * torch.eye(4).double(), q @ centre + 0.6 * prior)
        return scenarios.quadratic(point, (q, centre))

    assert_close(torch.func.grad(value)(prior), scenario.truth.phi[0])


@pytest.mark.parametrize("estimator", [hg.implicit, hg.fixed_point], ids=lambda f: f.__name__)
def test_the_limit_of_many_steps(estimator: Any) -> None:
    """From afar, 300 steps: all agree with backpropagation through all of them."""
    scenario = scenarios.imaml()
    problem = scenario.problem._replace(num_steps=300, params=torch.zeros(4).double())
    want = hg.unrolled(problem, scenario.phi)
    got = estimator(problem, scenario.phi, solve=SOLVERS["dense"])
    assert_close(got.grad, want.grad, 1e-10)
    assert_close(got.value, want.value, 1e-12)


@pytest.mark.parametrize("opt", ["sgd", "momentum", "adam"])
def test_fixed_points_see_weight_decay_through_any_state(opt: str) -> None:
    decay = f64(0.2)
    made = {
        "sgd": mo.optim.sgd(lr=0.3, weight_decay=decay),
        "momentum": mo.optim.sgd(lr=0.1, momentum=0.5, weight_decay=decay),
        "adam": mo.optim.adam(lr=0.02, weight_decay=decay, eps=1.0),
    }[opt]
    a, b = f64(1.5), f64(0.8)
    problem = hg.Problem(scenarios.scalar_quadratic, made, (a, b), 0, scenarios.itself)
    problem = problem._replace(params=a * b / (a + decay))
    grad = hg.fixed_point(problem, mo.Meta(None, made.hparams), solve=linsolve.dense()).grad
    assert_close(grad.hparams.weight_decay, -a * b / (a + decay) ** 2)


def test_neumann_at_the_optimum_is_truncated_backpropagation() -> None:
    """At θ* with α the inner step size, K terms past the first are K+1 steps."""
    scenario = scenarios.ridge()
    series = hg.implicit(scenario.problem, scenario.phi, solve=linsolve.neumann(4, 0.05)).grad
    steps = hg.unrolled(scenario.problem._replace(num_steps=5), scenario.phi).grad
    assert_close(series, steps)
    one = hg.one_step(scenario.problem._replace(num_steps=1), scenario.phi).grad
    direct = hg.fixed_point(scenario.problem, scenario.phi, solve=linsolve.neumann(1)).grad
    assert_close(hg.truncated(scenario.problem._replace(num_steps=2), scenario.phi, last=2).grad, direct)
    assert (one.phi[0] - direct.phi[0]).abs() > 1e-4


@pytest.mark.parametrize("estimator", [hg.implicit, hg.fixed_point, hg.one_step], ids=lambda f: f.__name__)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_tasks_mapped_equal_tasks_looped(estimator: Any, chunk_size: int | None) -> None:
    scenario = scenarios.imaml()
    problem = scenario.problem._replace(num_steps=3)
    batches = mo.tree.stack([(scenarios.positive(4, t), scenarios.vector(4, t)) for t in range(3)])

    def estimate(phi: Any, batch: Any) -> Any:
        result = estimator(problem._replace(batch=batch), phi)
        return result.grad, result.value, result.aux

    mapped = mo.map_tasks(estimate, how="vmap", chunk_size=chunk_size)(scenario.phi, batches)
    for t in range(3):
        single = estimate(scenario.phi, mo.tree.index(batches, t))
        assert_close(mo.tree.index(mapped[:2], t), single[:2], 1e-10)


def test_an_implicit_estimate_can_be_differentiated_again() -> None:
    """d²/dλ² of F(w(λ)) by the estimate's own derivative and by the closed form's."""
    scenario = scenarios.ridge()
    x, y = scenario.problem.batch
    target, eye = scenarios.vector(3, 18), torch.eye(3).double()

    def value(decay: torch.Tensor) -> torch.Tensor:
        w = torch.linalg.solve(x.T @ x + decay * eye, x.T @ y)
        return ((w - target) ** 2).sum() / 2

    want = torch.func.grad(torch.func.grad(value))(f64(0.7))
    problem = scenario.problem._replace(num_steps=600, params=torch.zeros(3).double())
    decay = f64(0.7).requires_grad_()
    for estimator in (hg.implicit, hg.fixed_point):
        result = estimator(problem, mo.Meta(None, None, (decay,)), solve=SOLVERS["dense"])
        (second,) = torch.autograd.grad(result.grad.phi[0], decay)
        assert_close(second, want, 1e-8)


def test_a_warm_start_needs_no_iteration() -> None:
    scenario = scenarios.imaml()
    first = hg.implicit(scenario.problem, scenario.phi, solve=SOLVERS["cg"])
    solve = linsolve.cg(40, 1e-10)
    again = hg.implicit(scenario.problem, scenario.phi, solve=solve, start=first.aux.adjoint)
    assert first.aux.solve.num_iters > 1
    assert again.aux.solve.num_iters == 0
    assert_close(again.grad, scenario.truth)


@pytest.mark.parametrize(("curvature", "kind"), [(0.0, "singular"), (-1.0, "indefinite")])
def test_a_bad_hessian_shows_in_the_residual(curvature: float, kind: str) -> None:
    h = torch.diag(torch.tensor([1.0, curvature])).double()
    problem = hg.Problem(
        lambda p, b, t: p @ b @ p / 2 + (p * t).sum(),
        mo.optim.sgd(lr=0.1),
        h,
        0,
        lambda p, b, t: (p + 1).sum() + p[1],
        params=torch.zeros(2).double(),
    )
    result = hg.implicit(problem, mo.Meta(None, None, (torch.ones(2).double(),)))
    assert not result.aux.solve.converged
    assert result.aux.solve.residual > 0.1


def test_phi_that_an_implicit_estimate_cannot_see_is_named() -> None:
    scenario = scenarios.imaml()
    opt = mo.optim.sgd(lr=f64(0.1))
    with pytest.raises(ArgumentError, match=r"implicit\(phi\): .* at hparams.lr. A stationary point"):
        hg.implicit(scenario.problem, scenario.phi._replace(hparams=opt.hparams))
    with pytest.raises(ArgumentError, match=r"fixed_point\(phi\): .* Use|use unrolled"):
        hg.fixed_point(scenarios.init_of_scalar().problem, f64(1.0))
