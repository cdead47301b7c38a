"""Implicit differentiation of a solver that is not ours: scipy's, a closed form, another program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import DivergenceError, StructureError
from metaopt.linsolve import SolveInfo, Solver, normal_cg
from metaopt.peek import peek, readable
from metaopt.recompute import check_captured

__all__ = ["fixed_point", "root"]


def root(
    optimality_fn: Callable[..., Any], *, solve: Solver | None = None, mappable: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a solver ``(init, *args) -> x`` of F(x, *args) = 0: its derivative is the theorem's.

    ::

        ∂x/∂args = −(∂F/∂x)⁻¹ ∂F/∂args      at the x that the solver returned

    The solver is a black box: it may leave torch. It is not asked for F = 0 to be exact; the derivative
    is off by as much. ``init`` has no derivative.

    Args: optimality_fn: F, ``(x, *args) -> tree like x``; the gradient of an objective, say.
          solve: solver of (∂F/∂x)ᵀ q = x̄; `linsolve.normal_cg` where None, and `linsolve.cg` suits a
              symmetric positive definite ∂F/∂x.
          mappable: the solver is made of torch and may be run under vmap at once; False runs it task
              by task.
    Returns: a decorator; the result is differentiable in args, in both modes, to any order.
    Raises: StructureError if F differs in structure from x; CaptureError; DivergenceError where the
            linear solve of the derivative did not converge: ∂F/∂x is singular, or iterations too few.
    Cost: one linear solve a derivative; memory of x and args alone.
    Source: Blondel et al. 2022, arXiv:2105.15183.

    >>> @root(lambda x, a: x**2 - a)
    ... def square_root(init, a):
    ...     return torch.tensor(float(a) ** 0.5)
    >>> a = torch.tensor(4.0, requires_grad=True)
    >>> square_root(None, a).backward()
    >>> a.grad
    tensor(0.2500)
    """
    return _decorator("root", optimality_fn, solve or normal_cg(tol=1e-6), mappable)


