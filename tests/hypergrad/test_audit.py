"""audit tells the estimators apart; plan predicts what it measures; bad inputs are named."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
import scenarios
import torch
from scenarios import f64

import metaopt as mo
from metaopt import hypergrad as hg
from metaopt.errors import ArgumentError, CaptureError, DivergenceError
from metaopt.peak import peak_memory


def net(p: Any, batch: Any) -> Any:
    x, y = batch
    return ((torch.tanh(torch.tanh(x @ p[0] + p[1]) @ p[2]) @ p[3] - y) ** 2).mean()


def small_net(num_steps: int) -> hg.Problem:
    g = torch.Generator().manual_seed(0)
    shapes = [(1, 20), (20,), (20, 20), (20, 1)]
    params = [0.3 * torch.randn(s, generator=g) for s in shapes]
    x = torch.randn(30, 1, generator=g)
    return hg.Problem(net, mo.optim.sgd(lr=0.05), (x, torch.sin(3 * x)), num_steps, params=params)


def test_the_audit_of_a_converged_problem() -> None:
    scenario = scenarios.imaml()
    problem = scenario.problem._replace(num_steps=32, params=torch.zeros(4).double())
    report = mo.audit(problem, scenario.phi)
    rows = {r.name: r for r in report.rows}
    for name in ("unrolled", "mixed", "forward"):
        assert rows[name].error < 1e-12
        assert abs(rows[name].cosine - 1) < 1e-12
        assert rows[name].slope_error < 1e-6
    assert rows["implicit"].residual < 1e-6
    assert rows["implicit"].optimality < 0.1
    assert rows["truncated 4"].error > rows["truncated 8"].error > rows["truncated 16"].error
    assert rows["one_step"].error > rows["truncated 4"].error
    assert "first_order(phi)" in rows["first_order"].note
    assert all(r.note or (r.seconds > 0 and r.peak > 0) for r in report.rows)
    text = str(report)
    assert text.splitlines()[0].split()[:2] == ["estimator", "cosine"]


def test_the_audit_of_a_module_whose_parameters_require_grad() -> None:
    params = [p.requires_grad_() for p in small_net(4).params]
    report = mo.audit(small_net(4)._replace(params=params), params)
    assert {r.name for r in report.rows if r.residual == r.residual} == set()
    loss = lambda p, b, phi: net(p, b) * phi
    problem = small_net(4)._replace(loss_fn=loss, params=params)
    report = mo.audit(problem, mo.Meta(None, None, (torch.tensor(1.0),)))
    assert {r.name for r in report.rows if r.residual == r.residual} == {"implicit", "fixed_point"}


def test_more_slots_never_need_less() -> None:
    problem = hg.Problem(lambda p, b: (p**2).sum(), mo.optim.sgd(lr=0.1), num_steps=64, params=torch.ones(2))
    peaks = [s.peak for s in mo.plan(problem).strategies if isinstance(s.memory, mo.Binomial)]
    assert peaks == sorted(peaks)
    assert peaks[0] > 0


@pytest.mark.parametrize("outer_every", [None, 5])
def test_a_plan_predicts_the_peak_within_a_fifth(outer_every: int | None) -> None:
    problem = small_net(40)._replace(outer_every=outer_every)
    plan = mo.plan(problem)
    for strategy in (s for s in plan.strategies if s.memory not in [mo.Binomial(n) for n in (2, 16, 32)]):
        gc.collect()
        peak, _ = peak_memory(lambda m=strategy.memory: hg.unrolled(problem, problem.params, memory=m))
        assert abs(strategy.peak - peak) < 0.2 * peak, f"{strategy} against {peak}"


def test_a_plan_predicts_the_time() -> None:
    """Within a factor of three, the clock of a busy machine; and the strategies in their order."""
    problem = small_net(60)
    plan = mo.plan(problem)
    seconds = {str(s.memory): s.seconds for s in plan.strategies}
    assert seconds["all"] < seconds["sqrt"] < seconds["Binomial(slots=2)"]
    for memory in ("all", "sqrt", mo.Offload(), mo.Binomial(4)):
        spent = []
        for _ in range(3):
            start = time.perf_counter()
            hg.unrolled(problem, problem.params, memory=memory)
            spent.append(time.perf_counter() - start)
        kind = next(
            s
            for s in plan.strategies
            if type(s.memory) is type(memory) and (s.memory == memory or isinstance(memory, mo.Offload))
        )
        assert min(spent) / 3 < kind.seconds < 3 * max(spent), f"{kind} against {spent}"


def test_a_plan_keeps_the_budget() -> None:
    problem = small_net(40)
    whole = mo.plan(problem)
    tight = mo.plan(problem, budget=whole.strategies[0].peak / 2)
    assert tight.choice.memory != "all"
    assert tight.choice.peak <= whole.strategies[0].peak / 2
    assert "<- chosen" in str(tight)
    with pytest.raises(ArgumentError, match=r"plan\(budget\): expected at least \d+ bytes, what memory="):
        mo.plan(problem, budget=1000)
    with pytest.raises(ArgumentError, match=r"plan\(problem\): expected at least 16 steps"):
        mo.plan(small_net(4))
    with pytest.raises(ArgumentError, match=r"plan\(problem\): expected at least 80 steps"):
        mo.plan(problem._replace(outer_every=20))


NAMING = [hg.unrolled, hg.first_order, hg.one_step, lambda p, f: hg.truncated(p, f, last=2), hg.mixed]
NAMING += [hg.forward, hg.implicit, hg.fixed_point]
NAMES = ["unrolled", "first_order", "one_step", "truncated", "mixed", "forward", "implicit", "fixed_point"]


@pytest.mark.parametrize("estimator", NAMING, ids=NAMES)
def test_phi_that_does_not_reach_the_loss_is_named(estimator: Any) -> None:
    problem = hg.Problem(
        lambda p, b, used, unused: (p - used) ** 2,
        mo.optim.sgd(lr=0.1),
        (),
        4,
        lambda p, b, used, unused: (p + used) ** 2,
        params=f64(1.0),
    )
    with pytest.raises(ArgumentError, match=r"expected every tensor of phi to reach .* at phi\[1\]"):
        estimator(problem, mo.Meta(None, None, (f64(1.0), f64(2.0))))
    with pytest.raises(ArgumentError, match=r"at phi\[1\]"):
        torch.vmap(lambda t: estimator(problem, mo.Meta(f64(1.0), None, (t, t * 2))).value)(f64([1.0, 2.0]))


EVERY = {
    "unrolled": hg.unrolled,
    "mixed": hg.mixed,
    "forward": hg.forward,
    "one_step": hg.one_step,
    "implicit": hg.implicit,
    "fixed_point": hg.fixed_point,
}
every = pytest.mark.parametrize("name", EVERY)


@every
def test_a_captured_tensor_is_named(name: str) -> None:
    rate = f64(1.0).requires_grad_()
    problem = hg.Problem(lambda p, b, t: rate * (p - t) ** 2, mo.optim.sgd(lr=0.1), (), 2, params=f64(1.0))
    with pytest.raises(CaptureError, match=rf"{name}\(problem\).*`rate`"):
        EVERY[name](problem, mo.Meta(None, None, (f64(1.0),)))


@every
def test_divergence_names_the_step_and_the_task(name: str) -> None:
    problem = hg.Problem(
        lambda p, b, t: (b * p - t) ** 4, mo.optim.sgd(lr=0.5), f64(1.0), 30, params=f64(3.0)
    )
    phi = mo.Meta(None, None, (f64(0.5),))
    with pytest.raises(DivergenceError, match=rf"{name}\(problem\): expected finite .* at step \d+\. Lower"):
        EVERY[name](problem, phi)
    estimate = lambda phi, b: EVERY[name](problem._replace(batch=b), phi).value
    with pytest.raises(DivergenceError, match=r"at step \d+ of task 2"):
        mo.map_tasks(estimate, how="vmap")(phi, f64([0.0, 0.01, 2.0]))


def test_phi_without_tensors_or_parameters_is_refused() -> None:
    problem = hg.Problem(scenarios.quadratic, mo.optim.sgd(lr=0.1), (), 1)
    with pytest.raises(ArgumentError, match=r"unrolled\(phi\): expected at least one floating-point tensor"):
        hg.unrolled(problem, mo.Meta(None, problem.opt.hparams))
    with pytest.raises(ArgumentError, match=r"unrolled\(phi\): expected initial parameters"):
        hg.unrolled(problem, mo.Meta(None, problem.opt.hparams._replace(lr=f64(0.1))))
    with pytest.raises(ArgumentError, match=r"unrolled\(phi.hparams\): expected SGDHParams, got AdamHParams"):
        hg.unrolled(problem, mo.Meta(f64(1.0), mo.optim.adam().hparams))
    with pytest.raises(ArgumentError, match=r"truncated\(last\): expected an integer from 0 to num_steps=1"):
        hg.truncated(problem, f64(1.0), last=2)
    with pytest.raises(ArgumentError, match=r"Problem\(outer_every\): expected a divisor of the 1 steps"):
        hg.unrolled(problem._replace(outer_every=3), f64(1.0))


def test_the_audit_of_momentum() -> None:
    """Its tangents are numbers times known zeros, which torch took the process down for."""
    opt = mo.optim.sgd(lr=0.05, momentum=0.9)
    problem = small_net(3)._replace(opt=opt)
    report = mo.audit(problem, mo.Meta(None, opt.hparams._replace(lr=torch.tensor(0.05))))
    (row,) = [r for r in report.rows if r.name == "forward"]
    assert row.error < 1e-4
    assert row.peak > 0
