"""Gradient descent with learned preconditioners, one matrix an axis."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import StructureError
from metaopt.optim._leafwise import COUNTER, RATE, leafwise
from metaopt.types import Optimizer

__all__ = [
    "PreconditionedSGDHParams",
    "PreconditionedSGDState",
    "identity_preconditioner",
    "preconditioned_sgd",
]


class PreconditionedSGDHParams(NamedTuple):
    """``lr`` as elsewhere; ``preconditioner``, a tree like params with a tuple of matrices at every
    leaf, one an axis, or ``()`` there for the identity."""

    lr: Any = 1e-3
    preconditioner: Any = ()


class PreconditionedSGDState(NamedTuple):
    """Steps taken."""

    step: Any


def identity_preconditioner(params: Any) -> Any:
    """The tuple of identity matrices, one an axis, of every leaf: where meta-learning starts.

    >>> [m.shape for m in identity_preconditioner([torch.zeros(2, 3)])[0]]
    [torch.Size([2, 2]), torch.Size([3, 3])]
    """
    leaves, structure = tree.flatten(params)
    return tree.unflatten(
        structure, [tuple(torch.eye(n, dtype=p.dtype, device=p.device) for n in p.shape) for p in leaves]
    )


def preconditioned_sgd(lr: Any = 1e-3, preconditioner: Any = (), *, maximize: bool = False) -> Optimizer:
    """Gradient descent in a learned metric: Meta-Curvature's form.

    ::

        p ← p − α (g ×₁ M₁ ×₂ M₂ … ×_k M_k)        M_i on the i-th axis of g, [n_i, n_i]

    Args: lr: step size α, parameter²/loss, >= 0.
          preconditioner: a tree like params with a tuple of matrices at every leaf, from
              `identity_preconditioner`; ``()``, at a leaf or as a whole, is the identity.
          maximize: climb.
    Returns: Optimizer with hparams PreconditionedSGDHParams, differentiable in every matrix.
    Raises: ArgumentError if lr is negative; StructureError for matrices that do not fit.
    Cost: Σ n_i multiplications an entry.
    Source: Park & Oliva 2019, arXiv:1902.03356, equations 4 to 6.

    >>> opt = preconditioned_sgd(lr=1.0, preconditioner=[(2 * torch.eye(1),)])
    >>> opt.update([torch.ones(1)], opt.init([torch.ones(1)]), [torch.ones(1)], opt.hparams)[0]
    [tensor([-1.])]
    """

    def rule(p: Tensor, g: Tensor, s: Any, h: PreconditionedSGDHParams) -> tuple[Tensor, Any]:
        for axis, matrix in enumerate(h.preconditioner or ()):  # 0 stands for none at all
            g = torch.tensordot(matrix, g, ([1], [axis])).movedim(0, axis)
        return p - h.lr * (-g if maximize else g), s

    hparams = PreconditionedSGDHParams(lr, preconditioner)
    base = leafwise("preconditioned_sgd", rule, PreconditionedSGDState(COUNTER), hparams, {"lr": RATE})

    def update(params: Any, state: Any, grads: Any, h: Any) -> tuple[Any, Any]:
        leaves, structure = tree.flatten(params)
        matrices = getattr(h, "preconditioner", ())
        if isinstance(matrices, tuple) and not matrices:
            h = h._replace(preconditioner=0.0) if isinstance(h, PreconditionedSGDHParams) else h
            return base.update(params, state, grads, h)
        rows = tree.rows(structure, matrices)
        where = "preconditioned_sgd.update(hparams.preconditioner)"
        if rows is None:
            raise StructureError(
                where, "a tuple of matrices for every leaf of params", tree.describe(matrices)
            )
        for i, (p, row) in enumerate(zip(leaves, rows, strict=True)):
            shapes = [list(m.shape) for m in row] if isinstance(row, tuple) else type(row).__name__
            expected = [[n, n] for n in p.shape]
            if row != () and shapes != expected:
                at = tree.paths(params)[i] or "the leaf"
                raise StructureError(where, f"matrices of shapes {expected}", str(shapes), at)
        return base.update(params, state, grads, h)

    return base._replace(update=update)