def fixed_point(
    step_fn: Callable[..., Any], *, solve: Solver | None = None, mappable: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a solver ``(init, *args) -> x`` of x = T(x, *args): `root` with F = T − x.

    ::

        ∂x/∂args = (I − ∂T/∂x)⁻¹ ∂T/∂args

    Args: step_fn: T, ``(x, *args) -> tree like x``.
          solve, mappable: as in `root`.
    Returns, Raises, Cost: as `root`.
    Source: Blondel et al. 2022, arXiv:2105.15183; Bai et al. 2019, arXiv:1909.01377.

    >>> @fixed_point(lambda x, a: (x + a / x) / 2)
    ... def square_root(init, a):
    ...     return a.sqrt()
    >>> a = torch.tensor(4.0, requires_grad=True)
    >>> square_root(None, a).backward()
    >>> a.grad
    tensor(0.2500)
    """

    @functools.wraps(step_fn)
    def optimality_fn(x: Any, *args: Any) -> Any:
        return tree.sub(step_fn(x, *args), x)

    return _decorator("fixed_point", optimality_fn, solve or normal_cg(tol=1e-6), mappable)


def _decorator(where: str, optimality_fn: Any, solve: Solver, mappable: bool) -> Any:
    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(solver)
        def solved(init: Any, *args: Any) -> Any:
            if not torch.compiler.is_compiling():
                check_captured(f"{where}(optimality_fn)", optimality_fn)
            call = _Call(where, solver, optimality_fn, solve, init, args, mappable)
            x = _Root.apply(call, *call.tensors)
            return call.result(x)

        return solved

    return decorate


class _Call:
    """One call of a decorated solver, as functions of flat lists of tensors."""

    def __init__(
        self, where: str, solver: Any, fn: Any, solve: Solver, init: Any, args: Any, mappable: bool
    ) -> None:
        self.where, self.solver, self.fn, self.solve, self.mappable = where, solver, fn, solve, mappable
        self.leaves, self.structure = tree.flatten((init, args))
        self.slots = [i for i, x in enumerate(self.leaves) if isinstance(x, Tensor)]
        self.tensors = [self.leaves[i] for i in self.slots]
        self.shape: tree.Structure | None = None

    def inputs(self, tensors: Any) -> Any:
        full = list(self.leaves)
        for i, x in zip(self.slots, tensors, strict=True):
            full[i] = x
        return tree.unflatten(self.structure, full)

    def run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        init, args = self.inputs([x.detach() for x in tensors])
        x = self.solver(init, *args)
        tree.check_parameters(f"{self.where}(solver)", x)
        found, self.shape = tree.flatten(x)
        return tuple(y.detach().clone() for y in found)

    def result(self, x: Any) -> Any:
        assert self.shape is not None
        return tree.unflatten(self.shape, x)

    def optimality(self, x: tuple[Tensor, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        """F as a function of flat tensors."""
        out = self.fn(self.result(x), *self.inputs(tensors)[1])
        found, shape = tree.flatten(out)
        if shape != self.shape:
            raise StructureError(
                f"{self.where}(optimality_fn)", f"a tree like the solution, {self.shape}", str(shape)
            )
        return tuple(found)

    def check(self, info: SolveInfo) -> None:
        if not readable():
            return
        converged, mapped = peek(info.converged)
        if not bool(converged.all()):
            tasks = (~converged).nonzero()[0].tolist() if mapped else []
            raise DivergenceError(
                f"{self.where}(solve)",
                f"a residual <= {self.solve.tol:g} of the linear system of the derivative",
                f"{float(peek(info.residual)[0].max()):.1e}",
                at=f"task {tasks[0]}" if tasks else "",
                remedy="The Jacobian of the optimality is singular, or the solver needs more iterations.",
            )


class _Opaque(torch.autograd.Function):
    """The solver itself: run task by task where tasks are mapped."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call.run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: _Call, *tensors: Tensor) -> Any:
        rows = [
            _Opaque.apply(
                call, *(x if d is None else x.select(d, i) for x, d in zip(tensors, in_dims[1:], strict=True))
            )
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return stacked, (0,) * len(stacked)


class _Root(torch.autograd.Function):
    """x(args) with F(x, args) = 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call.run(*tensors) if call.mappable else _Opaque.apply(call, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, *tensors = inputs
        ctx.count = len(output)
        ctx.save_for_backward(*output, *tensors)
        ctx.save_for_forward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, *x_bar: Tensor) -> Any:
        call, saved, count = ctx.call, ctx.saved_tensors, ctx.count
        x, tensors = saved[:count], saved[count:]

        def transposed(x: Any, *tensors: Tensor) -> Any:
            return torch.func.vjp(lambda x: call.optimality(x, *tensors), x)[1]

        (q,), info = call.solve.linear(lambda *a: lambda y: transposed(*a)(y[0]), (x_bar,), x, *tensors)
        call.check(info)
        needed = [i for i, need in enumerate(ctx.needs_input_grad[1:]) if need]

        def of_args(*some: Tensor) -> Any:
            full = list(tensors)
            for i, t in zip(needed, some, strict=True):
                full[i] = t
            return call.optimality(x, *full)

        pull: Any = torch.func.vjp(of_args, *(tensors[i] for i in needed))[1]
        grads: list[Tensor | None] = [None] * len(tensors)
        for i, g in zip(needed, pull(q), strict=True):
            grads[i] = -g
        return None, *grads

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        call, saved, count = ctx.call, ctx.saved_tensors, ctx.count
        x, tensors = saved[:count], saved[count:]
        dots = tuple(torch.zeros_like(t) if d is None else d for t, d in zip(tensors, tangents, strict=True))
        push: Any = torch.func.jvp(lambda *t: call.optimality(x, *t), tensors, dots)
        rhs = tuple(-r for r in push[1])

        def straight(x: Any, *tensors: Tensor) -> Any:
            def product(y: Any) -> Any:
                out: Any = torch.func.jvp(lambda x: call.optimality(x, *tensors), (x,), (y,))
                return out[1]

            return product

        x_dot, info = call.solve.linear(straight, rhs, x, *tensors)
        call.check(info)
        return x_dot
