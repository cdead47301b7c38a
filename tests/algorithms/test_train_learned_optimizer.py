"""Meta-training in windows: its gradients by hand, its carry, its phases, and optimizers that get better."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metaopt as mo
from metaopt import hypergrad as hg
from metaopt.algorithms import MetaCarry
from metaopt.errors import ArgumentError, StructureError

DOUBLE = torch.float64
TASKS = mo.quadratics(3, dtype=DOUBLE)
RULE = mo.learned_lstm((4,), dtype=DOUBLE)


def recorder() -> tuple[mo.Optimizer, list[Any]]:
    """An outer optimizer that moves nothing and keeps the gradients it was given."""
    seen: list[Any] = []

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> Any:
        seen.append(grads)
        return params, state

    return mo.Optimizer(lambda params: (), update, ()), seen


def young(carry: MetaCarry) -> MetaCarry:
    """All tasks at the beginning of their episode."""
    return carry._replace(inner=tuple(i._replace(age=i.age * 0) for i in carry.inner))


def windows(steps: int, **options: Any) -> tuple[Any, list[Any], MetaCarry]:
    """``steps`` windows from the beginning of all episodes, with φ held still."""
    meta_opt, seen = recorder()
    options = {"window": 2, "num_steps": 4, "num_tasks": 3, "meta_opt": meta_opt} | options
    start = mo.train_learned_optimizer(RULE, TASKS, meta_steps=0, **options).carry
    out = mo.train_learned_optimizer(RULE, TASKS, meta_steps=steps, carry=young(start), **options)
    return out, seen, start


@pytest.mark.parametrize("order", [1, 2])
def test_truncated_gradient_is_that_of_each_window(order: int) -> None:
    """By a loop over tasks and steps, the carry cut between windows."""
    _, seen, start = windows(2, order=order)
    phi = mo.tree.map(lambda x: x.clone().requires_grad_(), RULE.hparams)
    theta, batch = start.inner[0].params, start.inner[0].batch
    carries = [(theta[i], RULE.init(theta[i])) for i in range(3)]
    for grads in seen:
        total = torch.zeros((), dtype=DOUBLE)
        for i, (p, s) in enumerate(carries):
            task = mo.tree.index(batch, i)
            for _ in range(2):
                g = torch.func.grad(TASKS.loss_fn)(p, task)
                p, s = RULE.update(p, s, g.detach() if order == 1 else g, phi)
                total = total + TASKS.loss_fn(p, task) / 6
            carries[i] = mo.tree.detach((p, s))
        want = torch.autograd.grad(total, mo.tree.leaves(phi))
        torch.testing.assert_close(grads, list(want), rtol=1e-10, atol=1e-13)


def test_pes_equals_the_estimator_of_one_problem() -> None:
    """The same task in every row, the same noise: hypergrad.pes over both windows."""
    theta, batch = TASKS.sample(1, 0)
    same = TASKS._replace(
        sample=lambda n, seed, step=0: mo.tree.map(lambda x: torch.cat([x] * n), (theta, batch))
    )
    meta_opt, seen = recorder()
    options: Any = {"window": 2, "num_steps": 4, "num_tasks": 5, "estimator": "pes", "sigma": 0.1}
    start = mo.train_learned_optimizer(RULE, same, meta_steps=0, **options).carry
    carry = young(start)._replace(meta_state=())
    mo.train_learned_optimizer(RULE, same, meta_steps=2, carry=carry, meta_opt=meta_opt, **options)
    problem = hg.Problem(TASKS.loss_fn, RULE, mo.tree.index(batch, 0), 4, params=theta[0], outer_every=1)
    phi = mo.Meta(None, RULE.hparams)
    leaves, shape = mo.tree.flatten(phi)
    rows = [hg.noise(leaves, 5, seed=step) for step in (1, 2)]
    noise = mo.tree.unflatten(shape, [torch.stack(pair, 1) for pair in zip(*rows, strict=True)])
    want = hg.pes(problem, phi, window=2, sigma=0.1, noise=noise).grad
    got = [(a + b) / 2 for a, b in zip(*seen, strict=True)]  # of the mean over both windows
    torch.testing.assert_close(got, mo.tree.leaves(want), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ["truncated", "pes"])
def test_the_carry_goes_on_as_if_nothing_had_happened(estimator: Any) -> None:
    options: Any = {"window": 2, "num_steps": 4, "num_tasks": 3, "estimator": estimator}
    whole = mo.train_learned_optimizer(RULE, TASKS, meta_steps=5, **options)
    part = mo.train_learned_optimizer(RULE, TASKS, meta_steps=2, **options)
    rest = mo.train_learned_optimizer(
        RULE, TASKS, meta_steps=3, hparams=part.hparams, carry=part.carry, **options
    )
    torch.testing.assert_close(rest.hparams, whole.hparams, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([part.losses, rest.losses]), whole.losses, rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(*map(mo.tree.leaves, (whole.hparams, RULE.hparams))))


def test_phases_are_spread_and_episodes_end() -> None:
    out = mo.train_learned_optimizer(RULE, TASKS, meta_steps=0, window=1, num_steps=50, num_tasks=64)
    ages = out.carry.inner[0].age
    assert 15 < float(ages.double().mean()) < 35
    out = mo.train_learned_optimizer(RULE, TASKS, meta_steps=7, window=2, num_steps=4, num_tasks=8)
    inner = out.carry.inner[0]
    assert set(inner.age.tolist()) == {0, 2}
    fresh = inner.age == 0  # begun again: a new task, with the optimizer's own first state
    assert bool((inner.state.step[fresh] == 0).all())
    assert bool((inner.state.step[~fresh] == 2).all())
    assert bool((inner.params[fresh].abs() < 0.06).all())


def test_a_task_that_diverges_starts_again_and_adds_nothing() -> None:
    """Task 0 has a loss of inf from the first step on; the gradient is that of the others."""

    def sample(n: int, seed: int, step: int = 0) -> Any:
        theta, (w, y) = TASKS.sample(n, seed, step)
        return theta, (torch.cat([w[:1] * 1e200, w[1:]]), y)

    for estimator in ("truncated", "pes"):
        meta_opt, seen = recorder()
        out = mo.train_learned_optimizer(
            RULE,
            TASKS._replace(sample=sample),
            meta_steps=2,
            window=2,
            num_steps=8,
            num_tasks=3,
            meta_opt=meta_opt,
            estimator=estimator,  # type: ignore[arg-type]
        )
        assert bool(out.losses.isfinite().all())
        assert out.carry.inner[0].age[0] == 0
        assert all(bool(g.isfinite().all()) for g in seen[0])


def test_batches_come_step_by_step() -> None:
    """A loss that is the batch itself: the windows read rows 1, 2, … of each task, at its own age."""
    rows = torch.arange(5, dtype=DOUBLE).expand(3, 5)
    loss = lambda p, b: b + 0 * p.sum()
    tasks = mo.algorithms.OptimizationTasks(
        loss, lambda n, seed, step=0: (torch.zeros(n, 2, dtype=DOUBLE), rows), stepped=True
    )
    options: Any = {"window": 2, "num_steps": 4, "num_tasks": 3}
    start = mo.train_learned_optimizer(RULE, tasks, meta_steps=0, **options).carry
    out = mo.train_learned_optimizer(RULE, tasks, meta_steps=2, carry=young(start), **options)
    torch.testing.assert_close(out.losses, torch.tensor([1.5, 3.5], dtype=DOUBLE))


def final_loss(opt: mo.Optimizer, hparams: Any, tasks: Any, seed: int, steps: int) -> Tensor:
    params, batch = tasks.sample(64, seed)
    run = lambda h, task: tasks.loss_fn(mo.unroll(tasks.loss_fn, opt, *task, steps, h).params, task[1])
    with torch.no_grad():
        return mo.map_tasks(run)(hparams, (params, batch)).mean()


def test_a_learned_optimizer_beats_a_tuned_one() -> None:
    """3-d quadratics, 20 steps: the mean final loss on new tasks, against the best of 10 rates."""
    tasks, opt = mo.quadratics(3), mo.learned_lstm((10,))
    out = mo.train_learned_optimizer(
        opt, tasks, meta_steps=250, window=10, num_steps=20, num_tasks=64, meta_opt=mo.optim.adam(1e-2)
    )
    learned = final_loss(opt, out.hparams, tasks, 99, 20)
    for make in (mo.optim.sgd, mo.optim.adam):
        grid = [make(lr=lr).hparams for lr in torch.logspace(-3, 0, 10).tolist()]
        tuned = min(float(final_loss(make(), h, tasks, 99, 20).nan_to_num(1e9)) for h in grid)
        assert learned < 0.9 * tuned, f"{float(learned)} against {make.__name__}'s {tuned}"


def test_one_variable_quadratic() -> None:
    """x² from 1: cost below 1e-5 within 500 epochs of 5 windows of 20 steps, outer rate 1e-2."""
    one = lambda n, seed, step=0: (torch.ones(n), torch.zeros(n))
    tasks = mo.algorithms.OptimizationTasks(lambda p, b: p**2, one)
    opt, hparams, carry, cost = mo.learned_lstm(), None, None, torch.tensor(1.0)
    for _ in range(100):  # five epochs each
        out = mo.train_learned_optimizer(
            opt, tasks, meta_steps=25, num_tasks=1, hparams=hparams, carry=carry, meta_opt=mo.optim.adam(1e-2)
        )
        hparams, carry = out.hparams, out.carry
        cost = final_loss(opt, hparams, tasks._replace(sample=lambda n, seed: one(1, seed)), 0, 100)
        if cost < 1e-5:
            break
    assert cost < 1e-5


@pytest.mark.parametrize("estimator", ["truncated", "pes"])
def test_a_rate_is_a_learned_optimizer_too(estimator: Any) -> None:
    """SGD's lr over a distribution of one-variable quadratics, by either estimator: from 0.01 upwards."""
    tasks, opt = mo.quadratics(1), mo.optim.sgd(lr=torch.tensor(0.01))
    out = mo.train_learned_optimizer(
        opt,
        tasks._replace(loss_fn=lambda p, b: torch.tanh(tasks.loss_fn(p, b))),
        meta_steps=60,
        window=5,
        num_steps=10,
        num_tasks=32,
        estimator=estimator,
        meta_opt=mo.optim.adam(5e-3),
    )
    assert out.hparams.lr > 0.1
    assert out.hparams.momentum == 0.0
    assert out.losses[-10:].mean() < 0.8 * out.losses[:10].mean()


