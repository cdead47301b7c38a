"""Per-parameter weight decay, tuned on held-out data by implicit differentiation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import StructureError
from metaopt.hypergrad import Problem
from metaopt.types import LossFn, Optimizer

__all__ = ["learned_decay"]


def learned_decay(
    loss_fn: LossFn, opt: Optimizer, params: Any, batch: Any, held_out: Any, num_steps: int
) -> Problem:
    """Return the inner problem whose φ is a weight decay for each parameter.

    ::

        L(θ, λ) = ℓ(θ, batch) + ½ Σ_i exp(λ_i) θ_i²,    F(λ) = ℓ(θ*(λ), held out)
        dF/dλ = −∇F(θ*)ᵀ [∂²L/∂θ²]⁻¹ ∂²L/∂θ∂λ

    As many hyperparameters as parameters cost one linear solve: learn λ by `bilevel` with
    ``estimator=partial(hypergrad.implicit, solve=linsolve.neumann(K, α))`` or ``linsolve.cg()``, and
    ``warm_start=True``.

    Args: loss_fn: ``(params, batch) -> []``.
          opt, params: the inner optimizer and θ_0.
          batch, held_out: what θ is fitted to, and what λ is judged by.
          num_steps: inner steps of each outer one.
    Returns: a Problem for `metaopt.hypergrad`; its φ is ``Meta(None, None, (λ,))``, λ a tree like
             params, each leaf shaped like its parameter or broadcast to it (0-d: one decay a tensor).
    Raises: StructureError, from the estimator, if λ and params differ.
    Cost: as the estimator has it; memory free of ``num_steps`` by ``implicit``.
    Source: Lorraine et al. 2020, arXiv:1911.02590, section 5.3.

    >>> import metaopt as mo
    >>> problem = mo.learned_decay(
    ...     lambda p, b: (p - b) ** 2 / 2, mo.optim.sgd(0.5), torch.tensor(0.0), 2.0, 1.0, 40
    ... )
    >>> phi = mo.Meta(None, None, (torch.tensor(-2.0),))  # θ* = 2/(1+exp λ), right where exp λ = 1
    >>> found = mo.bilevel(problem, phi, mo.optim.sgd(2.0), 30, estimator=mo.hypergrad.implicit)
    >>> found.phi.phi[0].abs() < 1e-4
    tensor(True)
    """

    def penalty(p: Tensor, decay: Tensor) -> Tensor:
        if torch.broadcast_shapes(decay.shape, p.shape) != p.shape:
            expected = f"a shape that broadcasts to {list(p.shape)}"
            raise StructureError("learned_decay(phi)", expected, str(list(decay.shape)))
        return (decay.exp() * p.square()).sum()

    def decayed(params: Any, batch: Any, log_decay: Any) -> Tensor:
        tree.check_same("learned_decay(phi)", log_decay, params)
        penalties = tree.map(penalty, params, log_decay)
        return loss_fn(params, batch) + torch.stack(tree.leaves(penalties)).sum() / 2

    def judged(params: Any, held_out: Any, log_decay: Any) -> Tensor:
        return loss_fn(params, held_out)

    return Problem(decayed, opt, batch, num_steps, judged, held_out, params)
