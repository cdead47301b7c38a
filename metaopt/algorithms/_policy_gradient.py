"""The policy gradient as a loss that can be differentiated twice, and a Gaussian policy for it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.algorithms._coordinatewise import dense
from metaopt.algorithms._navigation import Trajectories
from metaopt.errors import ArgumentError

__all__ = ["Policy", "baseline", "gaussian_policy", "log_prob", "policy_gradient_loss"]


class Policy(NamedTuple):
    """θ: ``layers`` (W, b) of the mean's tanh MLP, and ``log_std`` [action]."""

    layers: Any
    log_std: Tensor


def gaussian_policy(
    hidden: tuple[int, ...] = (100, 100),
    *,
    observation: int = 2,
    action: int = 2,
    std: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """θ of π_θ(a|s) = N(MLP_θ(s), diag σ²); the last layer starts at a hundredth.

    >>> gaussian_policy((8,)).log_std
    tensor([0., 0.])
    """
    if not std > 0:
        raise ArgumentError("gaussian_policy(std)", "a number > 0", repr(std))
    generator = torch.Generator().manual_seed(seed)
    *inner, (weight, bias) = dense((observation, *hidden, action), generator, dtype)
    return Policy((*inner, (weight / 100, bias)), torch.full((action,), math.log(std), dtype=dtype))


def mean(policy: Policy, s: Tensor) -> Tensor:
    """MLP_θ(s)."""
    for weight, bias in policy.layers[:-1]:
        s = torch.tanh(s @ weight + bias)
    weight, bias = policy.layers[-1]
    return s @ weight + bias


def log_prob(policy: Policy, s: Tensor, a: Tensor) -> Tensor:
    """log π_θ(a|s), summed over the coordinates of the action."""
    z = (a - mean(policy, s)) * torch.exp(-policy.log_std)
    return -(z**2 / 2 + policy.log_std + math.log(2 * math.pi) / 2).sum(-1)


def returns(rewards: Tensor, discount: float) -> Tensor:
    """R_t = Σ_{k ≥ t} γ^{k−t} r_k, of [step, ...]."""
    rows, total = [], torch.zeros_like(rewards[0])
    for r in rewards.flip(0):
        total = r + discount * total
        rows.append(total)
    return torch.stack(rows).flip(0)


def baseline(paths: Trajectories, discount: float, ridge: float = 1e-5) -> Tensor:
    """b(s_t, t) [step, path]: ridge regression of the returns on [s, s², τ, τ², τ³, 1], τ = t/100.

    Source: Duan et al. 2016, arXiv:1604.06778, section 6 (linear feature baseline).
    """
    s, target = paths.observations, returns(paths.rewards, discount)
    tau = (torch.arange(len(s), dtype=s.dtype, device=s.device) / 100)[:, None, None].expand(*s.shape[:2], 1)
    x = torch.cat([s, s**2, tau, tau**2, tau**3, torch.ones_like(tau)], -1) * paths.alive[..., None]
    flat, y = x.flatten(0, 1), (target * paths.alive).flatten()
    gram = flat.T @ flat + ridge * torch.eye(x.shape[-1], dtype=s.dtype, device=s.device)
    return x @ torch.linalg.solve(gram, flat.T @ y)


def policy_gradient_loss(
    policy: Policy,
    paths: Trajectories,
    *,
    discount: float = 0.99,
    dice: bool = True,
    use_baseline: bool = True,
) -> Tensor:
    """The loss whose gradients are the policy's, of every order.

    ::

        box(x) = exp(x − ⊥x),   w_t = Σ_{k ≤ t} log π_θ(a_k|s_k)
        −1/N Σ_paths Σ_t γᵗ [box(w_t) r_t + (1 − box(log π_θ(a_t|s_t))) b_t]          dice
        −1/N Σ_paths Σ_t γᵗ log π_θ(a_t|s_t) ⊥(R_t − b_t)                             surrogate

    Both have the gradient of −E Σ γᵗ r_t by the score function. The second derivative of the surrogate
    is not an estimate of the Hessian; that of DiCE is.

    Args: policy: θ.
          paths: what the policy did, constants.
          discount: γ in [0, 1].
          dice: the first form.
          use_baseline: b_t by `baseline`; else 0.
    Returns: [].
    Source: Williams 1992; Foerster et al. 2018, arXiv:1802.05098; Mao et al. 2019, arXiv:1906.00987, whose
            baseline term keeps b out of the first derivative's mean.

    >>> paths = Trajectories(torch.zeros(1, 3, 2), torch.ones(1, 3, 2), -torch.ones(1, 3), torch.ones(1, 3))
    >>> policy_gradient_loss(gaussian_policy(()), paths, use_baseline=False)
    tensor(1.)
    """
    if not 0 <= discount <= 1:
        raise ArgumentError("policy_gradient_loss(discount)", "a number in [0, 1]", repr(discount))
    paths = Trajectories(*(x.detach() for x in paths))
    log_pi = log_prob(policy, paths.observations, paths.actions) * paths.alive
    steps = torch.arange(len(log_pi), dtype=log_pi.dtype, device=log_pi.device)
    gamma = (discount**steps)[:, None]
    b = baseline(paths, discount).detach() * paths.alive if use_baseline else torch.zeros_like(log_pi)
    if not dice:
        advantage = returns(paths.rewards, discount) - b
        return -(gamma * log_pi * advantage).sum(0).mean()
    box = lambda x: torch.exp(x - x.detach())
    return -(gamma * (box(log_pi.cumsum(0)) * paths.rewards + (1 - box(log_pi)) * b)).sum(0).mean()
