"""The reverse derivative with respect to φ: plain where that suffices, torch.func where it must."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack

from metaopt import tree
from metaopt.errors import ArgumentError, DivergenceError
from metaopt.hypergrad._problem import Problem, complete, count_steps, outer, rollout
from metaopt.peek import peek, readable
from metaopt.recompute import check_captured
from metaopt.step import check_optimizer
from metaopt.types import Hypergrad, Meta

__all__ = [
    "check_finite",
    "check_problem",
    "check_reaches",
    "differentiate",
    "fill",
    "is_plain",
    "moving",
    "pull",
    "shaped",
]


def check_problem(where: str, problem: Problem) -> None:
    """Raise ArgumentError for what is no Problem, CaptureError where a loss captured a gradient's tensor."""
    if not isinstance(problem, Problem):
        raise ArgumentError(f"{where}(problem)", "a hypergrad.Problem", type(problem).__name__)
    if not torch.compiler.is_compiling():
        losses = [f for f in (problem.loss_fn, problem.outer_loss) if f is not None]
        check_captured(f"{where}(problem)", *losses)


def is_plain(*trees: Any) -> bool:
    """Tell whether nobody can differentiate the result: plain autograd then has a third of the cost."""
    if torch.compiler.is_compiling() or get_interpreter_stack() is not None:
        return False
    found = (x for x in tree.leaves(trees) if isinstance(x, Tensor))
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in found))


def moving(where: str, phi: Any) -> tuple[list[int], list[Any], tree.Structure]:
    """The positions of the leaves of φ that are meta-learned, all leaves, and the structure."""
    leaves, structure = tree.flatten(phi)
    index = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()]
    if not index:
        raise ArgumentError(
            f"{where}(phi)",
            "at least one floating-point tensor",
            "none",
            remedy="Numbers are constants: make what is meta-learned a tensor.",
        )
    return index, leaves, structure


def shaped(phi: Any, index: Sequence[int], grads: Sequence[Tensor]) -> Any:
    """The gradient as a tree shaped like φ, 0 where φ holds a constant."""
    leaves, structure = tree.flatten(phi)
    full = [torch.zeros_like(x) if isinstance(x, Tensor) else torch.zeros(()) for x in leaves]
    for i, g in zip(index, grads, strict=True):
        full[i] = g
    return tree.unflatten(structure, full)


def fill(phi: Any, index: Sequence[int], tensors: Sequence[Tensor]) -> Any:
    """φ with other tensors at these positions."""
    leaves, structure = tree.flatten(phi)
    for i, x in zip(index, tensors, strict=True):
        leaves[i] = x
    return tree.unflatten(structure, leaves)


def pull(
    f: Callable[..., tuple[Tensor, Any]], xs: Sequence[Tensor], plain: bool
) -> tuple[list[Tensor | None], Tensor, Any]:
    """(∂f/∂x for each x, None where f does not depend on it; f; aux), ``f(*xs) -> (value, aux)``."""
    if plain:
        with torch.enable_grad():
            xs = [x.detach().requires_grad_() for x in xs]
            value, aux = f(*xs)
            grads = _grad(value, xs, create_graph=False)
        return grads, value.detach(), tree.detach(aux)
    if torch.compiler.is_compiling():
        found, (value, aux) = torch.func.grad_and_value(f, tuple(range(len(xs))), has_aux=True)(*xs)
        return list(found), value, aux
    used: list[bool] = []
    shape: list[tree.Structure] = []

    def lifted(*xs: Tensor) -> Any:  # autograd at this level of torch.func, which tells unused from zero
        value, aux = f(*xs)
        grads = _grad(value, xs, create_graph=True)
        used[:] = [g is not None for g in grads]
        found, structure = tree.flatten(aux)
        shape[:] = [structure]
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, xs, strict=True)]
        return value, (filled, value, found)

    lowered: Any = torch.func.vjp(lifted, *xs, has_aux=True)
    filled, value, found = lowered[-1]
    grads = [g if seen else None for g, seen in zip(filled, used, strict=True)]
    return grads, value, tree.unflatten(shape[0], found)


def _grad(value: Tensor, xs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(xs)
    return list(torch.autograd.grad(value, xs, allow_unused=True, create_graph=create_graph))


def differentiate(
    where: str,
    problem: Problem,
    phi: Any,
    f: Callable[[Any], tuple[Tensor, Any]],
    blind: str = "",
) -> Hypergrad:
    """∂f/∂φ by reverse mode, with f(φ) and aux.

    Raises: ArgumentError that names the leaf of φ on which f does not depend; ``blind`` says why. Initial
            parameters that the estimator ignores by its definition are asked for by no one: zero.
    """
    index, leaves, _ = moving(where, phi)
    check_optimizer("Problem(opt)", problem.opt)
    plain = is_plain(phi, problem.batch, problem.outer_batch, problem.params, problem.opt.hparams)
    grads, value, aux = pull(lambda *xs: f(fill(phi, index, xs)), [leaves[i] for i in index], plain)
    return Hypergrad(shaped(phi, index, name_unused(where, phi, index, grads, blind)), value, aux)


def name_unused(
    where: str, phi: Any, index: Sequence[int], grads: Sequence[Tensor | None], blind: str = ""
) -> list[Tensor]:
    """The gradients, zero for initial parameters where ``blind`` says so; else an error names the leaf."""
    leaves, paths = tree.leaves(phi), tree.paths(phi)
    lost = all(g is None for g in grads)
    found = []
    for i, g in zip(index, grads, strict=True):
        start = not isinstance(phi, Meta) or paths[i].startswith("params")
        if g is None and (lost or not (blind and start)):
            raise ArgumentError(
                f"{where}(phi)",
                "every tensor of phi to reach the outer loss",
                "one that does not",
                at=paths[i] or "phi",
                remedy=blind or "Use it in the loss, or leave it out of phi.",
            )
        found.append(torch.zeros_like(leaves[i]) if g is None else g)
    return found


def check_reaches(where: str, problem: Problem, phi: Any) -> None:
    """Raise ArgumentError that names a leaf of φ on which neither a step nor the outer loss depends.

    For estimators that cannot tell such a leaf from a zero: a reverse pass through the first step can.
    """
    if not readable():
        return
    index, leaves, _ = moving(where, phi)

    def value(*xs: Tensor) -> tuple[Tensor, Any]:
        meta = complete(where, problem, fill(phi, index, xs))
        first = rollout(problem, meta, 0, min(1, count_steps(problem)))
        return outer(problem, first.params, meta.phi), ()

    check_optimizer("Problem(opt)", problem.opt)
    plain = is_plain(phi, problem.batch, problem.outer_batch, problem.params, problem.opt.hparams)
    grads, _, _ = pull(value, [leaves[i] for i in index], plain)
    name_unused(where, phi, index, grads)


def check_finite(where: str, losses: Tensor) -> None:
    """Raise DivergenceError that names the step, and the task where tasks are mapped.

    ``losses`` is [step] for the caller; what vmap hides below, [task, step], is read all the same.
    """
    if not readable() or losses.numel() == 0:
        return
    rows, mapped = peek(losses)
    finite = rows.isfinite()
    if bool(finite.all()):
        return
    by_step = finite.reshape(finite.shape[0], -1)
    step = int((~by_step).any(1).nonzero()[0])
    at = f"step {step}"
    if mapped:
        at += f" of task {int((~by_step[step]).nonzero()[0])}"
    raise DivergenceError(
        f"{where}(problem)",
        "finite inner losses",
        "nan or inf",
        at=at,
        remedy="Lower the inner learning rate, or clip the inner gradient.",
    )
