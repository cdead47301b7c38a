"""The hypergradient of the last steps alone."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, is_count
from metaopt.hypergrad._differentiate import check_finite, check_problem, differentiate, is_plain
from metaopt.hypergrad._problem import Problem, Rollout, complete, count_steps, outer, rollout, stops
from metaopt.types import Hypergrad, Meta
from metaopt.unroll import Memory

__all__ = ["one_step", "prefix", "truncated"]

_BLIND = "Initial parameters aside, the last steps must see all of phi; use unrolled."


def prefix(
    problem: Problem, meta: Meta, stop: int, start: int = 0, params: Any = None, state: Any = None
) -> Rollout:
    """Steps start … stop−1 for a constant of the estimate (not of whoever differentiates the estimate)."""
    plain = is_plain(meta, problem.batch, problem.outer_batch)
    with torch.no_grad() if plain else contextlib.nullcontext():
        return rollout(problem, meta, start, stop, params, state)


def truncated(problem: Problem, phi: Any, *, last: int, memory: Memory = "all") -> Hypergrad:
    """Backpropagation through the last K steps; θ_{J−K} is a constant.

    ::

        ∂F/∂φ + Σ_{j ≥ J−K} (∂F/∂θ_J) (Π_{i>j} ∂θ_{i+1}/∂θ_i) ∂θ_{j+1}/∂φ

    Biased by O((1 − αμ)^K) where the inner loss is μ-strongly convex. The gradient for initial
    parameters is 0 if K < J, and an error where φ holds nothing else.

    Args: problem, phi: as in `unrolled`.
          last: K >= 0.
          memory: as in `unrolled`, for the last K steps.
    Returns: as `unrolled`.
    Raises: as `unrolled`; ArgumentError if K is out of range.
    Cost: J steps forward, K backward; memory O(K).
    Source: Shaban et al. 2019, arXiv:1810.10667.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: (p - b) ** 2 / 2, mo.optim.sgd(lr=0.5), torch.tensor(0.0), 2)
    >>> phi = mo.Meta(torch.tensor(4.0), mo.optim.sgd(lr=torch.tensor(0.5)).hparams)
    >>> truncated(problem, phi, last=1).grad.hparams.lr
    tensor(-2.)
    """
    return _last("truncated", problem, phi, last, memory)


def one_step(problem: Problem, phi: Any) -> Hypergrad:
    """One-step differentiation: backpropagation through the last step alone (T1−T2, Jacobian-free).

    ::

        ∂F/∂φ + (∂F/∂θ_J) ∂step(θ_{J−1}, φ)/∂φ

    With SGD and loss parameters this is T1−T2: the inverse Hessian is replaced by α times the identity.

    Args: problem, phi: as in `unrolled`.
    Returns: as `unrolled`.
    Raises: as `truncated`.
    Cost: J steps forward, one backward. The error is O(ρ/(1−ρ)), ρ the contraction factor of the step.
    Source: Luketina et al. 2016, arXiv:1511.06727; Bolte et al. 2023, arXiv:2305.13768.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=1)
    >>> one_step(problem, torch.tensor(4.0)).grad
    tensor(1.)
    """
    return _last("one_step", problem, phi, min(1, count_steps(problem)), "all")


def _last(where: str, problem: Problem, phi: Any, last: int, memory: Memory) -> Hypergrad:
    check_problem(where, problem)
    total = count_steps(problem)
    if not is_count(last, 0) or last > total:
        raise ArgumentError(f"{where}(last)", f"an integer from 0 to num_steps={total}", repr(last))
    meta, first = complete(where, problem, phi), total - last
    params = state = None
    losses, judged = [], []  # of the steps that are constants, and the θ among them that F judges
    for begin, end in itertools.pairwise([0, *stops(problem, 0, first)] if first else []):
        params, state, _, some = prefix(problem, meta, end, begin, params, state)
        losses.append(some)
        if problem.outer_every and end % problem.outer_every == 0 and end < total:
            judged.append(params)

    count = total // (problem.outer_every or 1)

    def value(phi: Any) -> tuple[Tensor, Rollout]:
        now = complete(where, problem, phi)
        out = rollout(problem, now, first, total, params, state, memory=memory)
        shares = [outer(problem, theta, now.phi) / count for theta in judged]
        out = out._replace(value=sum(shares, out.value), losses=torch.cat([*losses, out.losses]))
        check_finite(where, out.losses)
        return out.value, out

    return differentiate(where, problem, phi, value, _BLIND if first else "")
