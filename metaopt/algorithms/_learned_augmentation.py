"""Learned augmentation: how much noise, how large a turn, chosen by held-out data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt.hypergrad import Problem
from metaopt.types import LossFn, Optimizer

__all__ = ["jitter", "learned_augmentation", "turn"]


def learned_augmentation(
    loss_fn: LossFn,
    transform: Callable[..., Any],
    opt: Optimizer,
    params: Any,
    batch: Any,
    noise: Any,
    held_out: Any,
    num_steps: int | None = None,
) -> Problem:
    """Return the inner problem whose φ are the parameters of an augmentation.

    ::

        θ_J(φ) = unroll( ℓ(θ, T_φ(batch, ε)) ),    F(φ) = ℓ(θ_J(φ), held out)

    The noise ε is drawn before, and is data: T is a differentiable function of φ for each draw
    (reparametrised), and the same for every way of mapping.

    Args: loss_fn: ``(params, batch) -> []``.
          transform: ``(batch, noise, *phi) -> batch``; `jitter` and `turn` are two.
          opt, params: the inner optimizer and θ_0.
          batch, noise: the training batch and the draws, for each step; [step, ...], both, for new ones
              in every step, where ``num_steps`` is None.
          held_out: judged as it is, without augmentation.
          num_steps: J.
    Returns: a Problem for `metaopt.hypergrad`; its φ is ``Meta(None, None, phi)``. Learn φ by `bilevel`.
    Source: Lorraine et al. 2020, arXiv:1911.02590, section 5.2; Benton et al. 2020, arXiv:2010.11882,
            for learned ranges of transformations.

    >>> import metaopt as mo
    >>> loss_fn = lambda p, b: ((b[0] * p - b[1]) ** 2).mean()
    >>> data, noise = (torch.ones(2), torch.ones(2)), torch.tensor([-1.0, 1.0])
    >>> problem = mo.learned_augmentation(loss_fn, mo.jitter, mo.optim.sgd(0.4), torch.zeros(()), data, noise,
    ...     (torch.ones(2), torch.full((2,), 0.8)), 5)
    >>> phi = mo.Meta(None, None, (torch.tensor(-3.0),))  # θ* = 1/(1+σ²), right where σ² = 1/4
    >>> mo.bilevel(problem, phi, mo.optim.adam(0.1), 150).phi.phi[0].exp().round(decimals=2)
    tensor(0.5000)
    """

    def augmented(params: Any, both: Any, *phi: Any) -> Tensor:
        batch, noise = both
        return loss_fn(params, transform(batch, noise, *phi))

    def judged(params: Any, held_out: Any, *phi: Any) -> Tensor:
        return loss_fn(params, held_out)

    return Problem(augmented, opt, (batch, noise), num_steps, judged, held_out, params)


def jitter(batch: tuple[Tensor, Any], noise: Tensor, log_scale: Tensor) -> tuple[Tensor, Any]:
    """Add noise of a learned scale to the inputs: x + exp(φ) ε.

    Args: batch: (x, y); noise: ε like x, standard normal say.
          log_scale: φ, a number or anything that broadcasts to x.

    >>> jitter((torch.zeros(2), ()), torch.ones(2), torch.tensor(0.0))[0]
    tensor([1., 1.])
    """
    x, y = batch
    return x + log_scale.exp() * noise, y


def turn(batch: tuple[Tensor, Any], noise: Tensor, range_: Tensor) -> tuple[Tensor, Any]:
    """Rotate points of the plane by an angle of a learned range: x R(φ ε)ᵀ.

    Args: batch: (x, y), x [example, ..., 2]; noise: ε [example], uniform in [−1, 1] say.
          range_: φ [], radians.

    >>> turn((torch.tensor([[1.0, 0.0]]), ()), torch.ones(1), torch.tensor(torch.pi / 2))[0].round(decimals=4)
    tensor([[-0.,  1.]])
    """
    x, y = batch
    angle = (range_ * noise).reshape(-1, *(1,) * (x.ndim - 2))
    first, second = x.unbind(-1)
    turned = [first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()]
    return torch.stack(turned, -1), y
