"""The exact hypergradient, by forward mode."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import check_at_least
from metaopt.hypergrad._differentiate import (
    check_finite,
    check_problem,
    check_reaches,
    fill,
    is_plain,
    moving,
    shaped,
)
from metaopt.hypergrad._problem import Problem, Rollout, complete, rollout
from metaopt.types import Hypergrad

__all__ = ["forward"]


def forward(problem: Problem, phi: Any, *, chunk_size: int | None = None) -> Hypergrad:
    """The exact hypergradient by forward mode: memory constant in the number of steps.

    ::

        Z_{j+1} = (∂θ_{j+1}/∂θ_j) Z_j + ∂θ_{j+1}/∂φ,    dF/dφ = (∂F/∂θ_J) Z_J + ∂F/∂φ

    Args: problem, phi: as in `unrolled`.
          chunk_size: columns of Z computed at a time; all where None.
    Returns: as `unrolled`.
    Raises: as `unrolled`.
    Cost: |φ| JVPs through J steps, mapped; memory O(|φ| |θ|), or O(chunk_size |θ|). And one step in
          reverse, which tells what does not reach the loss.
    Source: Franceschi et al. 2017, arXiv:1703.01785, Forward-HG.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=1)
    >>> forward(problem, torch.tensor(4.0)).grad
    tensor(1.)
    """
    check_problem("forward", problem)
    if chunk_size is not None:
        check_at_least("forward(chunk_size)", chunk_size, 1)
    check_reaches("forward", problem, phi)
    index, leaves, _ = moving("forward", phi)
    xs = [leaves[i] for i in index]

    def value(*xs: Tensor) -> tuple[Tensor, Any]:
        meta = complete("forward", problem, fill(phi, index, xs))
        out = rollout(problem, meta)
        return out.value, out

    shape: list[tree.Structure] = []

    def push(*tangents: Tensor) -> Any:
        def primal(*xs: Tensor) -> Any:
            found, aux = value(*xs)
            flat, structure = tree.flatten(aux)
            shape[:] = [structure]
            return found, flat

        return torch.func.jvp(primal, tuple(xs), tangents, has_aux=True)

    plain = is_plain(phi, problem.batch, problem.outer_batch, problem.params)
    if plain:
        xs = [x.detach() for x in xs]
    with torch.no_grad() if plain else contextlib.nullcontext():
        basis, slopes = _basis(xs), []
        width = chunk_size or max(len(basis[0]), 1)
        for start in range(0, len(basis[0]), width):
            some = [columns[start : start + width] for columns in basis]
            found, slope, aux = torch.vmap(push)(*some)
            slopes.append(slope)
        found, aux = found[0], tree.index(aux, 0)  # the same for every column
    out: Rollout = tree.unflatten(shape[0], aux)
    check_finite("forward", out.losses)
    sizes = [x.numel() for x in xs]
    grads = [g.reshape(x.shape).to(x.dtype) for g, x in zip(torch.cat(slopes).split(sizes), xs, strict=True)]
    return Hypergrad(shaped(phi, index, grads), found, out)


def _basis(xs: list[Tensor]) -> list[Tensor]:
    """The unit vectors of the product space, [|φ|, ...] for each tensor."""
    sizes = [x.numel() for x in xs]
    columns = []
    for k, x in enumerate(xs):
        block = torch.zeros(sum(sizes), x.numel(), dtype=x.dtype, device=x.device)
        first = sum(sizes[:k])
        block[first : first + x.numel()] = torch.eye(x.numel(), dtype=x.dtype, device=x.device)
        columns.append(block.reshape(-1, *x.shape))
    return columns
