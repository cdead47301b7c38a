"""The hypergradient without second derivatives."""

from __future__ import annotations

from typing import Any

from metaopt.hypergrad._problem import Problem
from metaopt.hypergrad._unrolled import _reverse
from metaopt.types import Hypergrad

__all__ = ["first_order"]


def first_order(problem: Problem, phi: Any) -> Hypergrad:
    """Every inner gradient is a constant: FOMAML.

    ::

        ∂θ_{j+1}/∂θ_j ≈ ∂update/∂θ,  the Hessian left out; with SGD the gradient for θ_0 is ∇F(θ_J)

    Biased by O(J α ‖H‖). It sees φ^init, φ^opt through the last factors of each update, and φ^loss only
    where the outer loss uses it directly.

    Args: problem, phi: as in `unrolled`.
    Returns: as `unrolled`.
    Raises: as `unrolled`; ArgumentError for loss parameters that only the inner loss sees.
    Cost: J steps forward; the backward pass is one gradient of the outer loss and J trivial updates.
    Source: Finn et al. 2017, arXiv:1703.03400, section 5.2.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=1)
    >>> first_order(problem, torch.tensor(4.0)).grad
    tensor(2.)
    """
    return _reverse("first_order", problem, phi, 1, "all")
