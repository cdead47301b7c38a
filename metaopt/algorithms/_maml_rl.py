"""MAML for reinforcement learning: a policy one policy-gradient step away from every task's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.algorithms._maml import maml
from metaopt.algorithms._navigation import Navigation, Trajectories
from metaopt.algorithms._policy_gradient import Policy, mean, policy_gradient_loss
from metaopt.step import Order
from metaopt.types import Meta, Optimizer

__all__ = ["MamlRL", "act", "maml_rl"]


class MamlRL(NamedTuple):
    """``loss`` [], the outer surrogate; ``before`` and ``after`` adaptation, mean undiscounted returns."""

    loss: Tensor
    before: Tensor
    after: Tensor


def act(policy: Policy) -> Callable[[Tensor, Tensor], Tensor]:
    """a = MLP_θ(s) + σε, for `Navigation.rollout`; the policy's history is cut."""
    policy = tree.detach(policy)
    return lambda s, noise: mean(policy, s) + torch.exp(policy.log_std) * noise


def maml_rl(
    env: Navigation,
    opt: Optimizer,
    num_steps: int = 1,
    *,
    discount: float = 0.99,
    dice: bool = True,
    use_baseline: bool = True,
    order: Order = 2,
) -> Callable[[Any, Any], MamlRL]:
    """Return MAML's loss of one reinforcement-learning task, ``(meta_params, episode) -> MamlRL``.

    ::

        τ ~ π_θ,   θ' = θ − α ∇L(θ; τ)          J times
        τ' ~ π_θ',   L(θ'; τ')

    L is the policy-gradient loss, so that this is `maml` with a loss that rolls out first.

    Args: env: the environment; its task is in the episode, with the noise of its paths.
          opt: the inner optimizer.
          num_steps: J.
          discount, dice, use_baseline: as in `policy_gradient_loss`, for both losses.
          order: 1 for first-order MAML.
    Returns: a pure function for `map_tasks`; ``env.sample`` has the episodes. With J > 1 the same noise
             serves each rollout before adaptation.
    Cost: J + 2 rollouts and J + 1 policy gradients, and as much again as the latter for the outer one.
    Source: Finn et al. 2017, arXiv:1703.03400, Algorithm 3 (the outer step there is TRPO's);
            Foerster et al. 2018, arXiv:1802.05098.

    >>> import metaopt as mo
    >>> env, policy = mo.navigation(horizon=5), mo.gaussian_policy((8,))
    >>> task_loss = maml_rl(env, mo.optim.sgd(lr=0.1))
    >>> mo.map_tasks(task_loss)(policy, env.sample(num_tasks=3, paths=4, seed=0)).after.shape
    torch.Size([3])
    """

    def rollout(policy: Policy, task: Any) -> Trajectories:
        return env.rollout(act(policy), *task)

    def loss(policy: Policy, paths: Trajectories) -> Tensor:
        return policy_gradient_loss(policy, paths, discount=discount, dice=dice, use_baseline=use_baseline)

    def loss_fn(policy: Policy, task: Any) -> Tensor:
        return loss(policy, rollout(policy, task))

    def judge(policy: Policy, task: Any) -> tuple[Tensor, Tensor]:
        paths = rollout(policy, task)
        return loss(policy, paths), paths.rewards.sum(0).mean()

    adapt = maml(loss_fn, opt, num_steps, query_loss_fn=judge, order=order)

    def task_loss(meta_params: Any, episode: Any) -> MamlRL:
        start = meta_params.params if isinstance(meta_params, Meta) else meta_params
        value, after = adapt(meta_params, episode)
        return MamlRL(value, rollout(start, episode[1]).rewards.sum(0).mean(), after)

    return task_loss
