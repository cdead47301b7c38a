"""Hypergradient descent: the step size follows its own gradient while the optimizer runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError
from metaopt.optim._leafwise import wide
from metaopt.step import check_optimizer
from metaopt.types import Optimizer

__all__ = ["HypergradientDescentHParams", "HypergradientDescentState", "hypergradient_descent"]


class HypergradientDescentHParams(NamedTuple):
    """``inner``, the hyperparameters of the optimizer underneath, whose lr is α_0; ``meta_lr`` β."""

    inner: Any
    meta_lr: Any


class HypergradientDescentState(NamedTuple):
    """``inner``, the state underneath; ``drift`` α_t − α_0; ``slope`` ∂θ_t/∂α, like params."""

    inner: Any
    drift: Tensor
    slope: Any


def hypergradient_descent(opt: Optimizer, meta_lr: Any = 1e-3, *, multiplicative: bool = False) -> Optimizer:
    """Let the step size of any optimizer descend by the gradient of the loss with respect to it.

    ::

        θ_t = u(θ_{t−1}, α_t),   h_t = ∇ℓ(θ_{t−1}) · ∂θ_{t−1}/∂α
        α_t = α_{t−1} − β h_t      multiplicative: α_{t−1}(1 − β h_t / ‖∇ℓ‖‖∂θ/∂α‖)

    ∂θ/∂α of one step is taken by forward mode, so that no rule needs a formula of its own: with SGD
    h_t = −g_t·g_{t−1} (SGD-HD), with Nesterov's momentum and Adam it is the paper's SGDN-HD and Adam-HD.

    Args: opt: an optimizer whose hyperparameters have one ``lr``, a number or a 0-d tensor.
          meta_lr: β.
          multiplicative: divide h by the norms of its two factors and move α in proportion to itself.
    Returns: Optimizer with hparams HypergradientDescentHParams; α_t is ``hparams.inner.lr + state.drift``.
    Raises: ArgumentError if opt has no lr that is one number.
    Cost: the update and its forward derivative; memory of one more set of parameters.
    Source: Baydin et al. 2018, arXiv:1703.04782, equations 5 and 8, Algorithms 4 to 6.

    >>> import metaopt as mo
    >>> opt = hypergradient_descent(mo.optim.sgd(lr=0.25), meta_lr=0.125)
    >>> p, state = torch.tensor(1.0), opt.init(torch.tensor(1.0))
    >>> for _ in range(2):
    ...     p, state = opt.update(p, state, torch.tensor(1.0), opt.hparams)
    >>> state.drift, p
    (tensor(0.1250), tensor(0.3750))
    """
    where = "hypergradient_descent"
    check_optimizer(f"{where}(opt)", opt)
    lr = getattr(opt.hparams, "lr", None)
    one = isinstance(lr, (int, float)) or (isinstance(lr, Tensor) and lr.ndim == 0)
    if isinstance(lr, bool) or not one:
        raise ArgumentError(f"{where}(opt)", "an optimizer with one lr", type(opt.hparams).__name__)

    def init(params: Any) -> HypergradientDescentState:
        inner, slope = opt.init(params), tree.detach(tree.zeros_like(params))
        first = next(iter(tree.leaves(slope)), torch.zeros(()))
        return HypergradientDescentState(inner, wide(first).new_zeros(()), slope)

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> tuple[Any, Any]:
        if not isinstance(state, HypergradientDescentState):
            got = type(state).__name__
            raise StructureError(f"{where}.update(state)", "HypergradientDescentState", got)
        h = tree.vdot(grads, state.slope)
        if multiplicative:
            norms = tree.global_norm(grads) * tree.global_norm(state.slope)
            alpha = hparams.inner.lr + state.drift
            h = alpha * h / torch.where(norms == 0, 1.0, norms)  # h = 0 where a factor is
        drift = state.drift - hparams.meta_lr * h  # not α − α_0, which would round as α does
        alpha = hparams.inner.lr + drift
        structure = tree.structure(params)

        def step(alpha: Tensor) -> Any:
            moved, inner = opt.update(params, state.inner, grads, hparams.inner._replace(lr=alpha))
            return tuple(tree.leaves(moved)), inner

        forward: Any = torch.func.jvp(step, (alpha,), (torch.ones_like(alpha),), has_aux=True)
        moved, slope, inner = forward
        fresh = HypergradientDescentState(inner, drift, tree.unflatten(structure, slope))
        return tree.unflatten(structure, moved), fresh

    return Optimizer(init, update, HypergradientDescentHParams(opt.hparams, meta_lr))
