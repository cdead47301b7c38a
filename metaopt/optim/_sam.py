"""Sharpness-aware minimisation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.optim._accumulate import where
from metaopt.optim._entries import check_bounds, check_type
from metaopt.optim._leafwise import RATE, wide
from metaopt.types import Optimizer

__all__ = ["SAMHParams", "SAMState", "sam"]


class SAMHParams(NamedTuple):
    """The optimizer's own hparams, and the radius, a number or a 0-d tensor."""

    inner: Any
    rho: Any = 0.05


class SAMState(NamedTuple):
    """Gradients seen, the point p that the climb started from, and the optimizer's state."""

    step: Tensor
    anchor: Any
    inner: Any


def sam(opt: Optimizer, rho: Any = 0.05) -> Optimizer:
    """Descend along the gradient taken at the worst point nearby; one step in two calls.

    ::

        first call:   a ← p,  p ← p + ρ g / |g|          |g| over all leaves
        second call:  p ← update(a, g)

    Give it two gradients a step, the second taken where the first call leads: ``num_steps=2 * steps``
    in an unrolled loop, on one batch.

    Args: opt: any Optimizer.
          rho: radius ρ >= 0, parameter.
    Returns: Optimizer with hparams SAMHParams; differentiable through both gradients.
    Raises: ArgumentError if ρ is negative.
    Source: Foret et al. 2021, arXiv:2010.01412, Algorithm 1.

    >>> import metaopt as mo
    >>> opt = sam(mo.optim.sgd(lr=1.0), rho=0.5)
    >>> p, state = torch.tensor(1.0), opt.init(torch.tensor(1.0))
    >>> for _ in range(2):  # of the loss p²/2
    ...     p, state = opt.update(p, state, p, opt.hparams)
    ...     print(p)
    tensor(1.5000)
    tensor(-0.5000)
    """
    hparams = SAMHParams(opt.hparams, rho)
    check_bounds("sam", hparams, {"rho": RATE})

    def init(params: Any) -> SAMState:
        tree.check_parameters("sam.init(params)", params, real=True)
        leaves = tree.leaves(params)
        zero = torch.zeros((), dtype=torch.float64, device=leaves[0].device if leaves else None)
        return SAMState(zero, tree.map(torch.clone, params), opt.init(params))

    def update(params: Any, state: Any, grads: Any, h: Any) -> tuple[Any, SAMState]:
        remedy = "Start from what init(params) returns."
        check_type("sam.update(state)", state, SAMState(torch.zeros(()), (), ()), remedy)
        check_type("sam.update(hparams)", h, hparams, "Start from this optimizer's hparams.")
        check_bounds("sam", h, {"rho": RATE})
        tree.check_same("sam.update(grads)", grads, params, shapes=True)
        slopes = tree.map(wide, grads)
        size = tree.global_norm(slopes) if tree.leaves(grads) else torch.ones(())
        unit = torch.where(size == 0, 0.0, 1 / torch.where(size == 0, 1.0, size))
        climbed = tree.map(lambda p, g: (p + h.rho * unit * g).to(p.dtype), params, slopes)
        climbing = state.step % 2 == 0
        anchor = where(climbing, params, state.anchor)
        descended = opt.update(anchor, state.inner, grads, h.inner)
        params, inner = where(climbing, (climbed, state.inner), descended)
        return params, SAMState(state.step + 1, anchor, inner)

    return Optimizer(init, update, hparams)
