"""Almost no inner loop: only the head adapts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaopt.algorithms._partial import partial_maml
from metaopt.step import Order
from metaopt.types import LossFn, Optimizer
from metaopt.unroll import Memory

__all__ = ["anil"]


def anil(
    loss_fn: LossFn,
    opt: Optimizer,
    num_steps: int = 1,
    *,
    head: Any,
    query_loss_fn: Callable[..., Any] | None = None,
    per_step_hparams: bool = False,
    order: Order = 2,
    memory: Memory = "all",
) -> Callable[..., Any]:
    """ANIL: the inner loop moves the head alone, ``(meta_params, episode) -> query loss []``.

    ::

        θ = (body, head)
        head' = unroll(ℓ(body, ·), opt, head, support, J)
        ℓ((body, head'), query)

    Args: head: which leaves adapt: a function of the leaf's path, or a tree of bools, a prefix of params.
          the rest: as in `maml`. Step sizes a leaf are a tree like the head, ``()`` at the body's leaves.
    Returns: a pure function for `map_tasks`.
    Raises: ArgumentError if nothing is a head; as `unroll`.
    Cost: MAML's, without the inner backward passes through the body.
    Source: Raghu et al. 2020, arXiv:1909.09157, section 4.

    >>> import torch, metaopt as mo
    >>> loss = lambda p, b: (p["body"] * p["head"] - b) ** 2 / 2
    >>> task_loss = mo.anil(loss, mo.optim.sgd(lr=0.25), head=lambda path: "head" in path)
    >>> params = {"body": torch.tensor(2.0), "head": torch.tensor(1.0)}
    >>> task_loss(params, mo.Episode(torch.tensor(4.0), torch.tensor(4.0)))  # head 1 → 2
    tensor(0.)
    """
    return partial_maml(
        "anil(head)", head, loss_fn, opt, num_steps, query_loss_fn, per_step_hparams, order, memory
    )
