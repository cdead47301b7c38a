"""Learned rates and betas: closed forms, finite differences, and runs that get better."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metaopt as mo
from metaopt import hypergrad as hg
from metaopt.errors import ArgumentError

DOUBLE = torch.float64


def f64(x: Any) -> Tensor:
    return torch.tensor(x, dtype=DOUBLE)


def quadratic(params: Tensor, batch: Tensor) -> Tensor:
    return (batch * params * params).sum() / 2


def problem(opt: mo.Optimizer, curvature: Any = (0.5, 1.0, 2.0), steps: int = 6) -> hg.Problem:
    q = f64(curvature)
    return hg.Problem(quadratic, opt, q, steps, params=torch.ones_like(q))


def test_one_step_finds_the_cauchy_step() -> None:
    """17: for T = 1 the best rate is gᵀg/gᵀAg."""
    run = problem(mo.optim.sgd(lr=f64(0.01)), steps=1)
    g = run.batch * run.params
    learned = mo.learn_hparams(run, meta_steps=300).hparams
    assert abs(learned.lr - (g @ g) / (g @ (run.batch * g))) < 1e-6


def test_a_rate_a_leaf_finds_the_inverse_curvatures() -> None:
    q = [f64(0.5), f64(4.0)]
    loss = lambda p, b: sum(a * x * x for a, x in zip(b, p, strict=True)) / 2
    opt = mo.optim.sgd(lr=[f64(0.1), f64(0.1)])
    run = hg.Problem(loss, opt, q, 1, params=[f64(1.0), f64(1.0)])
    learned = mo.learn_hparams(run, meta_steps=400).hparams
    torch.testing.assert_close(learned.lr, [f64(2.0), f64(0.25)], rtol=1e-4, atol=0)


def test_two_steps_find_chebyshev_rates() -> None:
    """A rate a step: on a spectrum of two curvatures two steps solve it, with rates 1/λ₁ and 1/λ₂."""
    opt = mo.optim.sgd(lr=f64([0.6, 0.4]))
    run = problem(opt, (1.0, 3.0), None)._replace(batch=f64([[1.0, 3.0]] * 2), outer_batch=f64([1.0, 3.0]))
    run = run._replace(params=torch.ones(2, dtype=DOUBLE), per_step_hparams=True)
    out = mo.learn_hparams(run, meta_steps=400, meta_opt=mo.optim.adam(0.02))
    assert out.values[-1] < 1e-6 < out.values[0]
    torch.testing.assert_close(out.hparams.lr.sort().values, f64([1 / 3, 1.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "opt",
    [
        mo.optim.adam(lr=f64(0.01), betas=(f64(0.9), f64(0.999)), eps_root=1e-8),
        mo.optim.sgd(lr=f64(0.01), momentum=f64(0.5)),
        mo.optim.sgd(lr=f64(0.01), momentum=f64(0.5), weight_decay=f64(0.1), nesterov=True),
        mo.optim.rmsprop(lr=f64(0.01), alpha=f64(0.9), eps=1e-3),
        mo.optim.nadam(lr=f64(0.01), betas=(f64(0.9), f64(0.99))),
    ],
    ids=["adam", "momentum", "nesterov", "rmsprop", "nadam"],
)
def test_every_hyperparameter_moves_and_the_run_gets_better(opt: mo.Optimizer) -> None:
    run = problem(opt)
    decays = {"alpha": "logit"} if hasattr(opt.hparams, "alpha") else {}
    out = mo.learn_hparams(run, meta_steps=25, coordinates=decays)
    assert out.values[-1] < 0.8 * out.values[0]
    for field, old, new in zip(opt.hparams._fields, opt.hparams, out.hparams, strict=True):
        if isinstance(old, Tensor):
            assert new != old, field
            assert field not in ("beta1", "beta2", "momentum") or 0 < new < 1
        else:
            assert new == old


def test_the_first_step_is_the_finite_difference() -> None:
    """With SGD for z: z' − z = −η dF/dz, F by running the whole training at z ± h."""
    opt = mo.optim.adam(lr=f64(0.05), betas=(f64(0.8), f64(0.95)), eps_root=1e-8)
    run = problem(opt)

    def value(z: Tensor) -> float:
        hparams = opt.hparams._replace(lr=z[0].exp(), beta1=z[1].sigmoid(), beta2=z[2].sigmoid())
        return float(
            quadratic(mo.unroll(quadratic, opt, run.params, run.batch, 6, hparams).params, run.batch)
        )

    h = opt.hparams
    z = torch.stack([h.lr.log(), h.beta1.logit(), h.beta2.logit()])
    out = mo.learn_hparams(run, meta_steps=1, meta_opt=mo.optim.sgd(lr=1.0)).hparams
    moved = torch.stack([out.lr.log(), out.beta1.logit(), out.beta2.logit()]) - z
    step = 1e-5 * torch.eye(3, dtype=DOUBLE)
    slope = f64([(value(z + e) - value(z - e)) / 2e-5 for e in step])
    torch.testing.assert_close(-moved, slope, rtol=1e-6, atol=1e-9)


def test_any_estimator_and_any_coordinate() -> None:
    opt = mo.optim.sgd(lr=f64(0.1), weight_decay=f64(0.5))
    reverse = mo.learn_hparams(problem(opt), meta_steps=3)
    forward = mo.learn_hparams(problem(opt), meta_steps=3, estimator=hg.forward)
    torch.testing.assert_close(reverse, forward)
    free = mo.learn_hparams(problem(opt), meta_steps=3, coordinates={"lr": "linear", "weight_decay": "log"})
    assert free.hparams.lr != reverse.hparams.lr
    assert free.hparams.weight_decay > 0
    with pytest.raises(
        ArgumentError, match=r"learn_hparams\(coordinates\): expected 'log', .* got lr: 'root'"
    ):
        mo.learn_hparams(problem(opt), meta_steps=1, coordinates={"lr": "root"})
    with pytest.raises(ArgumentError, match="got beta3: 'log'"):
        mo.learn_hparams(problem(opt), meta_steps=1, coordinates={"beta3": "log"})
    with pytest.raises(ArgumentError, match="at least one floating-point tensor"):
        mo.learn_hparams(problem(mo.optim.sgd(lr=0.1)), meta_steps=1)
