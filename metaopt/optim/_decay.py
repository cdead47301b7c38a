"""Weight decay and centralisation as transformations of the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt import tree
from metaopt.optim._chain import Transform, stateless
from metaopt.optim._entries import check_bounds, check_type
from metaopt.optim._leafwise import RATE, plus

__all__ = ["DecayHParams", "add_decayed_weights", "centralize"]


class DecayHParams(NamedTuple):
    """A number, a 0-d tensor or a tree shaped like params."""

    weight_decay: Any


def add_decayed_weights(weight_decay: Any) -> Transform:
    """An L2 penalty.

    ::

        g ← g + λp

    Args: weight_decay: λ >= 0; a tree gives every leaf its own.
    Returns: Transform with hparams DecayHParams.
    Raises: ArgumentError if λ is negative.

    >>> import torch
    >>> decay = add_decayed_weights(0.1)
    >>> decay.update([torch.ones(1)], (), [torch.zeros(1)], decay.hparams)[0]
    [tensor([0.1000])]
    """

    def check(h: Any) -> None:
        where = "add_decayed_weights.update(hparams)"
        check_type(where, h, DecayHParams(0.0), "Start from this transform's hparams.")
        check_bounds("add_decayed_weights", h, {"weight_decay": RATE})

    def update(params: Any, grads: Any, h: DecayHParams) -> Any:
        decays = tree.spread("add_decayed_weights.update(hparams.weight_decay)", h.weight_decay, params)
        if not decays:
            return grads
        return tree.map_unzip(
            lambda g, p, decay: (plus(g, decay, p).to(g.dtype),), grads, tree.leaves(params), decays
        )[0]

    return stateless("add_decayed_weights", update, DecayHParams(weight_decay), check)


def centralize() -> Transform:
    """Take the mean off the gradient of every matrix, over all axes but the first.

    ::

        g ← g − mean(g)

    Returns: Transform without hyperparameters.
    Source: Yong et al. 2020, arXiv:2004.01461.

    >>> import torch
    >>> centralize().update([torch.zeros(1, 2)], (), [torch.tensor([[1.0, 3.0]])], ())[0]
    [tensor([[-1.,  1.]])]
    """

    def one(g: Tensor) -> Tensor:
        return g - g.mean(tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g

    return stateless("centralize", lambda params, grads, h: tree.map(one, grads), (), lambda h: None)
