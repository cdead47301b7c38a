"""Implicit MAML: the meta-gradient at the solution of a proximal problem, whatever led there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.hypergrad import Problem, implicit
from metaopt.linsolve import Solver, cg
from metaopt.linsolve._solver import MatVec
from metaopt.types import Hypergrad, LossFn, Meta, Optimizer

__all__ = ["imaml"]


def imaml(
    loss_fn: LossFn,
    opt: Optimizer,
    num_steps: int = 16,
    *,
    strength: float = 2.0,
    damping: float = 0.0,
    solve: Solver | None = None,
    query_loss_fn: LossFn | None = None,
) -> Callable[..., Hypergrad]:
    """Implicit MAML: the meta-gradient at a proximal solution, ``(params, episode) -> Hypergrad``.

    ::

        θ* = argmin_θ ℓ(θ, support) + λ/2 ‖θ − φ‖²        by num_steps of opt, from φ
        dF/dφ = (I + H/(λ+δ))⁻¹ ∇ℓ(θ*, query),    H = ∇²ℓ(θ*, support)

    Args: loss_fn: ``(params, batch) -> []``.
          opt: the inner optimizer; num_steps of it should come near θ*.
          strength: λ > 0, 1/parameter²: how near to φ the solution stays.
          damping: δ >= 0. With 0 the gradient is exact at θ*. A net's H has negative eigenvalues: where one
              is below −λ no minimum is near, and conjugate gradients stop when they meet it; δ makes the
              system definite, and the gradient nearer to first-order MAML's. The authors' code has 10.
          solve: of the linear system; `linsolve.cg` with 5 iterations, the paper's, where None.
          query_loss_fn: ``(params, batch) -> []``; ``loss_fn`` where None.
    Returns: a pure function for `map_tasks`; Hypergrad(grad like params, value the query loss, aux with
             ``params`` θ*, ``optimality`` and the residual of the undamped system, on which the error rests).
    Raises: ArgumentError if strength is not positive or damping negative; as `hypergrad.implicit`.
    Cost: J forward and backward passes, 5 Hessian-vector products; memory does not grow with J.
    Source: Rajeswaran et al. 2019, arXiv:1909.04630, equation 6 and Algorithm 2.

    >>> import torch, metaopt as mo
    >>> task = mo.imaml(lambda p, b: (p - b) ** 2 / 2, mo.optim.sgd(lr=0.5), 1, strength=1.0)
    >>> task(torch.tensor(2.0), mo.Episode(torch.tensor(0.0), torch.tensor(0.0))).grad  # θ* = 1, H = 1
    tensor(0.5000)
    """
    if not strength > 0:
        raise ArgumentError("imaml(strength)", "a number > 0", repr(strength))
    if not damping >= 0:
        raise ArgumentError("imaml(damping)", "a number >= 0", repr(damping))
    solver = cg(max_iters=5, tol=0.0) if solve is None else solve
    judge = loss_fn if query_loss_fn is None else query_loss_fn

    def proximal(theta: Any, batch: Any, prior: Any) -> Any:
        distance = tree.sub(theta, prior)
        return loss_fn(theta, batch) + strength / 2 * tree.vdot(distance, distance)

    def outer(theta: Any, batch: Any, prior: Any) -> Any:
        return judge(theta, batch)

    def task_gradient(params: Any, episode: Any) -> Hypergrad:
        support, query = episode
        problem = Problem(proximal, opt, support, num_steps, outer, query, params=params)
        found = implicit(problem, Meta(None, None, (params,)), solve=_damped(solver, damping))
        return found._replace(grad=tree.scale(found.grad.phi[0], 1 + damping / strength))

    return task_gradient


def _damped(solver: Solver, damping: float) -> Solver:
    """(A + δI)x = b in the place of Ax = b, whose residual is still told."""

    def shifted(a: MatVec) -> MatVec:
        return lambda x: a(x) + damping * x

    def iterate(a: MatVec, a_t: MatVec, b: Any, start: Any) -> Any:
        return solver.iterate(shifted(a), shifted(a_t), b, start)

    return solver._replace(iterate=iterate) if damping else solver