def test_task_distributions() -> None:
    """Reproducible, new at every step; the loss by hand."""
    tasks = mo.quadratics(10)
    theta, (w, y) = tasks.sample(4, seed=3)
    again = tasks.sample(4, seed=3)
    torch.testing.assert_close((theta, (w, y)), again, rtol=0, atol=0)
    assert not torch.equal(w, tasks.sample(4, seed=3, step=1)[1][0])
    assert not torch.equal(w, tasks.sample(4, seed=4)[1][0])
    want = torch.linalg.vector_norm(w[0] @ theta[0] - y[0]) ** 2
    torch.testing.assert_close(tasks.loss_fn(theta[0], (w[0], y[0])), want)
    x, labels = torch.randn(30, 4), torch.arange(30) % 3
    small = mo.classification(x, labels, hidden=(5,), batch_size=8, num_steps=2)
    params, rows = small.sample(2, seed=0)
    assert rows.shape == (2, 3, 8)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    with torch.no_grad():
        for layer, (weight, bias) in zip((net[0], net[2]), params, strict=True):
            layer.weight.copy_(weight[1].T)
            layer.bias.copy_(bias[1])
        some = rows[1, 0]
        want = torch.nn.functional.cross_entropy(net(x[some]), labels[some])
    torch.testing.assert_close(small.loss_fn(mo.tree.index(params, 1), some), want)


