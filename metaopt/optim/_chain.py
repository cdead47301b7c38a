"""Transformations of the gradient, and their composition with an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError
from metaopt.types import Optimizer

__all__ = ["Transform", "chain"]


class Transform(NamedTuple):
    """A pure map of gradients.

    ``init(params) -> state`` and ``update(params, state, grads, hparams) -> (grads, state)``: an
    Optimizer's signature, with gradients coming out in place of parameters.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    hparams: Any


def chain(*links: Any) -> Any:
    """Transforms one after the other, then the optimizer.

    ::

        g ← T_k(… T_1(g)),  (p, s) ← update(p, s, g)

    Args: links: any number of Transforms, and at most one Optimizer, which comes last.
    Returns: an Optimizer, or without one a Transform. State and hparams are tuples, one entry a link.
    Raises: ArgumentError for a link of another kind, or in the wrong place.

    >>> import torch, metaopt as mo
    >>> opt = chain(mo.optim.clip_by_global_norm(1.0), mo.optim.sgd(lr=1.0))
    >>> opt.update([torch.zeros(2)], opt.init([torch.zeros(2)]), [torch.tensor([3.0, 4.0])], opt.hparams)[0]
    [tensor([-0.6000, -0.8000])]
    """
    if not links:
        raise ArgumentError("chain(links)", "at least one Transform or Optimizer", "none")
    for i, link in enumerate(links):
        last = i == len(links) - 1
        if not isinstance(link, Transform) and not (last and isinstance(link, Optimizer)):
            expected = "a Transform or an Optimizer" if last else "a Transform"
            got = type(link).__name__
            raise ArgumentError(f"chain(links[{i}])", expected, got, remedy="One Optimizer, at the end.")

    def init(params: Any) -> tuple[Any, ...]:
        return tuple(link.init(params) for link in links)

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> tuple[Any, Any]:
        for what, value in (("state", state), ("hparams", hparams)):
            if not isinstance(value, tuple) or len(value) != len(links):
                got = f"{len(value)}" if isinstance(value, tuple) else type(value).__name__
                raise StructureError(f"chain.update({what})", f"a tuple of {len(links)}", got)
        states = []
        for link, s, h in zip(links, state, hparams, strict=True):
            grads, s = link.update(params, s, grads, h)
            states.append(s)
        return grads, tuple(states)  # of the last link: parameters, where it is an optimizer

    kind = Optimizer if isinstance(links[-1], Optimizer) else Transform
    return kind(init, update, tuple(link.hparams for link in links))


def stateless(
    name: str,
    update: Callable[[Any, Any, Any], Any],
    hparams: Any,
    check: Callable[[Any], None],
    real: bool = False,
) -> Transform:
    """A Transform ``(params, grads, hparams) -> grads`` without state."""
    check(hparams)

    def init(params: Any) -> tuple[()]:
        tree.check_parameters(f"{name}.init(params)", params, real)
        return ()

    def step(params: Any, state: Any, grads: Any, h: Any) -> tuple[Any, Any]:
        tree.check_same(f"{name}.update(grads)", grads, params, shapes=True)
        check(h)
        return update(params, grads, h), state

    return Transform(init, step, hparams)
