"""Learning to reweight examples, anew in every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.algorithms._hyper_cleaning import weigh
from metaopt.exact import exact
from metaopt.step import inner_step
from metaopt.types import Optimizer

__all__ = ["Reweighted", "reweight"]


class Reweighted(NamedTuple):
    """The carry after one reweighted step.

    ``weights`` [example] sum to 1, or are all 0 where no example helps; ``loss`` [], weighted, and
    ``slopes`` [example], dF/dε, whose negative part the weights are.
    """

    params: Any
    state: Any
    weights: Tensor
    loss: Tensor
    slopes: Tensor


def reweight(
    losses_fn: Callable[[Any, Any], Tensor],
    opt: Optimizer,
    params: Any,
    state: Any,
    batch: Any,
    clean: Any,
    hparams: Any = None,
) -> Reweighted:
    """One training step in which every example weighs what it does for a clean batch.

    ::

        θ̂(ε) = opt(θ, ∇ Σ_i ε_i ℓ_i(θ))
        u_i  = −∂/∂ε_i  1/M Σ_k ℓ_k^clean(θ̂(ε))   at ε = 0        (SGD: α ∇ℓ_iᵀ ∇F)
        w̃_i = max(u_i, 0),   w = w̃ / (Σ w̃ + [Σ w̃ = 0])
        θ    ← opt(θ, ∇ Σ_i w_i ℓ_i(θ))

    Args: losses_fn: ``(params, batch) -> [example]``, the loss of each example.
          opt: an optimizer whose update is differentiable at gradient 0, SGD say; a rule that
              normalises its gradient, Adam say, sees only ε/|ε| there.
          params, state: the carry.
          batch: examples, leaves [example, ...]; clean: ones that can be trusted.
          hparams: ``opt.hparams`` where None.
    Returns: Reweighted(params, state, weights, loss, slopes).
    Raises: StructureError if the leaves of batch disagree on the number of examples, or there is not one
            loss for each.
    Cost: about three ordinary steps.
    Source: Ren et al. 2018, arXiv:1803.09050, Algorithm 1.

    >>> import metaopt as mo
    >>> losses_fn = lambda p, b: (p - b) ** 2 / 2
    >>> given, trusted = torch.tensor([1.0, 2.0, -9.0]), torch.tensor([1.0])
    >>> opt = mo.optim.sgd(0.5)
    >>> mo.reweight(losses_fn, opt, torch.tensor(0.0), opt.init(torch.tensor(0.0)), given, trusted).weights
    tensor([0.3333, 0.6667, 0.0000])
    """
    number = tree.axis_size("reweight(batch)", batch, noun="examples")

    def weighted(params: Any, batch: Any, weights: Tensor) -> Tensor:
        return weigh("reweight(losses_fn)", weights, losses_fn(params, batch)).sum()

    def clean_loss(epsilon: Tensor) -> Tensor:
        ahead, _, _ = inner_step(weighted, opt, params, state, batch, hparams, (epsilon,))
        with exact():
            return losses_fn(ahead, clean).mean()

    slopes = torch.func.grad(clean_loss)(tree.leaves(params)[0].new_zeros(number))
    useful = (-slopes).clamp(min=0)
    total = useful.sum()
    weights = (useful / (total + (total == 0))).detach()  # constants of the step
    params, state, loss = inner_step(weighted, opt, params, state, batch, hparams, (weights,))
    return Reweighted(params, state, weights, loss, slopes)
