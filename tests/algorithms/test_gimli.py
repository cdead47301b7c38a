"""GIMLI: ordinary training at I = 0, hypergradient descent at J = 1, closed form 1 at J = 2, I > 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenarios import assert_close, f64, positive, quadratic, scalar_quadratic, vector
from torch import Tensor, nn
from torch.nn import functional as F

import metaopt as mo
from metaopt import Meta
from metaopt.errors import ArgumentError

A, B, ALPHA, THETA = f64(1.5), f64(0.3), f64(0.4), f64(2.0)
BATCH = (A, B)
META_RATE = 0.1


def itself(params: Tensor, batch: Any) -> Tensor:
    return params


def rate_learner(**options: Any) -> tuple[mo.algorithms.Gimli, mo.algorithms.GimliState]:
    opt = mo.optim.sgd(lr=0.4)
    train = mo.gimli(scalar_quadratic, opt, mo.optim.sgd(lr=META_RATE), **({"val_loss_fn": itself} | options))
    return train, train.init(THETA, Meta(None, opt.hparams._replace(lr=ALPHA)))


def slope_of_rate(steps: int, alpha: Tensor, theta: Tensor = THETA) -> Tensor:
    """Closed form 1: dθ_T/dα = −T·a·r^{T−1}(θ0−b)."""
    return -steps * A * (1 - alpha * A) ** (steps - 1) * (theta - B)


@pytest.mark.parametrize("lookahead", [1, 2, 5])
def test_one_meta_update_is_the_closed_form_and_the_copies_are_thrown_away(lookahead: int) -> None:
    train, now = rate_learner(num_lookahead=lookahead)
    new, (loss, values) = train.step(now, BATCH, ())
    alpha = ALPHA - META_RATE * slope_of_rate(lookahead, ALPHA)
    assert_close(new.phi.hparams.lr, alpha)
    assert_close(new.params, THETA - alpha * A * (THETA - B))  # one real step from θ_t, by the new rate
    assert_close(loss, scalar_quadratic(THETA, BATCH))
    assert_close(values[0], B + (1 - ALPHA * A) ** lookahead * (THETA - B))
    assert new.phi.hparams.momentum == 0.0


def test_two_steps_of_lookahead_add_up_over_evaluation_points() -> None:
    train, now = rate_learner(num_lookahead=2, evaluate_at=(1, 2))
    new, _ = train.step(now, BATCH, ())
    slope = slope_of_rate(1, ALPHA) + slope_of_rate(2, ALPHA)
    assert_close(new.phi.hparams.lr, ALPHA - META_RATE * slope)


@pytest.mark.parametrize("updates", [2, 4])
def test_several_meta_updates_each_start_from_the_same_copy(updates: int) -> None:
    train, now = rate_learner(num_meta_updates=updates, num_lookahead=2)
    alpha = ALPHA
    for _ in range(updates):
        alpha = alpha - META_RATE * slope_of_rate(2, alpha)
    new, (_, values) = train.step(now, BATCH, ())
    assert_close(new.phi.hparams.lr, alpha)
    assert values.shape == (updates,)
    assert_close(new.params, THETA - alpha * A * (THETA - B))


def test_one_step_of_lookahead_is_hypergradient_descent() -> None:
    """Baydin et al. 2018: dℓ(θ_{t+1})/dα = −∇ℓ(θ_{t+1})ᵀ∇ℓ(θ_t)."""
    q, centre, theta = positive(4, 1), vector(4, 2), vector(4, 3)
    opt = mo.optim.sgd(lr=0.3)
    train = mo.gimli(quadratic, opt, mo.optim.sgd(lr=0.01))
    now = train.init(theta, Meta(None, opt.hparams._replace(lr=f64(0.3))))
    new, _ = train.step(now, (q, centre), (q, centre))
    first = q @ (theta - centre)
    second = q @ (theta - 0.3 * first - centre)
    assert_close(new.phi.hparams.lr, f64(0.3) + 0.01 * first @ second)


def net() -> tuple[Any, Any, Any, Any]:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    y = x.prod(1, keepdim=True)
    apply, params, _ = mo.functional(module)

    def loss(p: Any, batch: Any) -> Tensor:
        return F.mse_loss(apply(p, batch[0]), batch[1])

    return module, loss, mo.tree.map(lambda p: p.detach().clone(), params), (x, y)


@pytest.mark.parametrize(
    ("opt", "torch_opt"),
    [
        (mo.optim.sgd(0.1, 0.9), lambda ps: torch.optim.SGD(ps, 0.1, 0.9, foreach=False)),
        (mo.optim.adam(0.01), lambda ps: torch.optim.Adam(ps, 0.01, foreach=False)),
    ],
    ids=["sgd", "adam"],
)
def test_without_meta_updates_it_is_ordinary_training_bit_for_bit(opt: Any, torch_opt: Any) -> None:
    """As unroll to the bit, and as torch.optim to rounding."""
    module, loss, params, batch = net()
    train = mo.gimli(loss, opt, mo.optim.sgd(), num_meta_updates=0)
    now, losses = train.init(params, Meta(None, opt.hparams)), []
    theirs = torch_opt(module.parameters())
    for _ in range(10):
        now, (value, none) = train.step(now, batch, batch)
        losses.append(value)
        assert none.shape == (0,)
        theirs.zero_grad()
        F.mse_loss(module(batch[0]), batch[1]).backward()
        theirs.step()
    out = mo.unroll(loss, opt, params, batch, 10)
    for name, p in module.named_parameters():
        assert torch.equal(now.params[name], out.params[name])
        torch.testing.assert_close(now.params[name], p.detach(), rtol=1e-12, atol=1e-14)
    assert torch.equal(torch.stack(losses), out.losses)
    for a, b in zip(mo.tree.leaves(now.state), mo.tree.leaves(out.state), strict=True):
        assert torch.equal(a, b)


def weighted(params: Any, batch: Any, log_weights: Tensor) -> Tensor:
    x, y = batch
    return (log_weights.exp() * (x @ params - y) ** 2).mean()


def adam_learner() -> tuple[mo.algorithms.Gimli, mo.algorithms.GimliState, Any, Any]:
    """Learned rate and betas of Adam, learned example weights, mini-batches of the look-ahead."""
    x, y = vector(12, 1).reshape(4, 3), vector(4, 2)
    opt, meta_opt = mo.optim.adam(), mo.optim.sgd(lr=0.1)
    hparams = opt.hparams._replace(lr=f64(0.05), beta1=f64(0.8), eps_root=1e-8)
    train = mo.gimli(
        weighted,
        opt,
        meta_opt,
        num_lookahead=3,
        evaluate_at=(1, 3),
        val_loss_fn=lambda p, b: ((b[0] @ p - b[1]) ** 2).mean(),
    )
    now = train.init(vector(3, 4), Meta(None, hparams, (0.1 * vector(4, 5),)))
    now, _ = train.step(now, (x, y), (x, y))  # so that the state of Adam is not its first
    return train, now, (x, y), (vector(12, 6).reshape(4, 3), vector(4, 7))


def test_meta_gradient_of_warm_adam_agrees_with_finite_differences() -> None:
    train, now, batch, val = adam_learner()
    ahead = mo.tree.stack([batch, (batch[0] * 1.1, batch[1]), (batch[0], batch[1] - 0.2)])
    new, _ = train.step(now, batch, val, ahead)
    old, structure = mo.tree.flatten(now.phi)

    def value(i: int, entry: int, h: float) -> Tensor:
        moved = list(old)
        moved[i] = old[i].clone()
        moved[i].view(-1)[entry] += h
        shifted = now._replace(phi=mo.tree.unflatten(structure, moved))
        return train.step(shifted, batch, val, ahead)[1][1][0]

    checked = 0
    for i, (before, after) in enumerate(zip(old, mo.tree.leaves(new.phi), strict=True)):
        if not isinstance(before, Tensor):
            assert before == after
            continue
        for entry in range(before.numel()):
            numeric = (value(i, entry, 1e-5) - value(i, entry, -1e-5)) / 2e-5
            slope = (before.view(-1)[entry] - after.view(-1)[entry]) / 0.1
            assert float(slope) == pytest.approx(float(numeric), rel=1e-5, abs=1e-9)
            checked += 1
    assert checked == 6


def test_it_maps_over_models() -> None:
    train, now, batch, val = adam_learner()
    models = mo.tree.stack([now.params, now.params + 0.3])

    def task(params: Any, batch: Any) -> Any:
        new, losses = train.step(now._replace(params=params), batch, val)
        return mo.tree.leaves((new.params, new.state)), new.phi.phi, losses

    mapped = torch.vmap(task, in_dims=(0, None))(models, batch)
    looped = mo.tree.stack([task(models[i], batch) for i in range(2)])
    for a, b in zip(mo.tree.leaves(mapped), mo.tree.leaves(looped), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_it_learns_the_rate_of_a_valley() -> None:
    """A quadratic of condition 4 from a rate of 0.01: after 60 steps far below what that rate reaches."""
    q, centre = positive(4, 1), vector(4, 2)
    opt = mo.optim.sgd(lr=0.01)
    train = mo.gimli(quadratic, opt, mo.optim.sgd(lr=0.01))
    now = train.init(vector(4, 3), Meta(None, opt.hparams._replace(lr=f64(0.01))))
    for _ in range(60):
        now, (loss, _) = train.step(now, (q, centre), (q, centre))
    plain = mo.unroll(quadratic, opt, vector(4, 3), (q, centre), 60).losses[-1]
    assert float(loss) < 0.1 * float(plain)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_lookahead": 0}, r"gimli\(num_lookahead\): expected an integer >= 1, got 0"),
        ({"num_meta_updates": -1}, r"gimli\(num_meta_updates\): expected an integer >= 0, got -1"),
        ({"num_meta_updates": 1.5}, r"gimli\(num_meta_updates\): .* got 1\.5"),
        ({"evaluate_at": (2,)}, r"gimli\(evaluate_at\): expected numbers of steps from 1 to 1, got \(2,\)"),
        ({"evaluate_at": ()}, r"gimli\(evaluate_at\)"),
    ],
)
def test_bad_arguments_are_named(options: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rate_learner(**options)
