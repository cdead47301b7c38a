"""The nouns every room shares: NamedTuples and Protocols, without behaviour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

__all__ = ["Episode", "Hypergrad", "LossFn", "Meta", "Optimizer", "Unrolled"]

Tree = Any


class LossFn(Protocol):
    """``loss_fn(params, batch, *phi) -> []``: a scalar, and a pure function of its arguments.

    What the loss itself meta-learns (temperatures, example weights) comes in as ``phi``. A tensor
    that needs a gradient must not come in by closure.
    """

    def __call__(self, params: Tree, batch: Tree, /, *phi: Any) -> Tensor: ...


class Optimizer(NamedTuple):
    """An optimizer as two pure functions and its hyperparameters.

    ``init(params) -> state`` and ``update(params, state, grads, hparams) -> (params, state)``.
    ``hparams`` is a NamedTuple of numbers; each field may be replaced by a 0-d tensor or by a tree
    shaped like params, and is then differentiable.
    """

    init: Callable[[Tree], Any]
    update: Callable[[Tree, Any, Tree, Any], tuple[Tree, Any]]
    hparams: Any


class Episode(NamedTuple):
    """One task: what it adapts on and what it is judged by, each a batch pytree.

    A stack of episodes is an Episode whose leaves have a leading task axis.
    """

    support: Tree
    query: Tree


class Meta(NamedTuple):
    """All that is meta-learned, where that is more than the initial parameters.

    φ = (φ^init, φ^opt, φ^loss). A bare params tree means ``Meta(params)`` with the optimizer's own
    hyperparameters and no loss parameters.
    """

    params: Tree
    hparams: Any = None
    phi: tuple[Any, ...] = ()


class Unrolled(NamedTuple):
    """What an inner loop leaves behind.

    ``params`` and ``state`` after the last step; ``losses`` [num_steps], each taken before its step;
    ``buffers`` where they were threaded through.
    """

    params: Tree
    state: Any
    losses: Tensor
    buffers: Any = None


class Hypergrad(NamedTuple):
    """An estimate of d value / d φ: ``grad`` shaped like φ, ``value`` [], and ``aux``."""

    grad: Tree
    value: Tensor
    aux: Any
