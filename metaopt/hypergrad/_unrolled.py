"""The exact hypergradient, by reverse mode through every step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metaopt.hypergrad._differentiate import check_finite, check_problem, differentiate
from metaopt.hypergrad._problem import Problem, Rollout, complete, rollout
from metaopt.step import Order
from metaopt.types import Hypergrad
from metaopt.unroll import Memory

__all__ = ["unrolled"]


def unrolled(problem: Problem, phi: Any, *, memory: Memory = "all") -> Hypergrad:
    """The exact hypergradient: backpropagation through the unrolled inner loop.

    ::

        ∂F/∂φ + Σ_j (∂F/∂θ_J) (Π_{i>j} ∂θ_{i+1}/∂θ_i) ∂θ_{j+1}/∂φ

    Args: problem: the inner problem.
          phi: φ, initial parameters or a Meta.
          memory: what the backward pass remembers, as in `unroll`; the gradient is the same.
    Returns: Hypergrad(grad like phi, value [], aux Rollout (params, state, value, losses [J])).
    Raises: ArgumentError if a tensor of phi does not reach the loss; CaptureError if one that needs a
            gradient comes in by closure; DivergenceError with the step, and the task under vmap.
    Cost: J steps forward and backward; memory O(J) graphs of a step, or less by ``memory``.
    Source: Maclaurin et al. 2015, arXiv:1502.03492; Franceschi et al. 2017, arXiv:1703.01785.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=1)
    >>> unrolled(problem, torch.tensor(4.0)).grad
    tensor(1.)
    """
    return _reverse("unrolled", problem, phi, 2, memory)


def _reverse(where: str, problem: Problem, phi: Any, order: Order, memory: Memory) -> Hypergrad:
    check_problem(where, problem)

    def value(phi: Any) -> tuple[Tensor, Rollout]:
        out = rollout(problem, complete(where, problem, phi), order=order, memory=memory)
        check_finite(where, out.losses)
        return out.value, out

    return differentiate(where, problem, phi, value)
