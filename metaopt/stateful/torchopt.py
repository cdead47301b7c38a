"""Step objects over an fmodel, as TorchOpt has them: ``MetaAdam(fmodel, lr).step(loss)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from metaopt import optim
from metaopt.errors import ArgumentError
from metaopt.stateful._fast import FastModule
from metaopt.stateful.optim import get_diff_optim
from metaopt.types import Optimizer

__all__ = [
    "MetaAdaGrad",
    "MetaAdam",
    "MetaAdamW",
    "MetaOptimizer",
    "MetaRMSProp",
    "MetaSGD",
    "Snapshot",
    "extract_state_dict",
    "recover_state_dict",
]


class MetaOptimizer:
    """An optimizer whose ``step(loss)`` moves the net's fast weights, differentiably.

    Args: net: an fmodel, of ``monkeypatch(model, copy_initial_weights=False)``.
          opt: any `metaopt.Optimizer`.

    >>> import torch, metaopt as mo
    >>> net = mo.stateful.monkeypatch(torch.nn.Linear(1, 1, bias=False))
    >>> MetaSGD(net, lr=0.25).step(net(torch.ones(1, 1)).square().sum())
    >>> torch.autograd.grad(net.weight.sum(), net.parameters(time=0))
    (tensor([[0.5000]]),)
    """

    def __init__(self, net: Any, opt: Optimizer) -> None:
        if not isinstance(net, FastModule):
            remedy = "Make one by monkeypatch(model, copy_initial_weights=False)."
            raise ArgumentError("MetaOptimizer(net)", "an fmodel", type(net).__name__, remedy=remedy)
        self.diffopt = get_diff_optim(opt, net.parameters(), net)

    def step(self, loss: Tensor) -> None:
        self.diffopt.step(loss)


class Snapshot(NamedTuple):
    """What `extract_state_dict` takes down: weights and buffers, or an optimizer's state."""

    weights: Any
    rest: Any


def extract_state_dict(target: Any) -> Snapshot:
    """The state of an fmodel or of a `MetaOptimizer`, still connected, to go back to."""
    if isinstance(target, FastModule):
        return Snapshot(list(target.parameters()), [b.clone() for b in target._weights.held()])
    return Snapshot(None, target.diffopt.state)


def recover_state_dict(target: Any, snapshot: Snapshot) -> None:
    """Go back to where `extract_state_dict` was called."""
    if isinstance(target, FastModule):
        target._weights.restart(list(snapshot.weights))
        target._weights.put([b.clone() for b in snapshot.rest])
    else:
        target.diffopt.state = snapshot.rest


def _steps(rule: Callable[..., Optimizer]) -> Callable[..., MetaOptimizer]:
    def make(net: Any, *args: Any, **settings: Any) -> MetaOptimizer:
        return MetaOptimizer(net, rule(*args, **settings))

    make.__doc__ = f"A `MetaOptimizer` with the settings of `metaopt.optim.{rule.__name__}`."
    return make


MetaSGD = _steps(optim.sgd)
MetaAdam = _steps(optim.adam)
MetaAdamW = _steps(optim.adamw)
MetaRMSProp = _steps(optim.rmsprop)
MetaAdaGrad = _steps(optim.adagrad)
