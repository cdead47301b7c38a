"""Generalised inner loop meta-learning: train, and learn how to train on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, check_at_least
from metaopt.exact import exact
from metaopt.step import check_optimizer, inner_step
from metaopt.types import LossFn, Meta, Optimizer

__all__ = ["Gimli", "GimliState", "gimli"]


class GimliState(NamedTuple):
    """θ_t, its optimizer's state, φ = (φ^opt, φ^loss) as a `Meta`, and the meta-optimizer's state."""

    params: Any
    state: Any
    phi: Meta
    meta_state: Any


class Gimli(NamedTuple):
    """``init(params, phi) -> GimliState``, ``step(state, batch, val_batch) -> (GimliState, losses)``."""

    init: Callable[..., GimliState]
    step: Callable[..., tuple[GimliState, Any]]


def gimli(
    loss_fn: LossFn,
    opt: Optimizer,
    meta_opt: Optimizer,
    *,
    val_loss_fn: Callable[..., Any] | None = None,
    num_meta_updates: int = 1,
    num_lookahead: int = 1,
    evaluate_at: Sequence[int] | None = None,
) -> Gimli:
    """GIMLI: train a model, and learn the optimizer's and the loss's parameters φ on the way.

    ::

        φ_0 = φ
        for i = 0 … I−1:                                        meta-updates
            θ'_0, opt'_0 = θ_t, opt_t                           virtual copies
            for j = 0 … J−1:                                    look-ahead steps
                G_j = ∇ℓ^train(θ'_j, φ_i^loss)
                θ'_{j+1} = opt'_j(θ'_j, φ_i^opt, G_j)
            A_i = ∇_φ Σ_{j ∈ evaluate_at} ℓ^val(θ'_j)
            φ_{i+1} = metaopt(φ_i, A_i)
        θ_{t+1} = opt_t(θ_t, φ_I^opt, ∇ℓ^train(θ_t, φ_I^loss))  the real step

    Args: loss_fn: ℓ^train, ``(params, batch, *phi) -> []``.
          opt: the optimizer of θ.
          meta_opt: the optimizer of φ.
          val_loss_fn: ℓ^val, ``(params, val_batch) -> []``; ``loss_fn`` with its phi where None.
          num_meta_updates: I >= 0; with 0 this is ordinary training, bit for bit.
          num_lookahead: J >= 1.
          evaluate_at: the numbers of look-ahead steps after which ℓ^val is taken; (J,) where None.
    Returns: Gimli(init, step). ``init(params, phi)`` takes φ as a `Meta` (None, hparams, phi), whose tensors
             are learned and whose numbers are constants. ``step(state, batch, val_batch, lookahead=None)``
             returns the new state and (train loss [], validation losses [I]); ``lookahead`` [step, ...] has
             the batches of the virtual steps, ``batch`` where None. Both are pure.
    Raises: ArgumentError; as `inner_step`.
    Cost: I · J steps and their backward pass, and one step more.
    Source: Grefenstette et al. 2019, arXiv:1910.01727, Algorithm 1.

    >>> import metaopt as mo
    >>> descent = mo.optim.sgd(lr=0.5)
    >>> train = gimli(lambda p, b: (p - b) ** 2 / 2, descent, mo.optim.sgd(lr=0.25))
    >>> phi = mo.Meta(None, descent.hparams._replace(lr=torch.tensor(0.5)))
    >>> now, _ = train.step(train.init(torch.tensor(2.0), phi), torch.tensor(0.0), torch.tensor(0.0))
    >>> now.phi.hparams.lr, now.params  # α ← ½ + ¼ g·g'  =  ½ + ¼ · 2 · 1
    (tensor(1.), tensor(0.))
    """
    check_optimizer("gimli(opt)", opt)
    check_optimizer("gimli(meta_opt)", meta_opt)
    points = _points(num_meta_updates, num_lookahead, evaluate_at)

    def judge(params: Any, val_batch: Any, phi: Meta) -> Tensor:
        with exact():
            return val_loss_fn(params, val_batch) if val_loss_fn else loss_fn(params, val_batch, *phi.phi)

    def init(params: Any, phi: Meta) -> GimliState:
        _check_phi(phi)
        return GimliState(params, opt.init(params), phi, meta_opt.init(_learned(phi)))

    def step(now: GimliState, batch: Any, val_batch: Any, lookahead: Any = None) -> tuple[GimliState, Any]:
        def validate(tensors: list[Tensor], like: Meta) -> tuple[Tensor, Tensor]:
            phi, params, state, losses = _filled(like, tensors), now.params, now.state, []
            for j in range(num_lookahead):
                seen = batch if lookahead is None else tree.index(lookahead, j)
                params, state, _ = inner_step(loss_fn, opt, params, state, seen, phi.hparams, phi.phi)
                if j + 1 in points:
                    losses.append(judge(params, val_batch, phi))
            total = torch.stack(losses).sum()
            return total, total

        phi, meta_state, values = now.phi, now.meta_state, []
        for _ in range(num_meta_updates):
            slopes, value = torch.func.grad(validate, has_aux=True)(_learned(phi), phi)
            tensors, meta_state = meta_opt.update(_learned(phi), meta_state, slopes, meta_opt.hparams)
            phi = _filled(phi, tensors)
            values.append(value)
        params, state, loss = inner_step(loss_fn, opt, now.params, now.state, batch, phi.hparams, phi.phi)
        found = torch.stack(values) if values else loss.new_zeros(0)
        return GimliState(params, state, phi, meta_state), (loss, found)

    return Gimli(init, step)


def _check_phi(phi: Any) -> None:
    if not isinstance(phi, Meta) or phi.params is not None:
        got = "one with params" if isinstance(phi, Meta) else type(phi).__name__
        raise ArgumentError("gimli.init(phi)", "a Meta(None, hparams, phi)", got)


def _points(num_meta_updates: int, num_lookahead: int, evaluate_at: Sequence[int] | None) -> set[int]:
    """The evaluation points, all arguments checked."""
    check_at_least("gimli(num_meta_updates)", num_meta_updates, 0)
    check_at_least("gimli(num_lookahead)", num_lookahead, 1)
    points = {num_lookahead} if evaluate_at is None else set(evaluate_at)
    if not points or not points <= set(range(1, num_lookahead + 1)):
        expected = f"numbers of steps from 1 to {num_lookahead}"
        raise ArgumentError("gimli(evaluate_at)", expected, repr(evaluate_at))
    return points


def _learned(phi: Meta) -> list[Tensor]:
    """The tensors of φ; its numbers are constants."""
    return [x for x in tree.leaves(phi) if isinstance(x, Tensor)]


def _filled(phi: Meta, tensors: Sequence[Tensor]) -> Meta:
    """φ with these tensors in the places of its own."""
    new = iter(tensors)
    found = [next(new) if isinstance(x, Tensor) else x for x in tree.leaves(phi)]
    return tree.unflatten(tree.structure(phi), found)
