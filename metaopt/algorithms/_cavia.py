"""CAVIA: only context parameters adapt, an input of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaopt import tree
from metaopt.algorithms._maml import maml
from metaopt.step import Order
from metaopt.types import LossFn, Meta, Optimizer
from metaopt.unroll import Memory

__all__ = ["cavia"]


def cavia(
    loss_fn: LossFn,
    opt: Optimizer,
    context: Any,
    num_steps: int = 1,
    *,
    query_loss_fn: Callable[..., Any] | None = None,
    per_step_hparams: bool = False,
    order: Order = 2,
    memory: Memory = "all",
) -> Callable[..., Any]:
    """CAVIA: only a context adapts, an input of the network, ``(meta_params, episode) -> query loss []``.

    ::

        c_0 = 0,    c_{j+1} = c_j − α ∇_c ℓ(θ, support, c_j)
        ℓ(θ, query, c_J)

    Args: loss_fn: ``(params, batch, context, *phi) -> []``.
          opt: the optimizer of the context.
          context: a pytree of tensors; its shapes and dtypes are the context's, which starts at 0.
          query_loss_fn: ``(params, batch, context) -> tree``; ``loss_fn`` with its phi where None.
          the rest: as in `maml`; step sizes a leaf are a tree like the context.
    Returns: a pure function for `map_tasks`; ``meta_params`` are θ, or `Meta` (θ, hparams, phi).
    Raises: as `unroll`.
    Cost: MAML's; a task's state is the context alone.
    Source: Zintgraf et al. 2019, arXiv:1810.03642, equations 4 to 6.

    >>> import torch, metaopt as mo
    >>> loss = lambda p, b, c: (p + c - b) ** 2 / 2
    >>> task_loss = mo.cavia(loss, mo.optim.sgd(lr=0.5), torch.tensor(0.0))
    >>> task_loss(torch.tensor(2.0), mo.Episode(torch.tensor(0.0), torch.tensor(0.0)))  # c: 0 → −1
    tensor(0.5000)
    """

    def task_loss(meta_params: Any, episode: Any) -> Any:
        meta = meta_params if isinstance(meta_params, Meta) else Meta(meta_params)
        theta, phi = meta.params, meta.phi
        inner = maml(
            lambda c, batch, theta, *phi: loss_fn(theta, batch, c, *phi),
            opt,
            num_steps,
            query_loss_fn=lambda c, batch: (
                query_loss_fn(theta, batch, c) if query_loss_fn else loss_fn(theta, batch, c, *phi)
            ),
            per_step_hparams=per_step_hparams,
            order=order,
            memory=memory,
        )
        return inner(Meta(tree.zeros_like(context), meta.hparams, (theta, *phi)), episode)

    return task_loss
