"""Evolution strategies against quadrature: closed forms 14 and 16, within four standard errors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scenarios
import torch
from scenarios import assert_close, f64

import metaopt as mo
from metaopt import hypergrad as hg
from metaopt.errors import ArgumentError, DivergenceError

SIGMA = 0.3


def cubic() -> hg.Problem:
    """No inner step: the outer loss is x³."""
    return hg.Problem(lambda p, b: p**3, mo.optim.sgd(lr=0.1), (), 0)


def assert_within(result: Any, truth: Any, errors: float = 4.0) -> None:
    g, s, t = (mo.tree.leaves(x) for x in (result.grad, result.aux.stderr, truth))
    for got, stderr, want in zip(g, s, t, strict=True):
        assert bool(((got - want).abs() <= errors * stderr).all()), f"{got} ± {stderr} against {want}"


@pytest.mark.parametrize("estimator", [hg.es, hg.es_antithetic], ids=lambda f: f.__name__)
def test_es_of_a_cubic(estimator: Any) -> None:
    """16. E = 3x² + 3σ²."""
    x = f64(0.8)
    result = estimator(cubic(), x, sigma=SIGMA, noise=hg.noise(x, 20_000, seed=1))
    assert_within(result, 3 * x**2 + 3 * SIGMA**2)
    assert result.aux.stderr < 0.05


def test_the_quadrature_of_es_is_exact() -> None:
    """With Gauss–Hermite nodes for noise the closed form holds to 1e-12."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(9))
    x = f64(0.8)
    values = hg.es(cubic(), x, sigma=SIGMA, noise=nodes).aux.values
    mean = (weights / weights.sum() * values * nodes).sum() / SIGMA
    assert_close(mean, 3 * x**2 + 3 * SIGMA**2)


def episode() -> hg.Problem:
    """Four steps in windows of two, judged after each window; φ is the logarithm of the step size."""

    def update(params: Any, state: Any, grads: Any, h: Any) -> Any:
        return mo.tree.map(lambda p, g: p - torch.exp(h.lr) * g, params, grads), state

    opt = mo.Optimizer(lambda params: (), update, mo.optim.SGDHParams(f64(-1.0)))
    loss = lambda p, b: torch.log1p(p**2) + 0.1 * torch.sin(3 * p)
    return hg.Problem(loss, opt, (), 4, loss, params=f64(2.0), outer_every=2)


