"""Meta-RL: score functions against closed forms, second order against finite differences, and a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metaopt as mo
from metaopt.algorithms import Policy, Trajectories
from metaopt.algorithms._maml_rl import act
from metaopt.algorithms._policy_gradient import baseline, log_prob, mean, returns
from metaopt.errors import ArgumentError

DOUBLE = torch.float64
GOAL = torch.tensor([0.7, -0.4], dtype=DOUBLE)


def bandit(policy: Policy) -> tuple[Trajectories, Tensor]:
    """One step, reward −‖a − g‖², at the nodes of a Gauss–Hermite rule; and the weights of the nodes."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(9))
    eps = torch.cartesian_prod(nodes, nodes)
    weight = torch.cartesian_prod(weights, weights).prod(-1)
    a = act(policy)(torch.zeros_like(eps), eps)
    rewards = -((a - GOAL) ** 2).sum(-1)
    paths = Trajectories(torch.zeros_like(eps)[None], a[None], rewards[None], torch.ones_like(rewards)[None])
    return paths, weight / weight.sum()


def expected(policy: Policy, paths: Trajectories, weight: Tensor, **options: Any) -> Tensor:
    """Σ_i w_i loss(path i): the loss's mean over paths taken by quadrature."""
    one = lambda i: policy_gradient(policy, Trajectories(*(x[:, i : i + 1] for x in paths)), **options)
    return sum(w * one(i) for i, w in enumerate(weight))  # type: ignore[return-value]


def policy_gradient(policy: Policy, paths: Trajectories, **options: Any) -> Tensor:
    return mo.policy_gradient_loss(policy, paths, use_baseline=False, **options)


def constant_policy(at: Tensor, std: float = 0.3) -> Policy:
    """π(a) = N(μ, σ²I) whatever the state."""
    return Policy(((torch.zeros(2, 2, dtype=DOUBLE), at),), torch.full((2,), math.log(std), dtype=DOUBLE))


@pytest.mark.parametrize("dice", [True, False])
def test_score_function_gradient_is_that_of_the_expectation(dice: bool) -> None:
    """E r = −‖μ − g‖² − Σσ²: the loss has d/dμ = 2(μ − g) and d/d log σ = 2σ²."""
    mu = torch.tensor([0.1, 0.2], dtype=DOUBLE, requires_grad=True)
    policy = constant_policy(mu)
    policy.log_std.requires_grad_()
    paths, weight = bandit(policy)
    g_mu, g_std = torch.autograd.grad(expected(policy, paths, weight, dice=dice), (mu, policy.log_std))
    torch.testing.assert_close(g_mu, 2 * (mu - GOAL).detach(), rtol=0, atol=1e-11)
    torch.testing.assert_close(g_std, 2 * policy.log_std.detach().exp() ** 2, rtol=0, atol=1e-11)


def test_dice_has_the_right_hessian_and_the_surrogate_has_not() -> None:
    """d²/dμ² = 2I; the surrogate's second derivative is E[r]/σ² instead."""
    mu = torch.tensor([0.1, 0.2], dtype=DOUBLE)
    paths, weight = bandit(constant_policy(mu))
    hessian = lambda dice: torch.func.hessian(
        lambda x: expected(constant_policy(x), paths, weight, dice=dice)
    )(mu)
    eye = torch.eye(2, dtype=DOUBLE)
    torch.testing.assert_close(hessian(True), 2 * eye, rtol=0, atol=1e-10)
    value = float((weight * paths.rewards[0]).sum())
    torch.testing.assert_close(hessian(False), value / 0.3**2 * eye, rtol=0, atol=1e-10)


def test_the_policy_by_hand() -> None:
    """log π against torch.distributions, returns against their sum, the ridge baseline against lstsq."""
    policy = mo.gaussian_policy((5,), std=0.5, dtype=DOUBLE)
    s, a = torch.randn(4, 3, 2, dtype=DOUBLE), torch.randn(4, 3, 2, dtype=DOUBLE)
    normal = torch.distributions.Normal(mean(policy, s), policy.log_std.exp())
    torch.testing.assert_close(log_prob(policy, s, a), normal.log_prob(a).sum(-1))
    r = torch.randn(4, 3, dtype=DOUBLE)
    want = torch.stack([sum(0.9 ** (k - t) * r[k] for k in range(t, 4)) for t in range(4)])
    torch.testing.assert_close(returns(r, 0.9), want)
    s = torch.randn(20, 3, 2, dtype=DOUBLE)
    tau = (torch.arange(20, dtype=DOUBLE) / 100)[:, None]
    linear = s[..., 0] - 2 * s[..., 1] ** 2 + 3 * tau**2 + 1  # returns that the features can express
    rewards = linear - 0.9 * torch.cat([linear[1:], torch.zeros(1, 3, dtype=DOUBLE)])
    paths = Trajectories(s, s, rewards, torch.ones_like(rewards))
    torch.testing.assert_close(baseline(paths, 0.9, ridge=1e-12), linear, rtol=1e-5, atol=1e-5)


