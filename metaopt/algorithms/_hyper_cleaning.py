"""Data hyper-cleaning: one learned weight for each training example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, StructureError
from metaopt.hypergrad import Problem
from metaopt.types import Optimizer

__all__ = ["hyper_cleaning", "project_weights", "weigh"]

_BISECTIONS = 60  # of an interval of width 1: below the spacing of float64


def weigh(where: str, weights: Tensor, losses: Tensor) -> Tensor:
    """λ_i ℓ_i: one loss for each weight, and no broadcasting, which would weigh all examples alike."""
    if losses.shape != weights.shape:
        expected, got = f"a loss for each example, {list(weights.shape)}", f"shape {list(losses.shape)}"
        raise StructureError(where, expected, got, remedy="Reduce it over all axes but the first.")
    return weights * losses


def hyper_cleaning(
    losses_fn: Callable[[Any, Any], Tensor],
    opt: Optimizer,
    params: Any,
    batch: Any,
    clean: Any,
    num_steps: int,
    *,
    penalty: Callable[[Any], Tensor] | None = None,
) -> Problem:
    """Return the inner problem whose φ is one weight for each training example.

    ::

        θ_J(λ) = unroll( 1/N Σ_i λ_i ℓ_i(θ) + Ω(θ) ),    F(λ) = 1/M Σ_k ℓ_k^clean(θ_J(λ))

    Examples whose labels are wrong get small weights: following them hurts on the clean set. Learn λ by
    `bilevel` with `project_weights`, and any estimator.

    Args: losses_fn: ``(params, batch) -> [example]``, the loss of each example.
          opt, params: the inner optimizer and θ_0.
          batch: N training examples, some of them corrupted; the same in every step.
          clean: M examples that can be trusted.
          num_steps: J.
          penalty: Ω, none where None; an L2 penalty makes the solution unique, as `implicit` wants it.
    Returns: a Problem for `metaopt.hypergrad`; its φ is ``Meta(None, None, (λ,))``, λ [example].
    Raises: StructureError, from the estimator, unless there is one loss for each weight.
    Cost: as the estimator has it; `unrolled` and `mixed` cost one backward pass for all N weights.
    Source: Franceschi et al. 2017, arXiv:1703.01785, section 5.1.

    >>> import torch, metaopt as mo
    >>> losses_fn = lambda p, b: (p - b) ** 2 / 2
    >>> given, trusted = torch.tensor([1.0, -9.0]), torch.tensor([1.0])
    >>> problem = mo.hyper_cleaning(losses_fn, mo.optim.sgd(0.1), torch.tensor(0.0), given, trusted, 10)
    >>> phi = mo.Meta(None, None, (torch.full((2,), 0.5),))
    >>> mo.bilevel(problem, phi, mo.optim.sgd(0.5), 5, project=mo.project_weights).phi.phi[0]
    tensor([1., 0.])
    """

    def inner_loss(params: Any, batch: Any, weights: Tensor) -> Tensor:
        loss = weigh("hyper_cleaning(losses_fn)", weights, losses_fn(params, batch)).mean()
        return loss if penalty is None else loss + penalty(params)

    def clean_loss(params: Any, clean: Any, weights: Tensor) -> Tensor:
        return losses_fn(params, clean).mean()

    return Problem(inner_loss, opt, batch, num_steps, clean_loss, clean, params)


def project_weights(phi: Any, budget: float | None = None) -> Any:
    """Project the example weights onto the box, and onto a budget.

    ::

        argmin_{λ'} ‖λ' − λ‖²  subject to  0 ≤ λ'_i ≤ 1,  Σ λ'_i ≤ R
        λ' = clip(λ − τ, 0, 1),  τ ≥ 0 the least that keeps to R

    Args: phi: a Meta whose φ^loss is ``(λ,)``, or λ [example] itself.
          budget: R > 0, how many examples one is ready to believe; no bound where None.
    Returns: like ``phi``.
    Raises: ArgumentError if the budget is not positive.
    Source: Franceschi et al. 2017, section 5.1: Λ = {λ ∈ [0,1]^N : ‖λ‖₁ ≤ R}.

    >>> project_weights(torch.tensor([-1.0, 0.75, 5.0]), budget=1.5)
    tensor([0.0000, 0.5000, 1.0000])
    """
    if budget is not None and not budget > 0:
        raise ArgumentError("project_weights(budget)", "a number > 0 or None", repr(budget))
    if not isinstance(phi, Tensor):
        return phi._replace(phi=tuple(project_weights(weights, budget) for weights in phi.phi))
    weights = phi.clamp(0, 1)
    if budget is None or phi.numel() == 0:
        return weights
    low, high = torch.zeros_like(phi.sum()), phi.max().clamp(min=0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        over = (phi - middle).clamp(0, 1).sum() > budget
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return torch.where(weights.sum() > budget, (phi - high).clamp(0, 1), weights)
