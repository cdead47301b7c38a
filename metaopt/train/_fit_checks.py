"""The door of `fit`: its arguments, checked once, before the first step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError, check_at_least
from metaopt.optim.schedule import Schedule
from metaopt.train._estimate import Estimator
from metaopt.types import Optimizer

__all__ = ["check_carry", "check_fit", "sampler_of", "scheduled_hparams"]


def check_fit(given: dict[str, Any]) -> None:
    """Raise `ArgumentError` or `StructureError` for what is out of range, or does not fit together."""
    if not isinstance(given["opt"], Optimizer):
        got = type(given["opt"]).__name__
        remedy = "metaopt.optim.from_torch makes one of a torch optimizer."
        raise ArgumentError("fit(opt)", "a metaopt Optimizer", got, remedy=remedy)
    if not callable(given["meta_loss"]) and not isinstance(given["meta_loss"], Estimator):
        got = type(given["meta_loss"]).__name__
        raise ArgumentError("fit(meta_loss)", "a function or an Estimator", got)
    tree.check_parameters("fit(meta_params)", given["meta_params"])
    if not tree.leaves(given["meta_params"]):
        raise StructureError("fit(meta_params)", "at least one tensor", "a tree without leaves")
    for name, least in (("num_steps", 1), ("seed", 0), ("checkpoint_every", 1)):
        check_at_least(f"fit({name})", given[name], least)
    for name in ("validate_every", "patience"):
        check_at_least(f"fit({name})", given[name], 0)
    clip = given["clip"]
    if isinstance(clip, bool) or not isinstance(clip, (int, float)) or not 0 <= clip < math.inf:
        raise ArgumentError("fit(clip)", "a number >= 0", repr(clip))
    for name, known in (("on_nan", ("stop", "skip")), ("resume", (True, False, "auto"))):
        if not any(given[name] is k or (isinstance(k, str) and given[name] == k) for k in known):
            raise ArgumentError(f"fit({name})", " or ".join(map(repr, known)), repr(given[name]))
    if (given["validate"] is None) != (given["validate_every"] == 0):
        expected = "a number of steps with validate, and 0 without"
        raise ArgumentError("fit(validate_every)", expected, repr(given["validate_every"]))
    if given["patience"] and given["validate"] is None:
        raise ArgumentError("fit(patience)", "0, since nothing is validated", repr(given["patience"]))
    for name in ("callbacks", "writers"):
        if not isinstance(given[name], (list, tuple)):
            raise ArgumentError(f"fit({name})", "a sequence", repr(given[name]))
    if not isinstance(given["progress"], bool):
        raise ArgumentError("fit(progress)", "True or False", repr(given["progress"]))
    if not isinstance(given["out"], (str, os.PathLike, type(None))):
        raise ArgumentError("fit(out)", "a path or None", repr(given["out"]))
    for name in ("validate", "callbacks"):
        for one in given[name] if name == "callbacks" else filter(None, [given[name]]):
            if not callable(one):
                raise ArgumentError(f"fit({name})", "a function", type(one).__name__)
    for writer in given["writers"]:
        for method in ("begin", "write", "flush", "close"):
            if not callable(getattr(writer, method, None)):
                raise ArgumentError("fit(writers)", f"a Writer, which has {method}", type(writer).__name__)
    if isinstance(given["meta_loss"], Estimator):
        for name in ("chunk_size", "autocast"):
            if given[name] is not None:
                got, remedy = repr(given[name]), "Give it to by_autograd, or use it in your estimate."
                raise ArgumentError(f"fit({name})", "None with an Estimator", got, remedy=remedy)
    elif given["tasks"] is None:
        raise ArgumentError("fit(tasks)", "tasks, or a function of the step", "None")


def sampler_of(
    tasks: Any, meta_batch: int | None, seed: int
) -> tuple[Callable[[int], Any], Callable[[], Any], Callable[[Any], None]]:
    """Return ``draw(step)``, ``state()`` and ``set_state(state)`` of where the episodes come from."""
    stateful = hasattr(tasks, "state_dict") and hasattr(tasks, "load_state_dict")
    state = tasks.state_dict if stateful else lambda: ()
    set_state = tasks.load_state_dict if stateful else lambda state: None
    if hasattr(tasks, "sample"):
        check_at_least("fit(meta_batch)", meta_batch, 1)
        return lambda step: tasks.sample(meta_batch, seed, step), state, set_state
    if meta_batch is not None:
        got, remedy = repr(meta_batch), "The function of the step decides how many tasks it returns."
        raise ArgumentError("fit(meta_batch)", "None for tasks without sample", got, remedy=remedy)
    if tasks is None:
        return lambda step: None, state, set_state
    if not callable(tasks):
        expected = "something with sample(num_tasks, seed, step), or a function of the step"
        raise ArgumentError("fit(tasks)", expected, type(tasks).__name__)
    return tasks, state, set_state


def scheduled_hparams(hparams: Any, schedule: Any) -> Callable[[int], Any]:
    """Return ``t -> hparams`` with ``lr`` times the schedule's value at t."""
    if schedule is None:
        return lambda t: hparams
    if not isinstance(schedule, Schedule):
        raise ArgumentError("fit(schedule)", "a metaopt.optim.schedule", type(schedule).__name__)
    if "lr" not in getattr(hparams, "_fields", ()):
        remedy = "Put it on a field of the optimizer with metaopt.optim.scheduled."
        got = f"{type(hparams).__name__} without"
        raise ArgumentError("fit(schedule)", "an optimizer with hparams.lr", got, remedy=remedy)

    def at(t: int) -> Any:
        factor = float(schedule.value(torch.tensor(t, dtype=torch.float64), schedule.hparams))
        return hparams._replace(lr=tree.map(lambda rate: rate * factor, hparams.lr))

    return at


def check_carry(carry: Any, before: Any) -> None:
    """Raise `StructureError` where an estimator hands on another kind of tree than it took."""
    where = "fit(estimate's carry)"
    tree.check_same(where, carry, before)
    for path, new, old in zip(tree.paths(before), tree.leaves(carry), tree.leaves(before), strict=True):
        if not (isinstance(new, Tensor) and isinstance(old, Tensor)):
            raise StructureError(where, "tensors", type(new).__name__, at=path)
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            expected, got = f"{list(old.shape)} {old.dtype}", f"{list(new.shape)} {new.dtype}"
            raise StructureError(where, expected, got, at=path, remedy="Start with what a step hands on.")
