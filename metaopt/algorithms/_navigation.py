"""Two-dimensional navigation, written in tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, check_at_least
from metaopt.tasks._random import key_of, normal, uniform
from metaopt.types import Episode

__all__ = ["Navigation", "Trajectories", "navigation"]


class Trajectories(NamedTuple):
    """``observations`` and ``actions`` [step, path, 2], ``rewards`` and ``alive`` [step, path].

    A path that has arrived is not alive: its rewards are 0, and it is the last of its kind.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor


class Navigation(NamedTuple):
    """``rollout(act, goal, noise) -> Trajectories`` and ``sample(num_tasks, paths, seed, step=0)``."""

    rollout: Callable[..., Trajectories]
    sample: Callable[..., Episode]
    horizon: int


def navigation(
    horizon: int = 100,
    *,
    max_action: float = 0.1,
    arrived: float = 0.01,
    dtype: torch.dtype = torch.float32,
) -> Navigation:
    """A point that must find a goal in the unit square.

    ::

        s_0 = 0,   s_{t+1} = s_t + clip(a_t, ±0.1),   r_t = −‖s_{t+1} − goal‖²,   goal uniform in [−½, ½]²

    A path ends within 0.01 of the goal, or at the horizon. ``rollout`` is pure, given its noise, and maps
    over tasks: ``act(s [path, 2], ε [path, 2]) -> a [path, 2]``. No gradient passes through it: the
    environment is a black box to the policy.

    Args: horizon: steps H >= 1.
          max_action: bound on each coordinate of an action, > 0.
          arrived: distance at which a path ends; 0 for never.
          dtype: of goals, noise and states.
    Returns: Navigation. ``sample(num_tasks, paths, seed, step)`` is a stack of episodes, each of support
             and query ``(goal [2], ε [step, path, 2])``, for paths before and after adaptation.
    Raises: ArgumentError if a number is out of range.
    Source: Finn et al. 2017, arXiv:1703.03400, section 5.3.

    >>> env = navigation(horizon=3)
    >>> (goal, noise), _ = env.sample(num_tasks=4, paths=5, seed=0)
    >>> env.rollout(lambda s, e: e, goal[0], noise[0]).rewards.shape
    torch.Size([3, 5])
    """
    check_at_least("navigation(horizon)", horizon, 1)
    if not max_action > 0:
        raise ArgumentError("navigation(max_action)", "a number > 0", repr(max_action))

    def rollout(act: Callable[[Tensor, Tensor], Tensor], goal: Tensor, noise: Tensor) -> Trajectories:
        rows: list[tuple[Tensor, ...]] = []
        state = torch.zeros_like(noise[0])
        alive = torch.ones_like(state[..., 0])
        for t in range(horizon):
            action = act(state, noise[t]).detach()
            moved = state + action.clamp(-max_action, max_action)
            square = ((moved - goal) ** 2).sum(-1)
            rows.append((state, action, -square * alive, alive))
            alive = alive * (square >= arrived**2)
            state = moved
        return Trajectories(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def sample(num_tasks: int, paths: int, seed: int, step: int = 0) -> Episode:
        goal = uniform(key_of("navigation", "goal", seed, step), num_tasks, 2) - 0.5
        noise = [
            normal(key_of("navigation", part, seed, step), num_tasks, horizon, paths, 2).to(dtype)
            for part in ("support", "query")
        ]
        return Episode((goal.to(dtype), noise[0]), (goal.to(dtype), noise[1]))

    return Navigation(rollout, sample, horizon)
