"""Lookahead."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import check_at_least
from metaopt.optim._accumulate import where
from metaopt.optim._entries import check_bounds, check_type
from metaopt.optim._leafwise import wide
from metaopt.types import Optimizer

__all__ = ["LookaheadHParams", "LookaheadState", "lookahead"]


class LookaheadHParams(NamedTuple):
    """The optimizer's own hparams, and the slow step size, a number or a 0-d tensor."""

    inner: Any
    slow_step_size: Any = 0.5


class LookaheadState(NamedTuple):
    """Steps taken, the slow weights s, and the optimizer's state."""

    step: Tensor
    slow: Any
    inner: Any


def lookahead(opt: Optimizer, sync_period: int = 6, slow_step_size: Any = 0.5) -> Optimizer:
    """Every k steps of the optimizer, go back part of the way.

    ::

        p ← update(p, g);   where t = 0 mod k:  s ← s + β(p − s),  p ← s

    Args: opt: any Optimizer.
          sync_period: k >= 1.
          slow_step_size: β in [0, 1].
    Returns: Optimizer with hparams LookaheadHParams.
    Raises: ArgumentError if an argument is out of range.
    Source: Zhang et al. 2019, arXiv:1907.08610, Algorithm 1.

    >>> import metaopt as mo
    >>> opt = lookahead(mo.optim.sgd(lr=1.0), sync_period=2)
    >>> p, state = torch.tensor(0.0), opt.init(torch.tensor(0.0))
    >>> for _ in range(2):
    ...     p, state = opt.update(p, state, torch.tensor(1.0), opt.hparams)
    >>> p
    tensor(-1.)
    """
    check_at_least("lookahead(sync_period)", sync_period, 1)
    hparams = LookaheadHParams(opt.hparams, slow_step_size)
    bounds = {"slow_step_size": (0.0, 1.0 + 2.0**-52)}
    check_bounds("lookahead", hparams, bounds)

    def init(params: Any) -> LookaheadState:
        leaves = tree.leaves(params)
        zero = torch.zeros((), dtype=torch.float64, device=leaves[0].device if leaves else None)
        return LookaheadState(zero, tree.map(lambda p: wide(p).clone(), params), opt.init(params))

    def update(params: Any, state: Any, grads: Any, h: Any) -> tuple[Any, LookaheadState]:
        remedy = "Start from what init(params) returns."
        check_type("lookahead.update(state)", state, LookaheadState(torch.zeros(()), (), ()), remedy)
        check_type("lookahead.update(hparams)", h, hparams, "Start from this optimizer's hparams.")
        check_bounds("lookahead", h, bounds)
        params, inner = opt.update(params, state.inner, grads, h.inner)
        step = state.step + 1
        slow = tree.map(lambda s, p: (s + h.slow_step_size * (p - s)).to(s.dtype), state.slow, params)
        back = tree.map(lambda s, p: s.to(p.dtype), slow, params)
        params, slow = where(step % sync_period == 0, (back, slow), (params, state.slow))
        return params, LookaheadState(step, slow, inner)

    return Optimizer(init, update, hparams)
