"""Meta-SGD: a step size for every parameter, learned with the initialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metaopt import tree
from metaopt.algorithms._maml import maml
from metaopt.optim import SGDHParams, sgd
from metaopt.step import Order
from metaopt.types import LossFn, Meta
from metaopt.unroll import Memory

__all__ = ["meta_sgd", "meta_sgd_init"]


def meta_sgd_init(params: Any, lr: float = 0.1) -> Meta:
    """What Meta-SGD learns: ``Meta(params, hparams)``, a step size ``lr`` for every entry of params.

    >>> meta_sgd_init([torch.zeros(2)], lr=0.5).hparams.lr
    [tensor([0.5000, 0.5000])]
    """
    return Meta(params, SGDHParams(lr=tree.map(lambda p: torch.full_like(p, lr), params)))


def meta_sgd(
    loss_fn: LossFn,
    num_steps: int = 1,
    *,
    query_loss_fn: Callable[..., Any] | None = None,
    order: Order = 2,
    memory: Memory = "all",
) -> Callable[..., Any]:
    """Meta-SGD: a learned step size for every entry, ``(meta_params, episode) -> query loss []``.

    ::

        θ' = θ − α ∘ ∇ℓ(θ, support)        α like θ: direction and length of the step are learned
        ℓ(θ', query)

    Args: as in `maml`; the inner optimizer is gradient descent.
    Returns: a pure function for `map_tasks`; ``meta_params`` from `meta_sgd_init`.
    Raises: as `unroll`.
    Cost: MAML's; twice the meta-parameters.
    Source: Li et al. 2017, arXiv:1707.09835, equations 3 and 4.

    >>> import metaopt as mo
    >>> task_loss = mo.meta_sgd(lambda p, b: ((p - b) ** 2).sum() / 2)
    >>> meta = mo.algorithms.meta_sgd_init(torch.tensor([2.0, 2.0]), lr=1.0)
    >>> task_loss(meta, mo.Episode(torch.zeros(2), torch.zeros(2)))
    tensor(0.)
    """
    return maml(loss_fn, sgd(), num_steps, query_loss_fn=query_loss_fn, order=order, memory=memory)
