"""Meta-Curvature: a learned linear transformation of the inner gradient, a matrix an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaopt.algorithms._maml import maml
from metaopt.optim import PreconditionedSGDHParams, identity_preconditioner, preconditioned_sgd
from metaopt.step import Order
from metaopt.types import LossFn, Meta
from metaopt.unroll import Memory

__all__ = ["meta_curvature", "meta_curvature_init"]


def meta_curvature_init(params: Any, lr: Any = 0.1) -> Meta:
    """What Meta-Curvature learns: ``Meta(params, hparams)``, identity matrices for every axis of a leaf.

    >>> import torch
    >>> meta_curvature_init([torch.zeros(2)]).hparams.preconditioner
    [(tensor([[1., 0.],
              [0., 1.]]),)]
    """
    return Meta(params, PreconditionedSGDHParams(lr, identity_preconditioner(params)))


def meta_curvature(
    loss_fn: LossFn,
    num_steps: int = 1,
    *,
    query_loss_fn: Callable[..., Any] | None = None,
    order: Order = 2,
    memory: Memory = "all",
) -> Callable[..., Any]:
    """Meta-Curvature: a learned transformation of the gradient, ``(meta_params, episode) -> query loss []``.

    ::

        MC(G) = G ×₁ M_o ×₂ M_i ×₃ M_h ×₄ M_w        output, input and the kernel's axes
        θ' = θ − α MC(∇ℓ(θ, support))
        ℓ(θ', query)

    The paper's M_f, over all places of a kernel at once, is here the product M_h ⊗ M_w.

    Args: as in `maml`.
    Returns: a pure function for `map_tasks`; ``meta_params`` from `meta_curvature_init`.
    Raises: as `unroll`; StructureError for matrices that do not fit.
    Cost: MAML's, and Σ nᵢ multiplications an entry of the gradient.
    Source: Park & Oliva 2019, arXiv:1902.03356, equations 4 to 8.

    >>> import torch, metaopt as mo
    >>> task_loss = mo.meta_curvature(lambda p, b: ((p - b) ** 2).sum() / 2)
    >>> meta = mo.algorithms.meta_curvature_init(torch.tensor([2.0, 2.0]), lr=1.0)
    >>> task_loss(meta, mo.Episode(torch.zeros(2), torch.zeros(2)))
    tensor(0.)
    """
    return maml(
        loss_fn, preconditioned_sgd(), num_steps, query_loss_fn=query_loss_fn, order=order, memory=memory
    )
