"""Model-agnostic meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaopt.exact import exact
from metaopt.step import Order
from metaopt.types import LossFn, Meta, Optimizer
from metaopt.unroll import Memory, unroll

__all__ = ["maml"]


def maml(
    loss_fn: LossFn,
    opt: Optimizer,
    num_steps: int = 1,
    *,
    query_loss_fn: Callable[..., Any] | None = None,
    per_step_hparams: bool = False,
    order: Order = 2,
    memory: Memory = "all",
) -> Callable[..., Any]:
    """MAML: an initialisation from which a few steps suffice, ``(meta_params, episode) -> query loss []``.

    ::

        θ' = unroll(ℓ, opt, θ, support, J)
        ℓ(θ', query)

    Args: loss_fn: ``(params, batch, *phi) -> []``.
          opt: the inner optimizer.
          num_steps: inner steps J.
          query_loss_fn: ``(params, batch)``, what the adapted parameters are judged by: a scalar or a
              pytree such as (loss, accuracy); ``loss_fn`` with its phi where None.
          per_step_hparams, order, memory: as in `unroll`; order=1 is first-order MAML.
    Returns: a pure function for `map_tasks`. ``meta_params`` are the initial parameters θ, or a `Meta`
             where hyperparameters (Meta-SGD) or loss parameters are learned too; ``episode`` is an
             Episode (support, query). With buffers as a third argument, running statistics say, it
             threads them through the steps and the query, and returns (loss, buffers): the losses are
             then called as in `inner_step`.
    Raises: as `unroll`.
    Cost: J+1 forward and J backward passes, and as much again for the outer gradient.
    Source: Finn et al. 2017, arXiv:1703.03400, Algorithm 1; Li et al. 2017, arXiv:1707.09835.

    >>> import torch, metaopt as mo
    >>> task_loss = mo.maml(lambda p, b: (p - b) ** 2 / 2, mo.optim.sgd(lr=0.5), num_steps=1)
    >>> episodes = mo.Episode(torch.tensor([0.0, 4.0]), torch.tensor([0.0, 4.0]))
    >>> mo.map_tasks(task_loss)(torch.tensor(2.0), episodes)
    tensor([0.5000, 0.5000])
    """

    def task_loss(meta_params: Any, episode: Any, buffers: Any = None) -> Any:
        meta = meta_params if isinstance(meta_params, Meta) else Meta(meta_params)
        support, query = episode
        out = unroll(
            loss_fn,
            opt,
            meta.params,
            support,
            num_steps,
            meta.hparams,
            meta.phi,
            per_step_hparams=per_step_hparams,
            order=order,
            memory=memory,
            buffers=buffers,
        )
        threaded = {} if buffers is None else {"buffers": out.buffers}
        with exact():
            if query_loss_fn is not None:
                return query_loss_fn(out.params, query, **threaded)
            return loss_fn(out.params, query, *meta.phi, **threaded)

    return task_loss
