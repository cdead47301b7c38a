"""An exponential moving average of the parameters, beside any optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.optim._entries import check_bounds, check_type
from metaopt.optim._leafwise import DECAY, wide
from metaopt.types import Optimizer

__all__ = ["EMAHParams", "EMAState", "ema", "ema_params"]


class EMAHParams(NamedTuple):
    """The optimizer's own hparams, and the decay, a number or a 0-d tensor."""

    inner: Any
    decay: Any


class EMAState(NamedTuple):
    """Π of the decays so far, the raw average e, and the optimizer's state."""

    power: Tensor
    average: Any
    inner: Any


def ema(opt: Optimizer, decay: Any = 0.999) -> Optimizer:
    """Keep an average of the iterates; `ema_params` reads it.

    ::

        e ← de + (1−d)p,   ē = e / (1 − Πd)

    Args: opt: any Optimizer; what it does is unchanged.
          decay: d in [0, 1).
    Returns: Optimizer with hparams EMAHParams.
    Raises: ArgumentError if d is out of range.

    >>> import metaopt as mo
    >>> opt = ema(mo.optim.sgd(lr=1.0), decay=0.5)
    >>> p, state = opt.update(torch.tensor(0.0), opt.init(torch.tensor(0.0)), torch.tensor(1.0), opt.hparams)
    >>> ema_params(state)
    tensor(-1.)
    """
    hparams = EMAHParams(opt.hparams, decay)
    check_bounds("ema", hparams, {"decay": DECAY})

    def init(params: Any) -> EMAState:
        leaves = tree.leaves(params)
        one = torch.ones((), dtype=torch.float64, device=leaves[0].device if leaves else None)
        start = tree.map(lambda p: torch.zeros_like(wide(p.detach())), params)
        return EMAState(one, start, opt.init(params))

    def update(params: Any, state: Any, grads: Any, h: Any) -> tuple[Any, EMAState]:
        remedy = "Start from what init(params) returns."
        check_type("ema.update(state)", state, EMAState(torch.ones(()), (), ()), remedy)
        check_type("ema.update(hparams)", h, hparams, "Start from this optimizer's hparams.")
        check_bounds("ema", h, {"decay": DECAY})
        params, inner = opt.update(params, state.inner, grads, h.inner)
        average = tree.map(lambda e, p: (h.decay * e + (1 - h.decay) * p).to(e.dtype), state.average, params)
        return params, EMAState(state.power * h.decay, average, inner)

    return Optimizer(init, update, hparams)


def ema_params(state: EMAState) -> Any:
    """The average of the parameters after at least one step, without the bias of its start at 0."""
    return tree.map(lambda e: (e / (1 - state.power)).to(e.dtype), state.average)
