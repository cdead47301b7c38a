"""The exact hypergradient, each step's VJP taken forward over reverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.exact import exact
from metaopt.hypergrad._differentiate import check_finite, check_problem, check_reaches, differentiate
from metaopt.hypergrad._problem import Problem, Rollout, complete, count_steps, outer, segment, stops
from metaopt.types import Hypergrad, Meta

__all__ = ["mixed"]


def mixed(problem: Problem, phi: Any) -> Hypergrad:
    """The exact hypergradient; the backward pass holds no graph of the inner gradient.

    ::

        G = ∇_θ ℓ(θ, φ);   its VJP along ḡ is the JVP of ∇_{θ,φ} ℓ along (ḡ, 0):  (H_θθ ḡ, H_φθ ḡ)

    by the symmetry of the second derivative. Where an operation of the loss has no forward derivative
    of its gradient, the same products are taken in reverse.

    Args: problem, phi: as in `unrolled`.
    Returns: as `unrolled`.
    Raises: as `unrolled`.
    Cost: memory O(J |θ|), free of the loss's activations; the inner gradient once more in the backward.
          And one step in reverse, which tells what does not reach the loss.
    Source: Kemaev et al. 2025, arXiv:2505.00793 (MixFlow-MG).

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=1)
    >>> mixed(problem, torch.tensor(4.0)).grad
    tensor(1.)
    """
    check_problem("mixed", problem)
    check_reaches("mixed", problem, phi)

    def value(phi: Any) -> tuple[Tensor, Rollout]:
        out = _roll(problem, complete("mixed", problem, phi))
        check_finite("mixed", out.losses)
        return out.value, out

    return differentiate("mixed", problem, phi, value)


def _roll(problem: Problem, meta: Meta) -> Rollout:
    total, params = count_steps(problem), meta.params
    state = problem.opt.init(params)
    points = stops(problem, 0, total)
    losses, shares = [], []
    for j in range(total):
        batch, _, hparams = segment(problem, meta.hparams, j, j + 1)
        if problem.num_steps is None:
            batch = tree.index(batch, 0)
        if problem.per_step_hparams:
            rows = [x[0] if isinstance(x, Tensor) and x.ndim else x for x in tree.leaves(hparams)]
            hparams = tree.unflatten(tree.structure(hparams), rows)
        grads, loss = _gradient(problem.loss_fn, params, batch, meta.phi)
        params, state = problem.opt.update(params, state, grads, hparams)
        losses.append(loss)
        if j + 1 in points:
            shares.append(outer(problem, params, meta.phi) / len(points))
    value = torch.stack(shares).sum() if shares else outer(problem, params, meta.phi)
    return Rollout(params, state, value, torch.stack(losses) if losses else torch.zeros(0))


def _gradient(loss_fn: Callable[..., Tensor], params: Any, batch: Any, phi: Any) -> tuple[Any, Tensor]:
    """(∇_θ ℓ, ℓ) at (θ, batch, φ^loss)."""
    leaves, structure = tree.flatten((batch, phi))
    slots = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    thetas, shape = tree.flatten(params)

    def loss_of(*xs: Tensor) -> Tensor:
        full = list(leaves)
        for i, x in zip(slots, xs[len(thetas) :], strict=True):
            full[i] = x
        some, rest = tree.unflatten(structure, full)
        with exact():
            return loss_fn(tree.unflatten(shape, xs[: len(thetas)]), some, *rest)

    inputs = [*thetas, *(leaves[i] for i in slots)]
    if torch.compiler.is_compiling():  # one graph of it all: the compiler chooses what to keep
        found, loss = torch.func.grad_and_value(loss_of, tuple(range(len(thetas))))(*inputs)
        return tree.unflatten(shape, found), loss
    *grads, loss = _Gradient.apply(loss_of, len(thetas), *inputs)
    return tree.unflatten(shape, grads), loss


class _Gradient(torch.autograd.Function):
    """(θ, φ) ↦ (∇_θ ℓ, ℓ), differentiated by a JVP of ∇ℓ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loss_of: Callable[..., Tensor], count: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        grads, loss = torch.func.grad_and_value(loss_of, tuple(range(count)))(*(x.detach() for x in inputs))
        return (*grads, loss)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.loss_of, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs, count = ctx.saved_tensors, ctx.count
        index = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        *along, scale = cotangents
        found = _products(ctx.loss_of, inputs, count, index, along)
        result: list[Tensor | None] = [None] * len(inputs)
        for i, first, second in zip(index, *found, strict=True):
            result[i] = second + scale * first
        return None, None, *result

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        inputs, count = ctx.saved_tensors, ctx.count
        along = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=True))
        gradient = torch.func.grad_and_value(ctx.loss_of, tuple(range(count)))
        grads, loss = torch.func.jvp(gradient, inputs, along)[1]
        return (*grads, loss)


def _products(
    loss_of: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    count: int,
    index: list[int],
    along: list[Tensor],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(∇_i ℓ, Σ_θ ∂∇_i ℓ/∂θ · along) for every input i."""
    gradient = torch.func.grad(loss_of, tuple(index))

    def of_theta(*thetas: Tensor) -> tuple[Tensor, ...]:
        return gradient(*thetas, *inputs[count:])

    try:
        both: Any = torch.func.jvp(of_theta, inputs[:count], tuple(along))
        return both
    except (RuntimeError, NotImplementedError):  # an operation without a forward derivative

        def slope(*xs: Tensor) -> Tensor:  # ⟨∇_θ ℓ, along⟩, whose gradient is the same product
            full = list(inputs)
            for i, x in zip(index, xs, strict=True):
                full[i] = x
            grads = torch.func.grad(loss_of, tuple(range(count)))(*full)
            return torch.stack([(g * v).sum() for g, v in zip(grads, along, strict=True)]).sum()

        moved = tuple(inputs[i] for i in index)
        return gradient(*inputs), torch.func.grad(slope, tuple(range(len(moved))))(*moved)
