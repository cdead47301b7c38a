"""An optimizer whose hyperparameters follow schedules."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.optim._entries import check_type
from metaopt.optim.schedule import Schedule
from metaopt.types import Optimizer

__all__ = ["ScheduledHParams", "ScheduledState", "scheduled"]


class ScheduledHParams(NamedTuple):
    """The optimizer's own hparams, and those of the schedules by field."""

    inner: Any
    schedules: dict[str, Any]


class ScheduledState(NamedTuple):
    """Steps taken, and the state of the optimizer."""

    step: Tensor
    inner: Any


def scheduled(opt: Optimizer, **schedules: Schedule) -> Optimizer:
    """The optimizer with some of its hyperparameters given by schedules of the step.

    ::

        α_t = schedule(t; φ),   t = 0, 1, …

    Args: opt: an Optimizer whose hparams are a NamedTuple.
          schedules: field of hparams -> `metaopt.optim.schedule.Schedule`.
    Returns: Optimizer with hparams ScheduledHParams; the scheduled fields of ``inner`` are not read.
    Raises: ArgumentError for a field that the optimizer has not.

    >>> import metaopt as mo
    >>> opt = scheduled(mo.optim.sgd(), lr=mo.optim.schedule.linear(0.5, 0.0, 10))
    >>> p, _ = opt.update(torch.tensor(1.0), opt.init(torch.tensor(1.0)), torch.tensor(1.0), opt.hparams)
    >>> p
    tensor(0.5000)
    """
    fields = getattr(opt.hparams, "_fields", ())
    for field, schedule in schedules.items():
        if field not in fields:
            where = f"scheduled({field})"
            raise ArgumentError(where, f"one of {', '.join(fields) or 'no fields'}", repr(field))
        if not isinstance(schedule, Schedule):
            raise ArgumentError(f"scheduled({field})", "a Schedule", type(schedule).__name__)
    hparams = ScheduledHParams(opt.hparams, {field: s.hparams for field, s in schedules.items()})

    def init(params: Any) -> ScheduledState:
        leaves = tree.leaves(params)
        device = leaves[0].device if leaves else None
        return ScheduledState(torch.zeros((), dtype=torch.float64, device=device), opt.init(params))

    def update(params: Any, state: Any, grads: Any, h: Any) -> tuple[Any, ScheduledState]:
        remedy = "Start from what init(params) returns."
        check_type("scheduled.update(state)", state, ScheduledState(torch.zeros(()), ()), remedy)
        check_type("scheduled.update(hparams)", h, hparams, "Start from this optimizer's hparams.")
        now = {field: s.value(state.step, h.schedules[field]) for field, s in schedules.items()}
        params, inner = opt.update(params, state.inner, grads, h.inner._replace(**now))
        return params, ScheduledState(state.step + 1, inner)

    return Optimizer(init, update, hparams)
