"""Episodes of an optimizer in training: tasks under way, each with an end, after which a new one begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.algorithms._optimization_tasks import OptimizationTasks
from metaopt.batch import map_tasks
from metaopt.exact import exact
from metaopt.types import Optimizer
from metaopt.unroll import unroll

__all__ = ["Inner", "advance", "begin", "renew", "spread"]


class Inner(NamedTuple):
    """A task under way: parameters, state of the optimizer that is trained, data, steps made."""

    params: Any
    state: Any
    batch: Any
    age: Tensor


def advance(
    tasks: OptimizationTasks,
    opt: Optimizer,
    hparams: Any,
    inner: Inner,
    window: int,
    objective: Callable[[Tensor], Tensor],
    order: Literal[1, 2],
) -> tuple[Tensor, Inner]:
    """One task, ``window`` steps on: objective(ℓ(θ_1), …, ℓ(θ_W)) and the task as it then is.

    With batches a step, θ_j is judged by batch j, which it has not seen.
    """

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> tuple[Any, Any]:
        return opt.update(params, state, tree.detach(grads), hparams)

    rule = opt if order == 2 else opt._replace(update=update)  # the losses keep their derivatives
    batch, last = inner.batch, inner.batch
    steps: int | None = window
    if tasks.stepped:
        rows = inner.age + torch.arange(window + 1, device=inner.age.device)
        rolled = tree.map(lambda x: x.index_select(0, rows), batch)
        batch, last, steps = tree.index(rolled, slice(0, window)), tree.index(rolled, window), None
    out = unroll(tasks.loss_fn, rule, inner.params, batch, steps, hparams, state=inner.state)
    with exact():
        end = tasks.loss_fn(out.params, last)
    value = objective(torch.cat([out.losses[1:], end[None]]))
    return value, inner._replace(params=out.params, state=out.state, age=inner.age + window)


def begin(tasks: OptimizationTasks, opt: Optimizer, num_tasks: int, seed: int, step: int) -> Inner:
    """New tasks, with the optimizer's own first state."""
    params, batch = tasks.sample(num_tasks, seed, step)
    state = map_tasks(lambda _, p: opt.init(p), how="vmap")((), params)
    age = torch.zeros(num_tasks, dtype=torch.int64, device=tree.leaves(params)[0].device)
    return Inner(params, state, batch, age)


def spread(inner: Inner, num_steps: int, window: int, seed: int) -> Inner:
    """The first episodes, cut at a random length: tasks are at all phases from then on."""
    dice = torch.Generator().manual_seed(seed)
    phase = torch.randint(num_steps // window, (len(inner.age),), generator=dice)
    return inner._replace(age=inner.age + window * phase.to(inner.age.device))


def renew(done: Tensor, new: Any, old: Any) -> Any:
    """``new`` for the tasks that are done, ``old`` for the others."""
    return tree.map(lambda x, y: torch.where(done.view(-1, *[1] * (y.ndim - 1)), x, y), new, old)
