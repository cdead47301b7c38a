"""Reptile: move towards the adapted weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaopt import tree
from metaopt.errors import check_at_least
from metaopt.types import Hypergrad, LossFn, Meta, Optimizer
from metaopt.unroll import unroll

__all__ = ["reptile"]


def reptile(loss_fn: LossFn, opt: Optimizer, num_steps: int | None = 5) -> Callable[..., Hypergrad]:
    """Reptile: a step towards the adapted weights, ``(meta_params, episode) -> Hypergrad``.

    ::

        φ = unroll(ℓ, opt, θ, support, k)
        θ ← θ − ε (θ − φ),   averaged over tasks

    The direction θ − φ stands where a gradient would, so that any outer optimizer takes it; plain descent
    with rate ε is the paper's. No second derivative, no query: give all examples as the support.

    Args: loss_fn: ``(params, batch, *phi) -> []``.
          opt: the inner optimizer.
          num_steps: inner steps k; None where the support is [step, ...], a mini-batch a step.
    Returns: a pure function for `map_tasks`; Hypergrad(grad θ − φ, value the last inner loss, aux φ).
    Raises: as `unroll`.
    Cost: k forward and backward passes, memory of one.
    Source: Nichol et al. 2018, arXiv:1803.02999, Algorithm 1 and equation 2.

    >>> import torch, metaopt as mo
    >>> task = mo.reptile(lambda p, b: (p - b) ** 2 / 2, mo.optim.sgd(lr=0.5), num_steps=2)
    >>> task(torch.tensor(4.0), mo.Episode(torch.tensor(0.0), ())).grad
    tensor(3.)
    """

    if num_steps is not None:
        check_at_least("reptile(num_steps)", num_steps, 1)

    def task_direction(meta_params: Any, episode: Any) -> Hypergrad:
        meta = meta_params if isinstance(meta_params, Meta) else Meta(meta_params)
        theta, hparams, phi = tree.detach(tuple(meta))
        out = unroll(loss_fn, opt, theta, episode[0], num_steps, hparams, phi, order=1)
        return Hypergrad(tree.sub(theta, out.params), out.losses[-1], out.params)

    return task_direction
