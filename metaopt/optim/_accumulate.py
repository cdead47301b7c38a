"""Gradient accumulation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import check_at_least
from metaopt.optim._entries import check_type
from metaopt.optim._leafwise import wide
from metaopt.types import Optimizer

__all__ = ["AccumulateState", "accumulate"]


class AccumulateState(NamedTuple):
    """Gradients seen, their sum since the last step, and the optimizer's state."""

    step: Tensor
    sum: Any
    inner: Any


def accumulate(opt: Optimizer, num_grads: int) -> Optimizer:
    """A step with the mean of every k gradients; between steps nothing moves.

    Args: opt: any Optimizer.
          num_grads: k >= 1.
    Returns: Optimizer with the hparams of ``opt``.
    Raises: ArgumentError if k is no integer >= 1.
    Cost: the optimizer's update at every call: which calls step is data, so that it maps and compiles.

    >>> import metaopt as mo
    >>> opt = accumulate(mo.optim.sgd(lr=1.0), 2)
    >>> p, state = torch.tensor(0.0), opt.init(torch.tensor(0.0))
    >>> for g in (1.0, 3.0):
    ...     p, state = opt.update(p, state, torch.tensor(g), opt.hparams)
    ...     print(p)
    tensor(0.)
    tensor(-2.)
    """
    check_at_least("accumulate(num_grads)", num_grads, 1)

    def init(params: Any) -> AccumulateState:
        leaves = tree.leaves(params)
        device = leaves[0].device if leaves else None
        total = tree.map(lambda p: torch.zeros_like(wide(p.detach())), params)
        return AccumulateState(torch.zeros((), dtype=torch.float64, device=device), total, opt.init(params))

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> tuple[Any, AccumulateState]:
        remedy = "Start from what init(params) returns."
        check_type("accumulate.update(state)", state, AccumulateState(torch.zeros(()), (), ()), remedy)
        tree.check_same("accumulate.update(grads)", grads, params, shapes=True)
        step = state.step + 1
        due = step % num_grads == 0
        total = tree.map(lambda s, g: s + g, state.sum, grads)
        mean = tree.map(lambda s, g: (s / num_grads).to(g.dtype), total, grads)
        new = opt.update(params, state.inner, mean, hparams)
        params, inner = where(due, new, (params, state.inner))
        return params, AccumulateState(step, tree.map(lambda s: torch.where(due, 0.0, s), total), inner)

    return Optimizer(init, update, opt.hparams)


def where(flag: Tensor, a: Any, b: Any) -> Any:
    """Tree a where the 0-d flag is true, else tree b."""
    return tree.map(lambda x, y: torch.where(flag, x, y), a, b)