def test_bad_input_is_told() -> None:
    with pytest.raises(
        ArgumentError, match=r"train_learned_optimizer\(window\): expected a divisor of num_steps=100"
    ):
        mo.train_learned_optimizer(RULE, TASKS, meta_steps=1, window=30)
    with pytest.raises(ArgumentError, match="expected 'truncated' or 'pes', got 'es'"):
        mo.train_learned_optimizer(RULE, TASKS, meta_steps=1, estimator="es")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"quadratics\(dim\): expected an integer >= 1, got 0"):
        mo.quadratics(0)
    with pytest.raises(StructureError, match=r"classification\(x, y\)"):
        mo.classification(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="at least one floating-point tensor"):
        mo.train_learned_optimizer(mo.optim.sgd(lr=0.1), TASKS, meta_steps=1)


def images(name: str) -> tuple[Tensor, Tensor]:
    """[example, 64] of 10 classes: scikit-learn's digits, or noisy copies of ten random patterns."""
    if name == "digits":
        data = pytest.importorskip("sklearn.datasets").load_digits()
        return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    draw = torch.Generator().manual_seed(0)
    patterns, y = torch.rand(10, 64, generator=draw), torch.arange(1000) % 10
    return patterns[y] + 0.3 * torch.randn(1000, 64, generator=draw), y


@pytest.mark.parametrize("name", ["patterns", "digits"])
def test_a_learned_mlp_trains_small_networks(name: str) -> None:
    """A 64-16-10 MLP, 20 steps: new starts, against the best of 10 rates of Adam and φ untrained."""
    tasks = mo.classification(*images(name), hidden=(16,), batch_size=64, num_steps=20)

    def last(opt: mo.Optimizer, hparams: Any) -> float:
        run = lambda h, task: mo.unroll(tasks.loss_fn, opt, *task, None, h).losses[-1]
        with torch.no_grad():
            return float(mo.map_tasks(run, how="vmap")(hparams, tasks.sample(16, 99)).mean())

    opt, meta_opt = mo.learned_mlp((16,), step_scale=0.03), mo.optim.adam(3e-3)
    options: Any = {"window": 10, "num_steps": 20, "num_tasks": 4, "meta_opt": meta_opt}
    learned = last(opt, mo.train_learned_optimizer(opt, tasks, meta_steps=10, **options).hparams)
    assert learned < 0.9 * last(opt, opt.hparams)
    rates = torch.logspace(-2, -0.5, 10).tolist()
    assert learned < 0.9 * min(last(mo.optim.adam(), mo.optim.adam(lr=lr).hparams) for lr in rates)
