"""Warped gradient descent: layers that the inner loop goes through and does not move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metaopt import tree
from metaopt.errors import ArgumentError, check_at_least
from metaopt.exact import exact
from metaopt.step import Order, check_optimizer, inner_step
from metaopt.types import LossFn, Meta, Optimizer

__all__ = ["warpgrad"]


def warpgrad(
    loss_fn: LossFn,
    opt: Optimizer,
    num_steps: int = 1,
    *,
    query_loss_fn: Callable[..., Any] | None = None,
    order: Order = 2,
) -> Callable[..., Any]:
    """WarpGrad: learned layers that bend the inner gradient, ``(meta_params, episode) -> loss []``.

    ::

        θ_{k+1} = θ_k − α ∇_θ ℓ(θ_k, support; ω)            ω: the warp layers, between those of θ
        L(θ_0, ω) = (1/K) Σ_{k<K} ℓ(stop(θ_k) − α ∇_θ ℓ(stop(θ_k), support; ω), query; ω)

    Every point of the trajectory asks ω for a good single step, so that no gradient runs through more than
    one. θ_0 is not stopped, and learns as in one-step MAML; with num_steps=1 this is Warp-MAML itself. For
    an end-to-end gradient through all steps use `maml` with ω as its ``phi``.

    Args: loss_fn: ``(params, batch, warp) -> []``.
          opt: the inner optimizer.
          num_steps: K >= 1.
          query_loss_fn: ``(params, batch, warp) -> tree``, (loss, score) say, each leaf averaged over k.
          order: 1 drops how ∇ℓ(θ_k; ω) moves with ω, and leaves little to learn.
    Returns: a pure function for `map_tasks`; ``meta_params`` is ``Meta(params, hparams, (warp,))``.
    Raises: ArgumentError; as `inner_step`.
    Cost: K single MAML steps; memory O(K) of them before the backward pass.
    Source: Flennerhag et al. 2020, arXiv:1909.00025, equations 7 and 8; Lee & Choi 2018 (T-nets).

    >>> import metaopt as mo
    >>> task_loss = mo.warpgrad(lambda p, b, w: (w * p - b) ** 2 / 2, mo.optim.sgd(lr=0.25))
    >>> meta = mo.Meta(torch.tensor(1.0), None, (torch.tensor(2.0),))
    >>> task_loss(meta, mo.Episode(torch.tensor(4.0), torch.tensor(4.0)))  # θ: 1 → 2
    tensor(0.)
    """
    check_optimizer("warpgrad(opt)", opt)
    check_at_least("warpgrad(num_steps)", num_steps, 1)
    judge = query_loss_fn or loss_fn

    def task_loss(meta: Meta, episode: Any) -> Any:
        if not isinstance(meta, Meta):
            raise ArgumentError(
                "warpgrad(meta_params)", "a Meta(params, hparams, (warp,))", type(meta).__name__
            )
        support, query = episode
        params, state, losses = meta.params, opt.init(meta.params), []
        for _ in range(num_steps):
            params, state, _ = inner_step(
                loss_fn, opt, params, state, support, meta.hparams, meta.phi, order=order
            )
            with exact():
                losses.append(judge(params, query, *meta.phi))
            params, state = tree.detach(params), tree.detach(state)
        return tree.map(lambda *ls: torch.stack(ls).mean(0), *losses)

    return task_loss
