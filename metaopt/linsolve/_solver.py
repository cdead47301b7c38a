"""A linear solver as a value: ``solve(matvec, b) -> Solution(x, info)``, differentiable to any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.exact import mapped
from metaopt.peek import readable
from metaopt.recompute import check_captured

__all__ = ["Solution", "SolveInfo", "Solver", "check_tol", "finished", "inner", "safe"]

Vector = Tensor  # all leaves of a tree, end to end
MatVec = Callable[[Vector], Vector]
Iterate = Callable[[MatVec, MatVec, Vector, Vector], tuple[Vector, Tensor]]


class SolveInfo(NamedTuple):
    """How the solve went, each 0-d (and one a task under vmap).

    ``residual`` ‖b − Ax‖/‖b‖, recomputed from x, 0 where b is 0; ``num_iters``, those that moved x;
    ``converged`` whether the residual is at most the tolerance. A residual that is not small says that
    A is singular, indefinite where the solver needs it definite, or that iterations were too few.
    """

    residual: Tensor
    num_iters: Tensor
    converged: Tensor


class Solution(NamedTuple):
    """x like b, and how the solve went."""

    value: Any
    aux: SolveInfo


class Solver(NamedTuple):
    """``solve(matvec, b, *args, start=None) -> Solution`` of ``matvec(x, *args) = b``.

    The derivative is that of the equation, not of the iterations: b̄ = A⁻ᵀx̄ and args̄ = −(∂Ax/∂args)ᵀ b̄,
    by the same solver, so that it can be taken again. Everything works on trees, and per task under
    ``vmap``: a task that has converged, or has b = 0, stays as it is while the others go on.

    Args: matvec: ``(x, *args) -> A x``, linear in x; tensors that need a gradient are args.
          b: pytree of floating-point tensors.
          args: pytrees of which A is made.
          start: x₀ like b, a warm start; a constant.
    """

    name: str
    iterate: Iterate
    symmetric: bool
    tol: float

    def __call__(self, matvec: Callable[..., Any], b: Any, *args: Any, start: Any = None) -> Solution:
        if not torch.compiler.is_compiling():
            check_captured(f"{self.name}(matvec)", matvec)
        return self.linear(lambda *args: lambda x: matvec(x, *args), b, *args, start=start)

    def linear(
        self, factory: Callable[..., Callable[[Any], Any]], b: Any, *args: Any, start: Any = None
    ) -> Solution:
        """The same where ``factory(*args)`` returns the map x ↦ A x, linearised once for all products."""
        tree.check_parameters(f"{self.name}(b)", b)
        if start is not None:
            tree.check_same(f"{self.name}(start)", start, b, shapes=True)
        leaves, structure = tree.flatten(b)
        if not leaves:
            raise ArgumentError(f"{self.name}(b)", "at least one tensor", "a tree without leaves")
        shapes = [x.shape for x in leaves]
        rhs = _ravel(leaves)
        guess = torch.zeros_like(rhs) if start is None else _ravel(tree.leaves(start))
        found, shape = tree.flatten(args)
        slots = [i for i, x in enumerate(found) if isinstance(x, Tensor)]

        def flat(*tensors: Tensor) -> MatVec:
            full = list(found)
            for i, x in zip(slots, tensors, strict=True):
                full[i] = x
            product = factory(*tree.unflatten(shape, full))

            def matvec(x: Vector) -> Vector:
                out = product(tree.unflatten(structure, _unravel(x, shapes)))
                tree.check_same(f"{self.name}(matvec)", out, b)
                return _ravel(tree.leaves(out))

            return matvec

        x, *info = _Solve.apply(self, flat, False, rhs, guess, *(found[i] for i in slots))
        return Solution(tree.unflatten(structure, _unravel(x, shapes)), SolveInfo(*info))


class _Solve(torch.autograd.Function):
    """x = A⁻¹b or A⁻ᵀb, with the residual, the iterations, and whether they sufficed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(solver: Solver, flat: Any, flip: bool, b: Vector, start: Vector, *args: Tensor) -> Any:
        forth = flat(*args)
        back = forth if solver.symmetric else _transpose(forth, b)
        a, a_t = (back, forth) if flip else (forth, back)
        x, iters = solver.iterate(a, a_t, b, start)
        error = b - a(x)
        residual = inner(error, error).sqrt() / safe(inner(b, b).sqrt())
        return x.clone(), residual, iters, residual <= solver.tol

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.solver, ctx.flat, ctx.flip, _, _, *args = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(output[0], *args)
        ctx.save_for_forward(output[0], *args)

    @staticmethod
    def backward(ctx: Any, x_bar: Vector, *_: Any) -> Any:
        x, *args = ctx.saved_tensors
        b_bar = _Solve.apply(ctx.solver, ctx.flat, not ctx.flip, x_bar, torch.zeros_like(x_bar), *args)[0]
        needed = [i for i, need in enumerate(ctx.needs_input_grad[5:]) if need]
        found = _args_vjp(ctx.flat, ctx.flip, args, needed, x, b_bar) if needed else ()
        grads: list[Tensor | None] = [None] * len(args)
        for i, g in zip(needed, found, strict=True):
            grads[i] = g
        return None, None, None, b_bar, None, *grads

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        x, *args = ctx.saved_tensors
        b_dot = tangents[3]
        moved = [i for i, t in enumerate(tangents[5:]) if t is not None]
        rhs = torch.zeros_like(x) if b_dot is None else b_dot
        if moved:

            def product(*some: Tensor) -> Vector:
                a = ctx.flat(*_put(args, moved, some))
                return _transpose(a, x)(x) if ctx.flip else a(x)

            primals = tuple(args[i] for i in moved)
            slope: Any = torch.func.jvp(product, primals, tuple(tangents[5 + i] for i in moved))
            rhs = rhs - slope[1]
        x_dot = _Solve.apply(ctx.solver, ctx.flat, ctx.flip, rhs, torch.zeros_like(rhs), *args)[0]
        return x_dot, None, None, None


