"""Closed forms, and the laws that every estimator which differentiates steps must meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import scenarios
import torch
from scenarios import EXACT, assert_close

import metaopt as mo
from metaopt import hypergrad as hg

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "unrolled": hg.unrolled,
    "unrolled sqrt": lambda problem, phi: hg.unrolled(problem, phi, memory="sqrt"),
    "truncated all": lambda problem, phi: hg.truncated(problem, phi, last=problem.num_steps),
    "forward": hg.forward,
    "forward chunked": lambda problem, phi: hg.forward(problem, phi, chunk_size=2),
    "mixed": hg.mixed,
}
exact_estimators = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS.keys())


@exact_estimators
@pytest.mark.parametrize("make", EXACT, ids=lambda f: f.__name__)
def test_closed_forms(estimator: Any, make: Any) -> None:
    scenario = make()
    result = estimator(scenario.problem, scenario.phi)
    assert_close(result.grad, scenario.truth)
    assert result.aux.losses.shape == (scenario.problem.num_steps,)


def test_momentum_over_two_steps_is_known_by_hand() -> None:
    scenario = scenarios.momentum_of_scalar(2)
    assert_close(hg.unrolled(scenario.problem, scenario.phi).grad.hparams.momentum, -0.3 * 1.2 * 2.0)


def test_first_order_is_fomaml() -> None:
    scenario = scenarios.fomaml()
    assert_close(hg.first_order(scenario.problem, scenario.phi).grad, scenario.truth)


@exact_estimators
def test_all_parts_of_phi_agree_with_finite_differences(estimator: Any) -> None:
    scenario = scenarios.everything()
    grad = estimator(scenario.problem, scenario.phi).grad
    leaves, structure = mo.tree.flatten(scenario.phi)

    def value(i: int, entry: int, h: float) -> torch.Tensor:
        moved = list(leaves)
        if isinstance(moved[i], torch.Tensor):
            moved[i] = moved[i].clone()
            moved[i].view(-1)[entry] += h
        return hg.unrolled(scenario.problem, mo.tree.unflatten(structure, moved)).value

    for i, (leaf, g) in enumerate(zip(leaves, mo.tree.leaves(grad), strict=True)):
        if isinstance(leaf, torch.Tensor):
            slope = torch.stack(
                [(value(i, k, 1e-6) - value(i, k, -1e-6)) / 2e-6 for k in range(leaf.numel())]
            )
            assert (slope - g.reshape(-1)).abs().max() < 1e-7
    assert_close(grad, hg.unrolled(scenario.problem, scenario.phi).grad)


def many(tasks: int = 3) -> tuple[Any, Any, Any]:
    """(estimate of one task's batch, stacked batches, φ)."""
    scenario = scenarios.everything()
    batches = mo.tree.stack(
        [(scenarios.positive(4, 20 + t), scenarios.vector(4, 30 + t)) for t in range(tasks)]
    )
    return scenario, batches, scenario.phi


@exact_estimators
@pytest.mark.parametrize("chunk_size", [None, 2], ids=["vmap", "chunked"])
def test_tasks_mapped_equal_tasks_looped(estimator: Any, chunk_size: int | None) -> None:
    scenario, batches, phi = many()

    def estimate(phi: Any, batch: Any) -> Any:
        return estimator(scenario.problem._replace(batch=batch), phi).grad

    mapped = mo.map_tasks(estimate, how="vmap", chunk_size=chunk_size)(phi, batches)
    for t in range(3):
        single = estimate(phi, mo.tree.index(batches, t))
        assert_close(mo.tree.index(mapped, t), single)


@pytest.mark.parametrize("estimator", [hg.unrolled, hg.forward, hg.mixed], ids=lambda f: f.__name__)
def test_an_estimate_compiles(estimator: Any) -> None:
    scenario = scenarios.everything(steps=2)
    compiled = torch.compile(lambda phi: estimator(scenario.problem, phi).grad, backend="aot_eager")
    assert_close(compiled(scenario.phi), estimator(scenario.problem, scenario.phi).grad)


@exact_estimators
def test_an_estimate_can_be_differentiated_again(estimator: Any) -> None:
    scenario = scenarios.lr_of_scalar(3)
    alpha = scenario.phi.hparams.lr.clone().requires_grad_()
    phi = scenario.phi._replace(hparams=scenario.phi.hparams._replace(lr=alpha))
    (second,) = torch.autograd.grad(estimator(scenario.problem, phi).grad.hparams.lr, alpha)
    a, b = scenario.problem.batch
    assert_close(second, 3 * 2 * a**2 * (1 - alpha.detach() * a) * (2.0 - b))


def test_the_outer_loss_along_the_way() -> None:
    """outer_every averages: the estimate is the mean of those of shorter problems."""
    long = scenarios.everything(6)
    problem = long.problem._replace(outer_every=2)
    parts = [hg.unrolled(scenarios.everything(j).problem, long.phi).grad for j in (2, 4, 6)]
    mean = mo.tree.map(lambda *g: torch.stack(g).mean(0), *parts)
    for estimator in ESTIMATORS.values():
        assert_close(estimator(problem, long.phi).grad, mean)


def test_steps_with_their_own_batch_and_rate() -> None:
    batch = (scenarios.f64([1.0, 2.0, 0.5]), scenarios.f64([0.1, 0.2, 0.3]))
    rates = scenarios.f64([0.1, 0.2, 0.3])
    opt = mo.optim.sgd(lr=rates)
    problem = hg.Problem(
        scenarios.scalar_quadratic,
        opt,
        batch,
        None,
        scenarios.itself,
        (),
        scenarios.f64(1.0),
        per_step_hparams=True,
    )
    phi = mo.Meta(None, opt.hparams)
    want = hg.unrolled(problem, phi).grad
    for estimator in (hg.mixed, hg.forward, lambda p, f: hg.truncated(p, f, last=3)):
        assert_close(estimator(problem, phi).grad, want)
    tail = hg.truncated(problem, phi, last=1).grad.hparams.lr
    assert_close(tail, torch.stack([rates[0] * 0, rates[0] * 0, want.hparams.lr[2]]))


def test_truncation_error_falls_as_declared() -> None:
    """The bias of the last K steps is r^K of the whole: the slope of its logarithm is log r."""
    scenario = scenarios.decay_of_scalar(400)
    r = 1 - 0.3 * (1.5 + 0.2)
    errors = [
        (
            hg.truncated(scenario.problem, scenario.phi, last=k).grad.hparams.weight_decay
            - scenario.truth.hparams.weight_decay
        ).abs()
        for k in range(1, 12)
    ]
    slopes = torch.stack(errors).log().diff()
    assert (slopes - torch.tensor(r, dtype=torch.float64).log()).abs().max() < 1e-6


def test_one_step_is_the_last_step() -> None:
    scenario = scenarios.everything()
    assert_close(
        hg.one_step(scenario.problem, scenario.phi).grad,
        hg.truncated(scenario.problem, scenario.phi, last=1).grad,
    )


def test_mixed_falls_back_where_there_is_no_forward_derivative() -> None:
    opt = mo.optim.sgd(lr=scenarios.f64(0.1))
    x, y = scenarios.vector(6, 1).reshape(3, 2), scenarios.vector(3, 2)
    loss = lambda p, b: torch.nn.functional.huber_loss(b[0] @ p, b[1])
    problem = hg.Problem(loss, opt, (x, y), 4, params=scenarios.vector(2, 3))
    phi = mo.Meta(None, opt.hparams)
    assert_close(hg.mixed(problem, phi).grad, hg.unrolled(problem, phi).grad)


@exact_estimators
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_the_first_step_of_adam(estimator: Any, eps: float) -> None:
    """15. The inner loss is gθ, so that its gradient is g: dθ_1/dg = −αε/(|g|+ε)²."""
    for g in (0.7, -0.03):
        alpha, opt = 0.1, mo.optim.adam(lr=0.1, eps=eps)
        problem = hg.Problem(lambda p, b, g: g * p, opt, (), 1, lambda p, b, g: p, params=scenarios.f64(0.4))
        found = estimator(problem, mo.Meta(None, None, (scenarios.f64(g),))).grad.phi[0]
        assert_close(found, -alpha * eps / (abs(g) + eps) ** 2)


@pytest.mark.parametrize("last", [0, 1, 2, 4])
def test_truncation_keeps_what_the_outer_loss_has_of_phi_at_every_stop(last: int) -> None:
    loss_fn = lambda p, b, c: p**2 / 2
    problem = mo.hypergrad.Problem(
        loss_fn, mo.optim.sgd(lr=0.5), (), 4, lambda p, b, c: c * p, params=torch.tensor(4.0), outer_every=1
    )
    phi = mo.Meta(None, None, (torch.tensor(3.0),))
    found = mo.hypergrad.truncated(problem, phi, last=last)
    mean = (2 + 1 + 0.5 + 0.25) / 4  # F = c · mean θ_j, and no θ_j depends on c
    torch.testing.assert_close((found.value, found.grad.phi[0]), (torch.tensor(3 * mean), torch.tensor(mean)))


def _stated(**change: Any) -> Any:
    problem = mo.hypergrad.Problem(lambda p, b: p**2, mo.optim.sgd(0.1), (), 20, params=torch.tensor(1.0))
    return problem._replace(**change)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: mo.hypergrad.unrolled(None, torch.ones(1)), r"unrolled\(problem\): expected a hypergrad"),
        (lambda: mo.hypergrad.es(None, torch.ones(1)), r"es\(problem\): expected a hypergrad.Problem"),
        (lambda: mo.audit(None, torch.ones(1)), r"unrolled\(problem\): expected a hypergrad.Problem"),
        (
            lambda: mo.hypergrad.implicit(_stated(outer_every=2), torch.tensor(1.0)),
            r"implicit\(problem.outer_every\): expected None, got 2",
        ),
        (
            lambda: mo.hypergrad.fixed_point(_stated(), torch.tensor(1.0), solve=3),
            r"fixed_point\(solve\): expected a metaopt.linsolve solver, got int",
        ),
        (lambda: mo.hypergrad.forward(_stated(), torch.tensor(1.0), chunk_size=-1), r"forward\(chunk_size\)"),
        (lambda: mo.hypergrad.es(_stated(), torch.tensor(1.0), chunk_size=0), r"es\(chunk_size\): expected"),
        (lambda: mo.plan(_stated(params=None)), r"plan\(phi\): expected initial parameters"),
        (
            lambda: mo.plan(_stated(), "1MB"),
            r"plan\(budget\): expected a number of bytes",
        ),
    ],
)
def test_bad_input_at_the_doors_of_estimators(call: Any, text: str) -> None:
    with pytest.raises(mo.errors.ArgumentError, match=text):
        call()
