"""The inner problem, stated once for every estimator."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, check_at_least, is_count
from metaopt.exact import exact
from metaopt.step import Order, check_loss, check_optimizer
from metaopt.types import LossFn, Meta, Optimizer
from metaopt.unroll import Memory, unroll

__all__ = ["Problem", "Rollout", "complete", "count_steps", "outer", "rollout", "segment", "stops"]


class Problem(NamedTuple):
    """An inner problem and what its solution is judged by.

    ::

        θ_{j+1} = step(θ_j; loss_fn, opt, batch, φ),   j = 0 … J−1
        value   = outer_loss(θ_J, outer_batch, *φ^loss)

    Args: loss_fn: the inner loss, ``(params, batch, *phi) -> []``.
          opt: the inner optimizer.
          batch: pytree, for every step; or [step, ...] where ``num_steps`` is None.
          num_steps: J >= 0.
          outer_loss: ``(params, outer_batch, *phi) -> []``; ``loss_fn`` where None.
          outer_batch: pytree; ``batch`` where None.
          params: θ_0 where φ does not hold it.
          outer_every: judge every so many steps and take the mean; None judges θ_J alone.
          per_step_hparams: as in `unroll`.

    φ is a tree of initial parameters, or a `Meta` (params, hparams, phi) of which each part may be None.
    Its tensors are meta-learned; its numbers are constants, whose gradient is 0. An estimate is part of
    the autograd graph if a tensor of φ or of the problem requires grad; detach them where it need not be.

    >>> import metaopt as mo
    >>> half_square = lambda p, b: p**2 / 2
    >>> problem = Problem(half_square, mo.optim.sgd(lr=0.5), num_steps=2)
    >>> mo.hypergrad.unrolled(problem, torch.tensor(4.0)).grad
    tensor(0.2500)
    """

    loss_fn: LossFn
    opt: Optimizer
    batch: Any = ()
    num_steps: int | None = None
    outer_loss: LossFn | None = None
    outer_batch: Any = None
    params: Any = None
    outer_every: int | None = None
    per_step_hparams: bool = False


class Rollout(NamedTuple):
    """The carry after some steps; ``value`` [], their share in the outer value; ``losses`` [step]."""

    params: Any
    state: Any
    value: Tensor
    losses: Tensor


def complete(where: str, problem: Problem, phi: Any) -> Meta:
    """φ as a Meta without gaps, its trees checked."""
    if not isinstance(problem, Problem):
        raise ArgumentError(f"{where}(problem)", "a hypergrad.Problem", type(problem).__name__)
    meta = phi if isinstance(phi, Meta) else Meta(phi)
    params = problem.params if meta.params is None else meta.params
    if params is None:
        raise ArgumentError(
            f"{where}(phi)", "initial parameters in phi or in the problem", "neither", remedy="Set params."
        )
    check_optimizer("Problem(opt)", problem.opt)
    check_loss("Problem(loss_fn)", problem.loss_fn)
    if problem.outer_loss is not None:
        check_loss("Problem(outer_loss)", problem.outer_loss)
    if problem.num_steps is not None:
        check_at_least("Problem(num_steps)", problem.num_steps, 0)
    hparams = problem.opt.hparams if meta.hparams is None else meta.hparams
    if type(hparams) is not type(problem.opt.hparams):
        kind = type(problem.opt.hparams).__name__
        raise ArgumentError(f"{where}(phi.hparams)", kind, type(hparams).__name__, remedy="Use opt.hparams.")
    return Meta(params, hparams, tuple(meta.phi or ()))


def count_steps(problem: Problem) -> int:
    """J, from num_steps or from the step axis of the batch."""
    if problem.num_steps is not None:
        return problem.num_steps
    remedy = "Pass num_steps=... to repeat one batch."
    return tree.axis_size("Problem(batch)", problem.batch, noun="steps", remedy=remedy)


def segment(problem: Problem, hparams: Any, start: int, stop: int) -> tuple[Any, int | None, Any]:
    """(batch, num_steps, hparams) of steps start … stop−1."""
    batch, num_steps = problem.batch, problem.num_steps
    if num_steps is None:
        batch = tree.index(batch, slice(start, stop))
    else:
        num_steps = stop - start
    if problem.per_step_hparams:
        found, structure = tree.flatten(hparams)
        rows = [x[start:stop] if isinstance(x, Tensor) and x.ndim else x for x in found]
        hparams = tree.unflatten(structure, rows)
    return batch, num_steps, hparams


def outer(problem: Problem, params: Any, phi: tuple[Any, ...]) -> Tensor:
    """outer_loss(θ, outer_batch, *φ^loss)."""
    loss_fn = problem.loss_fn if problem.outer_loss is None else problem.outer_loss
    batch = problem.batch if problem.outer_batch is None else problem.outer_batch
    with exact():
        return loss_fn(params, batch, *phi)


def stops(problem: Problem, start: int, stop: int) -> list[int]:
    """The steps in (start, stop] after which the outer loss is taken, and ``stop`` itself."""
    total, every = count_steps(problem), problem.outer_every
    if every is None:
        return [stop]
    if not is_count(every) or total % every:
        raise ArgumentError("Problem(outer_every)", f"a divisor of the {total} steps, or None", repr(every))
    inside = list(range((start // every + 1) * every, stop + 1, every))
    return inside if inside and inside[-1] == stop else [*inside, stop]


def rollout(
    problem: Problem,
    meta: Meta,
    start: int = 0,
    stop: int | None = None,
    params: Any = None,
    state: Any = None,
    order: Order = 2,
    memory: Memory = "all",
) -> Rollout:
    """Steps start … stop−1, from θ_0 or from a carry, and their share in the outer value."""
    total = count_steps(problem)
    stop = total if stop is None else stop
    params = meta.params if params is None else params
    state = problem.opt.init(params) if state is None else state
    every = problem.outer_every or max(total, 1)
    shares, losses = [], []
    for end in stops(problem, start, stop):
        batch, num_steps, hparams = segment(problem, meta.hparams, start, end)
        params, state, some, _ = unroll(
            problem.loss_fn,
            problem.opt,
            params,
            batch,
            num_steps,
            hparams,
            meta.phi,
            state=state,
            per_step_hparams=problem.per_step_hparams,
            order=order,
            memory=memory,
        )
        start = end
        losses.append(some)
        if end == total or (problem.outer_every and end % every == 0):
            shares.append(outer(problem, params, meta.phi) / max(total // every, 1))
    value = torch.stack(shares).sum() if shares else torch.zeros(())
    return Rollout(params, state, value, torch.cat(losses))
