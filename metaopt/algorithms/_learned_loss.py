"""ML³: a loss network, learned so that descending it solves the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.algorithms._maml import maml
from metaopt.types import LossFn, Optimizer
from metaopt.unroll import Memory

__all__ = ["LearnedLoss", "learned_loss"]


class LearnedLoss(NamedTuple):
    """``loss_fn(params, (x, y), φ) -> []``, the loss to adapt with: ``unroll(..., phi=(φ,))``; and
    ``task_loss(Meta(θ_0, None, (φ,)), episode) -> []``, what φ is trained by, for `map_tasks`."""

    loss_fn: LossFn
    task_loss: Callable[..., Any]


def learned_loss(
    apply: Callable[[Any, Any], Tensor],
    loss_apply: Callable[[Any, Tensor], Tensor],
    opt: Optimizer,
    num_steps: int,
    task_loss_fn: LossFn,
    *,
    memory: Memory = "all",
) -> LearnedLoss:
    """Return a learned loss M_φ and the function that trains it.

    ::

        ℓ_φ(θ; x, y) = mean M_φ(f_θ(x), y)
        θ' = unroll(ℓ_φ, opt, θ, support, J)
        φ ← φ − η ∇_φ L_task(θ', query)

    Once trained, φ is kept, and the task loss is needed no more.

    Args: apply: the model f, ``(params, x) -> [example, output]``.
          loss_apply: the loss network M, ``(φ, features) -> [example, 1]``, features [example, output +
              target] the prediction and its target; end it with softplus to bound it from below.
          opt: the inner optimizer.
          num_steps: inner steps J.
          task_loss_fn: ``(params, query) -> []``, the loss that one really means.
          memory: as in `unroll`.
    Returns: LearnedLoss(loss_fn, task_loss). In task_loss θ_0 may be learned as well, or be a new draw
             for each task: ``in_dims=(Meta(0, None, (None,)), 0)``.
    Cost: as `maml`.
    Source: Bechtle et al. 2021, arXiv:1906.05374 (ML³), Algorithm 1.

    >>> import metaopt as mo
    >>> apply, loss_apply = lambda w, x: x * w, lambda phi, both: (phi * both).sum(-1, True) ** 2
    >>> mse = lambda w, batch: (apply(w, batch[0]) - batch[1]).square().mean()
    >>> learned = mo.learned_loss(apply, loss_apply, mo.optim.sgd(0.5), 1, mse)
    >>> data = (torch.ones(1, 1), torch.ones(1, 1))
    >>> meta = mo.Meta(torch.zeros(()), None, (torch.tensor([1.0, -1.0]),))
    >>> learned.task_loss(meta, mo.Episode(data, data))
    tensor(0.)
    """

    def inner_loss(params: Any, batch: Any, phi: Any) -> Tensor:
        x, y = batch
        return loss_apply(phi, torch.cat([apply(params, x), y], -1)).mean()

    return LearnedLoss(
        inner_loss, maml(inner_loss, opt, num_steps, query_loss_fn=task_loss_fn, memory=memory)
    )
