"""Differentiable architecture search."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaopt import tree
from metaopt.hypergrad import Problem, unrolled
from metaopt.optim import sgd
from metaopt.step import Order, check_optimizer, check_order, inner_step
from metaopt.types import LossFn, Meta, Optimizer

__all__ = ["Search", "darts", "darts_gradient"]


class Search(NamedTuple):
    """The carry of a search: weights w and architecture α, each with its optimizer's state."""

    params: Any
    state: Any
    alphas: Any
    alphas_state: Any


def darts_gradient(
    loss_fn: LossFn, params: Any, alphas: Any, train: Any, valid: Any, xi: Any, order: Order = 2
) -> tuple[Any, Tensor]:
    """The gradient of the architecture, and the validation loss ahead.

    ::

        w' = w − ξ ∇_w L_train(w, α)
        ∇_α L_valid(w', α) = ∂_α L_valid(w', α) − ξ ∇²_{α,w} L_train(w, α) ∇_{w'} L_valid(w', α)

    The last product is exact, where the paper takes finite differences of it. ``order=1`` leaves it away
    and takes ξ = 0, as the paper does.

    Args: loss_fn: ``(params, batch, alphas) -> []``.
          params, alphas: w, and α, a tree of tensors.
          train, valid: a batch of each half of the data.
          xi: ξ >= 0, the learning rate of w, say.
    Returns: (gradient like alphas, L_valid []).
    Raises: ArgumentError if the loss does not use alphas, or order is not 1 or 2.
    Cost: order 2: two steps of w and their derivative; order 1: one step.
    Source: Liu et al. 2019, arXiv:1806.09055, equations 6 and 7.

    >>> import torch
    >>> loss_fn = lambda w, batch, alpha: (alpha * w - batch) ** 2 / 2
    >>> w, alpha, b = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.0)
    >>> [darts_gradient(loss_fn, w, alpha, b, b, 0.25, order)[0].item() for order in (1, 2)]
    [2.0, 0.0]
    """
    check_order("darts(order)", order)
    steps = 1 if order == 2 else 0
    problem = Problem(loss_fn, sgd(xi), train, steps, None, valid, params)
    found = unrolled(problem, Meta(None, None, (alphas,)))
    return found.grad.phi[0], found.value


def darts(
    loss_fn: LossFn,
    opt: Optimizer,
    alphas_opt: Optimizer,
    search: Search,
    train: Any,
    valid: Any,
    *,
    xi: Any = None,
    order: Order = 2,
) -> tuple[Search, Tensor]:
    """One step of the search.

    ::

        α ← opt_α(α, ∇_α L_valid(w − ξ ∇_w L_train(w, α), α))
        w ← opt_w(w, ∇_w L_train(w, α))

    Args: as `darts_gradient`; opt, alphas_opt: of w and of α (the paper: SGD with momentum; Adam).
          search: ``Search(w, opt.init(w), α, alphas_opt.init(α))`` at first; what came back, later.
          xi: ξ; ``opt.hparams.lr`` where None.
    Returns: (search, L_valid []), without history: no derivative runs through a search.
    Cost: `darts_gradient` and one step.
    Source: Liu et al. 2019, arXiv:1806.09055, Algorithm 1.

    >>> import torch, metaopt as mo
    >>> loss_fn = lambda w, batch, alpha: (alpha * w - batch) ** 2 / 2
    >>> opt, w, alpha = mo.optim.sgd(0.25), torch.tensor(1.0), torch.tensor(2.0)
    >>> search = mo.Search(w, opt.init(w), alpha, opt.init(alpha))
    >>> search, loss = mo.darts(loss_fn, opt, opt, search, torch.tensor(0.0), torch.tensor(1.0), order=1)
    >>> search.alphas, search.params
    (tensor(1.7500), tensor(0.2344))
    """
    check_optimizer("darts(opt)", opt)
    check_optimizer("darts(alphas_opt)", alphas_opt)
    params, state, alphas, alphas_state = tree.detach(search)
    xi = opt.hparams.lr if xi is None else xi
    gradient, value = darts_gradient(loss_fn, params, alphas, train, valid, xi, order)
    alphas, alphas_state = alphas_opt.update(alphas, alphas_state, gradient, alphas_opt.hparams)
    params, state, _ = inner_step(loss_fn, opt, params, state, train, None, (alphas,))
    return Search(params, state, alphas, alphas_state), value