def _args_vjp(flat: Any, flip: bool, args: Any, needed: list[int], x: Vector, y: Vector) -> Any:
    """−∂⟨y, A(args) x⟩/∂args, or with Aᵀ."""
    left, right = (x, y) if flip else (y, x)

    def form(*some: Tensor) -> Tensor:
        return -inner(left, flat(*_put(args, needed, some))(right))

    return torch.func.grad(form, tuple(range(len(needed))))(*(args[i] for i in needed))


def _put(args: Any, index: list[int], some: Any) -> list[Tensor]:
    full = list(args)
    for i, x in zip(index, some, strict=True):
        full[i] = x
    return full


def _transpose(matvec: MatVec, like: Vector) -> MatVec:
    """x ↦ Aᵀx, by the VJP of a linear map."""
    pull = torch.func.vjp(matvec, torch.zeros_like(like))[1]
    return lambda y: pull(y)[0]


def _ravel(leaves: list[Tensor]) -> Vector:
    return torch.cat([x.reshape(-1) for x in leaves])


def _unravel(x: Vector, shapes: list[torch.Size]) -> list[Tensor]:
    return [part.reshape(s) for part, s in zip(x.split([s.numel() for s in shapes]), shapes, strict=True)]


def inner(x: Vector, y: Vector) -> Tensor:
    """⟨x, y⟩."""
    return (x * y).sum()


def safe(x: Tensor) -> Tensor:
    """x, with 1 for 0: a divisor that is not used where it was 0."""
    return torch.where(x == 0, torch.ones_like(x), x)


def finished(active: Tensor) -> bool:
    """Tell whether no iteration is needed any more; under vmap and compile all are run, masked."""
    return readable() and not mapped() and not bool(active)


def check_tol(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ArgumentError(where, "a number >= 0", repr(value))