def smoothed(problem: hg.Problem, phi: Any, shared: bool) -> torch.Tensor:
    """The gradient of the smoothed outer value by Gauss–Hermite quadrature over one or two ε."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(31))
    weights = weights / weights.sum()
    pairs = [(i, i) for i in range(31)] if shared else list(itertools.product(range(31), repeat=2))
    first, second = (torch.tensor(column) for column in zip(*pairs, strict=True))
    weight = weights[first] if shared else weights[first] * weights[second]

    def value(lr: torch.Tensor, e1: torch.Tensor, e2: torch.Tensor) -> torch.Tensor:
        p, total = problem.params, 0.0
        for rate in (lr + SIGMA * e1, lr + SIGMA * e2):
            for _ in range(2):
                p = p - torch.exp(rate) * torch.func.grad(problem.loss_fn)(p, ())
            total = total + problem.loss_fn(p, ()) / 2
        return total

    slopes = torch.vmap(torch.func.grad(value), (None, 0, 0))(phi.hparams.lr, nodes[first], nodes[second])
    return (weight * slopes).sum()


def test_pes_is_unbiased_where_truncated_es_is_not() -> None:
    """14."""
    problem = episode()
    phi = mo.Meta(None, problem.opt.hparams)
    n = 20_000
    rows = mo.tree.map(lambda x: x.reshape(n, 2, *x.shape[1:]), hg.noise(phi, 2 * n, seed=2))
    options = {"window": 2, "sigma": SIGMA}
    truth = lambda shared: mo.Meta(
        None, scenarios.only(problem.opt.hparams, lr=smoothed(problem, phi, shared))
    )
    persistent = hg.pes(problem, phi, noise=rows, **options)
    assert_within(persistent, truth(False))
    single = hg.es_single(problem, phi, noise=mo.tree.map(lambda x: x[:, :1], rows), **options)
    assert_within(single, truth(True))
    truncated = hg.truncated_es(problem, phi, noise=rows, **options)
    bias = (truncated.grad.hparams.lr - truth(False).hparams.lr).abs()
    assert bias > 10 * truncated.aux.stderr.hparams.lr


def test_windows_sum_up_to_the_episode() -> None:
    """ES-Single over all windows is antithetic ES; PES in two calls is PES in one."""
    problem = episode()
    phi = mo.Meta(None, problem.opt.hparams)
    eps = hg.noise(phi, 5, seed=3)
    row = mo.tree.map(lambda x: x[:, None], eps)
    whole = hg.es_antithetic(problem, phi, sigma=SIGMA, noise=eps)
    single = hg.es_single(problem, phi, sigma=SIGMA, window=2, noise=row)
    assert_close(single.grad, whole.grad)
    assert_close(single.value, whole.value)
    rows = mo.tree.map(lambda x: x.reshape(5, 2), hg.noise(phi, 10, seed=4))
    half = [mo.tree.map(lambda x, w=w: x[:, w : w + 1], rows) for w in (0, 1)]
    once = hg.pes(problem, phi, window=2, sigma=SIGMA, noise=rows)
    one = hg.pes(problem, phi, window=2, sigma=SIGMA, noise=half[0], num_windows=1)
    two = hg.pes(problem, phi, window=2, sigma=SIGMA, noise=half[1], particles=one.aux.particles)
    assert_close(mo.tree.add(one.grad, two.grad), once.grad)
    assert two.aux.particles.start == 4


@pytest.mark.parametrize("estimator", [hg.es, hg.es_antithetic], ids=lambda f: f.__name__)
def test_es_finds_the_gradient_of_all_parts_of_phi(estimator: Any) -> None:
    scenario = scenarios.everything(3)
    noise = hg.noise(scenario.phi, 4000, seed=5)
    result = estimator(scenario.problem, scenario.phi, sigma=1e-3, noise=noise, chunk_size=1000)
    assert_within(result, hg.unrolled(scenario.problem, scenario.phi).grad)


def test_tasks_mapped_equal_tasks_looped() -> None:
    scenario = scenarios.everything(4)
    noise = hg.noise(scenario.phi, 6, seed=6)
    rows = mo.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), noise)
    batches = [(scenarios.positive(4, t), scenarios.vector(4, t)) for t in range(3)]

    def estimate(phi: Any, batch: Any) -> Any:
        problem = scenario.problem._replace(batch=batch)
        return hg.es(problem, phi, noise=noise).grad, hg.pes(problem, phi, window=2, noise=rows).grad

    mapped = mo.map_tasks(estimate, how="vmap")(scenario.phi, mo.tree.stack(batches))
    for t, batch in enumerate(batches):
        assert_close(mo.tree.index(mapped, t), estimate(scenario.phi, batch))


def test_bad_input() -> None:
    problem, x = cubic(), f64(1.0)
    with pytest.raises(ArgumentError, match=r"es\(sigma\): expected a number > 0"):
        hg.es(problem, x, sigma=0.0)
    with pytest.raises(ArgumentError, match=r"noise\(num_samples\)"):
        hg.es(problem, x, num_samples=0)
    with pytest.raises(ArgumentError, match=r"pes\(window\): expected a divisor of num_steps=4, got 3"):
        hg.pes(episode(), x, window=3)
    with pytest.raises(ArgumentError, match=r"pes\(num_windows\): expected 1 to the 2 windows left, got 5"):
        hg.pes(episode(), x, window=2, num_windows=5)
    with pytest.raises(ArgumentError, match=r"pes\(noise\): expected 2 windows on axis 1, got 1"):
        hg.pes(episode(), x, window=2, noise=torch.ones(3, 1))
    with pytest.raises(DivergenceError, match=r"es\(problem\): expected finite outer values.*sample 1"):
        hg.es(problem, x, noise=f64([0.0, float("inf")]))
