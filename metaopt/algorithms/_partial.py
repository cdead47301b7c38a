"""Inner loops over a part of the parameters: what adapts, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from metaopt import tree
from metaopt.algorithms._maml import maml
from metaopt.errors import ArgumentError
from metaopt.step import Order
from metaopt.types import Episode, LossFn, Meta, Optimizer
from metaopt.unroll import Memory

__all__ = ["Part", "partial_maml", "split"]


class Part(NamedTuple):
    """``fast`` and ``slow``: the tree with ``()`` in place of the other's leaves; ``join`` undoes it."""

    fast: Any
    slow: Any
    join: Callable[[Any, Any], Any]


def split(params: Any, adapts: Any, where: str = "split(adapts)") -> Part:
    """Split a tree into what adapts and what does not.

    Args: params: any pytree.
          adapts: a function of a leaf's path to a bool, or a tree of bools that is a prefix of params.
    Raises: ArgumentError where nothing adapts; StructureError for a tree that is no prefix.

    >>> part = split({"body": 1.0, "head": 2.0}, {"body": False, "head": True})
    >>> part.fast, part.slow, part.join(part.fast, part.slow)
    ({'body': (), 'head': 2.0}, {'body': 1.0, 'head': ()}, {'body': 1.0, 'head': 2.0})
    """
    leaves, structure = tree.flatten(params)
    if callable(adapts):
        mask = [bool(adapts(path)) for path in tree.paths(params)]
    else:
        mask = tree.broadcast_prefix(where, adapts, params)
    if not all(isinstance(m, bool) for m in mask):
        raise ArgumentError(where, "a function of a path, or a tree of bools", repr(adapts))
    if not any(mask):
        remedy = f"The paths are {', '.join(tree.paths(params)[-2:])} and so on."
        raise ArgumentError(where, "at least one leaf that adapts", "none", remedy=remedy)

    def side(on: bool) -> Any:
        return tree.unflatten(structure, [x if m is on else () for x, m in zip(leaves, mask, strict=True)])

    def join(fast: Any, slow: Any) -> Any:
        here, there = iter(tree.leaves(fast)), iter(tree.leaves(slow))
        return tree.unflatten(structure, [next(here if m else there) for m in mask])

    return Part(side(True), side(False), join)


def partial_maml(
    where: str,
    adapts: Any,
    loss_fn: LossFn,
    opt: Optimizer,
    num_steps: int,
    query_loss_fn: Callable[..., Any] | None,
    per_step_hparams: bool,
    order: Order,
    memory: Memory,
) -> Callable[..., Any]:
    """MAML whose inner loop moves ``fast`` and takes ``slow`` as a parameter of the loss."""

    def task_loss(meta_params: Any, episode: Episode) -> Any:
        meta = meta_params if isinstance(meta_params, Meta) else Meta(meta_params)
        part = split(meta.params, adapts, where)

        def loss_of_fast(fast: Any, batch: Any, slow: Any, *phi: Any) -> Any:
            return loss_fn(part.join(fast, slow), batch, *phi)

        def query_of_fast(fast: Any, batch: Any) -> Any:
            assert query_loss_fn is not None
            return query_loss_fn(part.join(fast, part.slow), batch)

        inner = maml(
            loss_of_fast,
            opt,
            num_steps,
            query_loss_fn=query_of_fast if query_loss_fn else None,
            per_step_hparams=per_step_hparams,
            order=order,
            memory=memory,
        )
        return inner(Meta(part.fast, meta.hparams, (part.slow, *meta.phi)), episode)

    return task_loss
