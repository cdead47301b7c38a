"""Body only in the inner loop: the head stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaopt import tree
from metaopt.algorithms._partial import partial_maml
from metaopt.step import Order
from metaopt.types import LossFn, Optimizer
from metaopt.unroll import Memory

__all__ = ["boil"]


def _other(on: Any) -> Any:
    return not on if isinstance(on, bool) else on  # what is no bool is refused where the tree is split


def boil(
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
    """BOIL: the inner loop moves the body alone, ``(meta_params, episode) -> query loss []``.

    ::

        θ = (body, head)
        body' = unroll(ℓ(·, head), opt, body, support, J)
        ℓ((body', head), query)

    The head is learned by the outer loop alone, so that it is the features that have to change.

    Args: head: which leaves stay: a function of the leaf's path, or a tree of bools, a prefix of params.
          the rest: as in `maml`. Step sizes a leaf are a tree like the body, ``()`` at the head's leaves.
    Returns: a pure function for `map_tasks`.
    Raises: ArgumentError if everything is a head; as `unroll`.
    Cost: MAML's.
    Source: Oh et al. 2021, arXiv:2008.08882, equation 3.

    >>> import torch, metaopt as mo
    >>> loss = lambda p, b: (p["body"] * p["head"] - b) ** 2 / 2
    >>> task_loss = mo.boil(loss, mo.optim.sgd(lr=1.0), head=lambda path: "head" in path)
    >>> params = {"body": torch.tensor(2.0), "head": torch.tensor(1.0)}
    >>> task_loss(params, mo.Episode(torch.tensor(4.0), torch.tensor(4.0)))  # body 2 → 4
    tensor(0.)
    """
    body = (lambda path: not head(path)) if callable(head) else tree.map(_other, head)
    return partial_maml(
        "boil(head)", body, loss_fn, opt, num_steps, query_loss_fn, per_step_hparams, order, memory
    )
