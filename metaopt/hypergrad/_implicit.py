"""Implicit hypergradients: at a stationary point of the loss, or at a fixed point of the step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.exact import exact
from metaopt.hypergrad._differentiate import check_finite, check_problem, differentiate, is_plain
from metaopt.hypergrad._problem import Problem, complete, count_steps, outer, segment
from metaopt.hypergrad._truncated import prefix
from metaopt.linsolve import SolveInfo, Solver, cg, gmres
from metaopt.step import inner_step
from metaopt.types import Hypergrad, Meta

__all__ = ["Implicit", "fixed_point", "implicit"]

_BLIND = "A stationary point depends on neither the start nor the optimizer: use fixed_point or unrolled."
_BLIND_STEP = "A fixed point does not depend on the start: use unrolled."


class Implicit(NamedTuple):
    """What an implicit estimate rests on.

    ``params`` θ_J; ``losses`` [J]; ``optimality`` ‖∇ℓ(θ_J)‖ or ‖step(θ_J) − θ_J‖, 0 at the point the
    theorem asks for; ``adjoint`` q; ``solve`` the residual of its linear system.
    """

    params: Any
    losses: Tensor
    optimality: Tensor
    adjoint: Any
    solve: SolveInfo


def implicit(problem: Problem, phi: Any, *, solve: Solver | None = None, start: Any = None) -> Hypergrad:
    """The hypergradient at a stationary point ∇_θ ℓ(θ*, φ) = 0.

    ::

        H q = ∇_θ F,    dF/dφ = ∂F/∂φ − (∂²ℓ/∂φ∂θ) q,    H = ∇²_θ ℓ(θ*, φ)

    θ* is taken to be θ_J; give ``num_steps=0`` and ``params`` where it is known. The error is
    O(‖∇ℓ(θ_J)‖ + residual), both in aux: an indefinite or singular H shows in the residual.

    Args: problem, phi: as in `unrolled`. φ^init is ignored: its gradient is 0.
          solve: of H q = v; `linsolve.cg` where None.
          start: a warm start for q, the ``aux.adjoint`` of the estimate before.
    Returns: Hypergrad(grad, value, aux Implicit).
    Raises: as `unrolled`; ArgumentError if phi holds optimizer hyperparameters, or the start alone.
    Cost: J steps forward, one linear solve; memory constant in J.
    Source: Bengio 2000; Rajeswaran et al. 2019, arXiv:1909.04630 (iMAML); Lorraine et al. 2020.

    >>> import torch, metaopt as mo
    >>> loss = lambda p, b, centre: (p - centre) ** 2
    >>> problem = Problem(loss, mo.optim.sgd(lr=0.5), (), 1, lambda p, b, _: p**2, params=torch.tensor(0.0))
    >>> implicit(problem, mo.Meta(None, None, (torch.tensor(3.0),))).grad.phi
    (tensor(6.),)
    """

    def condition(theta: Any, meta: Meta, batch: Any, hparams: Any, state: Any) -> Any:
        return _gradient(problem, theta, batch, meta.phi)

    return _estimate("implicit", problem, phi, condition, -1.0, solve or cg(), start, _BLIND)


def fixed_point(problem: Problem, phi: Any, *, solve: Solver | None = None, start: Any = None) -> Hypergrad:
    """The hypergradient at a fixed point θ* = step(θ*, φ).

    ::

        (I − ∂step/∂θ)ᵀ q = ∇_θ F,    dF/dφ = ∂F/∂φ + (∂step/∂φ)ᵀ q

    The optimizer's state is held as it is after J steps: where the gradient vanishes it is at its own
    fixed point. Unlike `implicit` it sees the optimizer's hyperparameters, weight decay say.

    Args: problem, phi, start: as in `implicit`.
          solve: of the system above; `linsolve.gmres` where None, `linsolve.neumann(K)` for K+1 steps
              of backpropagation at θ*.
    Returns: Hypergrad(grad, value, aux Implicit).
    Raises: as `unrolled`; ArgumentError if phi holds the start alone.
    Cost: as `implicit`.
    Source: Grazzi et al. 2020, arXiv:2006.16218.

    >>> import torch, metaopt as mo
    >>> loss = lambda p, b, centre: (p - centre) ** 2
    >>> problem = Problem(loss, mo.optim.sgd(lr=0.5), (), 1, lambda p, b, _: p**2, params=torch.tensor(0.0))
    >>> fixed_point(problem, mo.Meta(None, None, (torch.tensor(3.0),))).grad.phi
    (tensor(6.),)
    """

    def condition(theta: Any, meta: Meta, batch: Any, hparams: Any, state: Any) -> Any:
        new, _, _ = inner_step(problem.loss_fn, problem.opt, theta, state, batch, hparams, meta.phi)
        return tree.sub(new, theta)

    return _estimate("fixed_point", problem, phi, condition, 1.0, solve or gmres(), start, _BLIND_STEP)


def _gradient(problem: Problem, theta: Any, batch: Any, phi: Any) -> Any:
    leaves, structure = tree.flatten(theta)

    def loss_of(leaves: Any) -> Tensor:
        with exact():
            return problem.loss_fn(tree.unflatten(structure, leaves), batch, *phi)

    return tree.unflatten(structure, torch.func.grad(loss_of)(tuple(leaves)))


def _estimate(
    where: str,
    problem: Problem,
    phi: Any,
    condition: Callable[..., Any],
    sign: float,
    solve: Solver,
    start: Any,
    blind: str,
) -> Hypergrad:
    """For a condition G(θ*, φ) = 0: (−sign ∂G/∂θ)ᵀ q = ∇F,  dF/dφ = ∂F/∂φ + sign (∂G/∂φ)ᵀ q."""
    check_problem(where, problem)
    if problem.outer_every is not None:
        got, remedy = repr(problem.outer_every), "The theorem holds at θ_J alone; use unrolled or truncated."
        raise ArgumentError(f"{where}(problem.outer_every)", "None", got, remedy=remedy)
    if solve.__class__ is not Solver:
        raise ArgumentError(f"{where}(solve)", "a metaopt.linsolve solver", type(solve).__name__)
    meta, total = complete(where, problem, phi), count_steps(problem)
    plain = is_plain(phi, problem.batch, problem.outer_batch, problem.params)
    with torch.no_grad() if plain else contextlib.nullcontext():
        early = prefix(problem, meta, total)
        check_finite(where, early.losses)
        leaves, structure = tree.flatten(early.params)

        def judged(leaves: Any) -> tuple[Tensor, Tensor]:
            value = outer(problem, tree.unflatten(structure, leaves), meta.phi)
            return value, value

        v, value = torch.func.grad(judged, has_aux=True)(tuple(leaves))

        def last(meta: Meta, batch: Any) -> tuple[Any, Any]:  # the batch and rates of the last step
            stepped = problem._replace(batch=batch)
            batch, steps, hparams = segment(stepped, meta.hparams, max(total - 1, 0), max(total, 1))
            if problem.per_step_hparams:
                rows = [x[0] if isinstance(x, Tensor) and x.ndim else x for x in tree.leaves(hparams)]
                hparams = tree.unflatten(tree.structure(hparams), rows)
            return tree.index(batch, 0) if steps is None else batch, hparams

        def factory(theta: Any, meta: Meta, batch: Any, state: Any) -> Callable[[Any], Any]:
            def conditioned(leaves: Any) -> Any:
                out = condition(tree.unflatten(structure, leaves), meta, *last(meta, batch), state)
                return tuple(tree.leaves(out))

            pull: Any = torch.func.vjp(conditioned, theta)[1]
            return lambda y: tuple(-sign * g for g in pull(y)[0])

        q, info = solve.linear(
            factory,
            v,
            tuple(leaves),
            meta,
            problem.batch,
            early.state,
            start=None if start is None else tuple(tree.leaves(start)),
        )
        adjoint = tree.unflatten(structure, q)
        here = condition(early.params, meta, *last(meta, problem.batch), early.state)
    aux = Implicit(early.params, early.losses, tree.global_norm(here), adjoint, info)

    def lagrangian(phi: Any) -> tuple[Tensor, tuple[()]]:  # its gradient for φ at constant θ*, q
        now = complete(where, problem, phi)
        found = condition(early.params, now, *last(now, problem.batch), early.state)
        return outer(problem, early.params, now.phi) + sign * tree.vdot(adjoint, found), ()

    return Hypergrad(differentiate(where, problem, phi, lagrangian, blind).grad, value, aux)