def test_the_baseline_leaves_the_gradient_of_the_mean_and_lowers_its_variance() -> None:
    env, policy = mo.navigation(horizon=10, dtype=DOUBLE), mo.gaussian_policy((4,), std=0.1, dtype=DOUBLE)
    (goal, noise), _ = env.sample(num_tasks=200, paths=10, seed=3)
    goal = goal[:1].expand_as(goal)
    where = policy.layers[-1][1]

    def gradient(use_baseline: bool) -> Tensor:
        def one(bias: Tensor, task: Any) -> Tensor:
            moved = policy._replace(layers=(*policy.layers[:-1], (policy.layers[-1][0], bias)))
            paths = env.rollout(act(moved), *task)
            return mo.policy_gradient_loss(moved, paths, use_baseline=use_baseline)

        return torch.vmap(torch.func.grad(one), (None, 0))(where, (goal, noise))

    plain, lower = gradient(False), gradient(True)
    assert bool((lower.var(0) < 0.5 * plain.var(0)).all())
    gap = (plain - lower).mean(0).abs()
    assert bool((gap < 4 * (plain - lower).std(0) / 200**0.5).all())


def test_navigation_by_hand() -> None:
    """Clipped moves, rewards at the new place, an end on arrival; mapped and looped alike."""
    env = mo.navigation(horizon=4, dtype=DOUBLE)
    goal = torch.tensor([0.2, 0.0], dtype=DOUBLE)
    noise = torch.zeros(4, 1, 2, dtype=DOUBLE)
    paths = env.rollout(lambda s, e: torch.tensor([[5.0, 0.0]], dtype=DOUBLE) + e, goal, noise)
    at = [0.0, 0.1, 0.2, 0.3]
    torch.testing.assert_close(paths.observations[:, 0, 0], torch.tensor(at, dtype=DOUBLE))
    want = torch.tensor([-0.01, 0.0, 0.0, 0.0], dtype=DOUBLE)
    torch.testing.assert_close(paths.rewards[:, 0], want, rtol=0, atol=1e-12)
    assert paths.alive[:, 0].tolist() == [1.0, 1.0, 0.0, 0.0]
    support, query = env.sample(num_tasks=500, paths=3, seed=0)
    assert torch.equal(support[0], query[0])
    assert not torch.equal(support[1], query[1])
    assert support[1].shape == (500, 4, 3, 2)
    assert bool((support[0].abs() <= 0.5).all())
    assert bool(((support[0].mean(0)).abs() < 0.05).all())
    assert env.sample(2, 3, seed=0)[0][0].tolist() == support[0][:2].tolist()
    policy = mo.gaussian_policy((4,), dtype=DOUBLE)
    run = lambda p, task: env.rollout(act(p), *task)
    tasks = mo.tree.index(support, slice(0, 3))
    mapped, looped = (mo.map_tasks(run, how=how)(policy, tasks) for how in ("vmap", "loop"))
    torch.testing.assert_close(mapped, looped, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dice", [True, False])
def test_second_order_terms_against_finite_differences(dice: bool) -> None:
    """d/dθ L(θ − α∇L(θ; τ); τ') along a direction, with the paths τ and τ' that fixed noise gave held."""
    env, opt = mo.navigation(horizon=6, dtype=DOUBLE), mo.optim.sgd(lr=0.05)
    policy = mo.gaussian_policy((5,), std=0.3, seed=1, dtype=DOUBLE)
    policy = mo.tree.map(lambda x: x.requires_grad_(), policy)
    episode = mo.tree.index(env.sample(num_tasks=1, paths=4, seed=2), 0)
    out = mo.maml_rl(env, opt, dice=dice)(policy, episode)
    grad = torch.autograd.grad(out.loss, mo.tree.leaves(policy))

    loss = lambda p, paths: mo.policy_gradient_loss(p, paths, dice=dice)
    support = env.rollout(act(policy), *episode.support)
    adapted = mo.unroll(loss, opt, mo.tree.detach(policy), support, 1).params
    query = env.rollout(act(adapted), *episode.query)
    fixed = mo.maml(lambda p, paths: loss(p, Trajectories(*paths)), opt)
    eps = mo.tree.index(mo.hypergrad.noise(policy, 1, seed=3), 0)
    held = (tuple(support), tuple(query))
    # DiCE's box is 1 in value: its derivative is taken at the paths' own θ, by the form exp(x − x₀)
    value = lambda h: outer_value(policy, eps, h, support, query, dice)
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    along = mo.tree.vdot(mo.tree.unflatten(mo.tree.structure(policy), grad), eps)
    assert abs(slope - along) < 1e-6 * abs(along)
    again = torch.autograd.grad(fixed(policy, held), mo.tree.leaves(policy))
    torch.testing.assert_close(again, grad)
    first = torch.autograd.grad(
        mo.maml_rl(env, opt, dice=dice, order=1)(policy, episode).loss, mo.tree.leaves(policy)
    )
    assert max(float((a - b).abs().max()) for a, b in zip(first, grad, strict=True)) > 1e-4


def outer_value(policy: Policy, eps: Any, h: float, support: Any, query: Any, dice: bool) -> float:
    """The outer surrogate at θ + hε, its constants ⊥x kept as they are at θ; inner step by hand."""
    gamma = (0.99 ** torch.arange(6, dtype=DOUBLE))[:, None]

    def surrogate(p: Policy, at: Policy, paths: Trajectories) -> Tensor:
        x, x0 = (log_prob(q, paths.observations, paths.actions) * paths.alive for q in (p, at))
        b = baseline(paths, 0.99) * paths.alive
        if not dice:
            return -(gamma * x * (returns(paths.rewards, 0.99) - b)).sum(0).mean()
        box = torch.exp(x.cumsum(0) - x0.cumsum(0))
        return -(gamma * (box * paths.rewards + (1 - torch.exp(x - x0)) * b)).sum(0).mean()

    def adapt(p: Policy, at: Policy) -> Policy:
        g = torch.func.grad(lambda q: surrogate(q, at, support))(p)
        return mo.tree.map(lambda x, d: x - 0.05 * d, p, g)

    base = mo.tree.detach(policy)
    moved = mo.tree.add(base, mo.tree.scale(eps, h))
    return float(surrogate(adapt(moved, base), adapt(base, base), query))


def test_a_short_run_improves_the_return_after_adaptation() -> None:
    """Fixed seed, 50 outer steps. On new tasks one step then leads to where before it led astray."""
    env = mo.navigation(horizon=15)
    policy = mo.tree.map(lambda x: x.requires_grad_(), mo.gaussian_policy((16,), std=0.1))
    task_loss = mo.map_tasks(mo.maml_rl(env, mo.optim.sgd(lr=0.005)))
    outer = torch.optim.Adam(mo.tree.leaves(policy), lr=1e-2)
    test = env.sample(num_tasks=50, paths=20, seed=1)
    with torch.no_grad():
        untrained = task_loss(policy, test)
    for step in range(50):
        outer.zero_grad()
        task_loss(policy, env.sample(num_tasks=20, paths=20, seed=0, step=step)).loss.mean().backward()
        outer.step()
    with torch.no_grad():
        trained = task_loss(policy, test)
    assert trained.after.mean() > trained.before.mean() + 1.5
    assert trained.after.mean() > max(untrained.before.mean(), untrained.after.mean()) + 2.0


def test_bad_input_is_told() -> None:
    with pytest.raises(ArgumentError, match=r"navigation\(horizon\): expected an integer >= 1, got 0"):
        mo.navigation(0)
    with pytest.raises(ArgumentError, match=r"navigation\(max_action\): expected a number > 0, got 0"):
        mo.navigation(max_action=0)
    with pytest.raises(ArgumentError, match=r"gaussian_policy\(std\): expected a number > 0, got 0"):
        mo.gaussian_policy(std=0)
    paths = Trajectories(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.zeros(1, 1), torch.ones(1, 1))
    with pytest.raises(ArgumentError, match=r"discount\): expected a number in \[0, 1\], got 2"):
        mo.policy_gradient_loss(mo.gaussian_policy(), paths, discount=2)
