"""Levels by nesting: the outer value of one problem as the inner loss of the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import CaptureError
from metaopt.exact import exact
from metaopt.hypergrad._differentiate import fill, moving
from metaopt.hypergrad._problem import Problem
from metaopt.types import Hypergrad

__all__ = ["nested"]


def nested(problem: Problem, estimator: Callable[..., Hypergrad], **options: Any) -> Callable[[Any], Tensor]:
    """The outer value of a problem as a function of φ, whose derivative is the estimator's.

    ::

        V(φ) = F(θ_J(φ), φ),    ∂V/∂φ := estimator(problem, φ).grad

    It may stand in the loss of a problem one level up, with another estimator there, and so on. What the
    upper levels vary reaches the problem through φ: whatever is optimised or meta-learned above is a
    part of φ (of its ``phi``, say), not of the problem.

    Args: problem: the lower problem; no tensor of it needs a gradient.
          estimator: of its hypergradient, with its ``options``.
    Returns: ``(phi) -> value []``, differentiable as often as the estimator is.
    Raises: CaptureError if a tensor of the problem needs a gradient.
    Cost: one estimate a value and one more a derivative.
    Source: Choe et al. 2022, arXiv:2207.02849 (betty), for multi-level programs.

    >>> import torch, metaopt as mo
    >>> inner = Problem(lambda p, b, y: (p - y) ** 2, mo.optim.sgd(lr=0.5), (), 1, lambda p, b, y: p**2)
    >>> value = nested(inner._replace(params=torch.tensor(0.0)), mo.hypergrad.implicit)
    >>> y = torch.tensor(3.0, requires_grad=True)
    >>> value(mo.Meta(None, None, (y,))).backward()
    >>> y.grad
    tensor(6.)
    """
    where = f"nested({getattr(estimator, '__name__', 'estimator')})"

    def value(phi: Any) -> Tensor:
        data = (problem.batch, problem.outer_batch, problem.params, problem.opt.hparams)
        for path, x in zip(tree.paths(data), tree.leaves(data), strict=True):
            if isinstance(x, Tensor) and x.requires_grad:
                raise CaptureError(
                    where,
                    "every tensor that needs a gradient in phi",
                    "one in the problem",
                    at=path,
                    remedy="Pass it through phi: the problem is a constant here.",
                )
        index, leaves, _ = moving(where, phi)

        def estimate(*xs: Tensor) -> Hypergrad:
            with exact(always=True):  # torch's norms have wrong third derivatives
                return estimator(problem, fill(phi, index, xs), **options)

        def flat(*xs: Tensor) -> tuple[Tensor, list[Tensor]]:
            result = estimate(*xs)
            grads = tree.leaves(result.grad)
            return result.value, [grads[i] for i in index]

        return _Value.apply(flat, *(leaves[i] for i in index))

    return value


class _Value(torch.autograd.Function):
    """V(φ); φ̄ = V̄ · estimate(φ)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(flat: Any, *xs: Tensor) -> Tensor:
        return flat(*(x.detach() for x in xs))[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.flat, *xs = inputs
        ctx.save_for_backward(*xs)
        ctx.save_for_forward(*xs)

    @staticmethod
    def backward(ctx: Any, v_bar: Tensor) -> Any:
        return None, *(v_bar * g for g in ctx.flat(*ctx.saved_tensors)[1])

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        grads = ctx.flat(*ctx.saved_tensors)[1]
        terms = [(g * t).sum() for g, t in zip(grads, tangents, strict=True) if t is not None]
        return torch.stack(terms).sum()
