"""The inner step: everything the library does is done to this function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.exact import exact, paused
from metaopt.gradient import value_and_gradient
from metaopt.types import LossFn, Optimizer

__all__ = ["Order", "check_loss", "check_optimizer", "check_order", "check_phi", "inner_step"]

Order = Literal[1, 2]


def check_order(where: str, order: object) -> None:
    """Raise `ArgumentError` unless ``order`` is 1 or 2."""
    if type(order) is not int or order not in (1, 2):
        raise ArgumentError(where, "1 or 2", repr(order))


def check_loss(where: str, loss_fn: object) -> None:
    """Raise `ArgumentError` unless ``loss_fn`` is a function."""
    if not callable(loss_fn):
        remedy = "Pass the function itself, not its result."
        raise ArgumentError(where, "a function", type(loss_fn).__name__, remedy=remedy)


def check_phi(where: str, phi: object) -> None:
    """Raise `ArgumentError` unless ``phi`` is a tuple: a tensor would be taken apart into its rows."""
    if not isinstance(phi, (tuple, list)):
        raise ArgumentError(where, "a tuple, (phi,) say", type(phi).__name__)


def check_optimizer(where: str, opt: object) -> None:
    """Raise `ArgumentError` unless ``opt`` is an `Optimizer` of pure functions."""
    if not isinstance(opt, Optimizer):
        remedy = "Take metaopt.optim.sgd(lr=...), or metaopt.optim.from_torch(opt, model).optimizer."
        raise ArgumentError(where, "a metaopt.Optimizer", type(opt).__name__, remedy=remedy)


def inner_step(
    loss_fn: LossFn,
    opt: Optimizer,
    params: Any,
    state: Any,
    batch: Any,
    hparams: Any = None,
    phi: tuple[Any, ...] = (),
    *,
    order: Order = 2,
    buffers: Any = None,
) -> Any:
    """One inner step, differentiable in all that it is given.

    ::

        ℓ, G = loss, ∇loss at (params, batch, φ^loss)
        params, state = update(params, state, G, φ^opt)

    Args: loss_fn: ``(params, batch, *phi) -> []``.
          opt: the optimizer.
          params: pytree of floating-point tensors.
          state: what ``opt.init(params)`` or the step before returned.
          batch: any pytree, for ``loss_fn``.
          hparams: φ^opt; ``opt.hparams`` where None.
          phi: φ^loss, the further arguments of ``loss_fn``.
          order: 2 differentiates through G; 1 takes G for a constant (first-order MAML).
          buffers: pytree of tensors, running statistics say, that every step moves on: the loss is
              then called as ``loss_fn(params, batch, *phi, buffers=buffers) -> (loss, buffers)``.
    Returns: (params, state, loss []), the loss taken before the step; with buffers, these as a fourth.
    Raises: ArgumentError if the loss is no scalar, opt no Optimizer or order neither 1 nor 2;
            StructureError if trees differ.
    Cost: one forward and one backward pass of the loss.

    >>> import torch, metaopt as mo
    >>> opt = mo.optim.sgd(lr=0.1)
    >>> theta = torch.tensor(3.0)
    >>> inner_step(lambda p, b: (p - b) ** 2, opt, theta, opt.init(theta), torch.tensor(1.0))[0]
    tensor(2.6000)
    """
    check_loss("inner_step(loss_fn)", loss_fn)
    check_optimizer("inner_step(opt)", opt)
    check_order("inner_step(order)", order)
    check_phi("inner_step(phi)", phi)
    leaves, structure = tree.flatten(params)
    if not all(isinstance(x, Tensor) for x in leaves):
        tree.check_parameters("inner_step(params)", params)
    if order == 1:
        leaves, phi = [x.detach() for x in leaves], tree.detach(phi)

    threaded: Any = loss_fn

    def loss_of(leaves: Sequence[Tensor]) -> tuple[Tensor, Any]:
        params, moved = tree.unflatten(structure, leaves), ()
        with exact():
            if buffers is None:
                loss = loss_fn(params, batch, *phi)
            else:
                loss, moved = threaded(params, batch, *phi, buffers=buffers)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ArgumentError(
                "inner_step(loss_fn)", "a scalar loss", got, remedy="Reduce it, with .mean() say."
            )
        return loss, moved

    with paused():
        loss, grads, moved = value_and_gradient(loss_of, leaves, twice=order == 2)
    if order == 1:
        grads = [g.detach() for g in grads]
    grads = tree.unflatten(structure, grads)
    params, state = opt.update(params, state, grads, opt.hparams if hparams is None else hparams)
    return (params, state, loss) if buffers is None else (params, state, loss, moved)
