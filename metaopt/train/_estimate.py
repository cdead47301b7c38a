"""The outer gradient of one step: over chunks of this rank's tasks, in mixed precision, over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError, is_count
from metaopt.exact import tasks_from
from metaopt.train._distributed import ranks, share, sum_over_ranks, weighted

__all__ = ["Estimate", "Estimator", "by_autograd", "over_ranks"]


class Estimate(NamedTuple):
    """An estimate of the outer gradient, over some tasks.

    ``losses`` [task]; ``grads`` like the meta-parameters, the mean over these tasks; ``scores`` a dict of
    [task]; ``carry`` for the next step.
    """

    losses: Tensor
    grads: Any
    scores: dict[str, Tensor] = {}  # noqa: RUF012
    carry: Any = ()


class Estimator(NamedTuple):
    """Any way to the outer gradient, with what it carries from step to step.

    ``estimate(meta_params, episodes, step, carry) -> Estimate``. ``carry`` is what it starts with, PES's
    particles say: a tree of tensors that keeps its structure, shapes and dtypes. It is saved with the run.
    """

    estimate: Callable[[Any, Any, int, Any], Estimate]
    carry: Any = ()


def by_autograd(
    meta_loss: Callable[[Any, Any], Any],
    *,
    chunk_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> Estimator:
    """The gradient of a meta-loss, accumulated over chunks of tasks.

    ::

        g = Σ_c n_c ∇ mean_c / Σ_c n_c

    Args: meta_loss: ``(meta_params, episodes) -> losses [task]``, or ``(losses, scores)`` with scores a dict
              of [task]; a scalar stands for the mean over the tasks.
          chunk_size: tasks whose graph is in memory at a time; all where None.
          autocast: torch.bfloat16, for what torch's autocast lowers; parameters and gradients keep
              their dtype.
    Raises: ArgumentError; StructureError if the losses are not one a task.
    """
    _check_autocast(autocast)
    if chunk_size is not None and not is_count(chunk_size):
        raise ArgumentError("fit(chunk_size)", "an integer >= 1 or None", repr(chunk_size))

    def one(meta_params: Any, leaves: list[Tensor], episodes: Any, count: int) -> tuple[Tensor, Any, Any]:
        with _lowered(leaves, autocast):
            out = meta_loss(meta_params, episodes)
        losses, scores = out if isinstance(out, tuple) else (out, {})
        losses = _per_task("fit(meta_loss)", losses, count)
        scores = {k: _per_task("fit(meta_loss)", v, count, k).detach() for k, v in scores.items()}
        if not losses.requires_grad:
            raise ArgumentError(
                "fit(meta_loss)",
                "a loss that depends on meta_params",
                "a constant",
                remedy="Compute it from the argument, without detach or no_grad.",
            )
        grads = torch.autograd.grad(losses.mean(), leaves, materialize_grads=True)
        return losses.detach(), scores, grads

    def estimate(meta_params: Any, episodes: Any, step: int, carry: Any) -> Estimate:
        leaves, structure = tree.flatten(meta_params)
        total = count_tasks(episodes)
        size = chunk_size or total
        parts = []
        sums: list[Tensor] = []
        for first in range(0, total, size):
            count = min(size, total - first)
            chunk = episodes if count == total else tree.index(episodes, slice(first, first + count))
            with tasks_from(first):
                losses, scores, grads = one(meta_params, leaves, chunk, count)
            parts.append((losses, scores))
            share = [g * (count / total) for g in grads] if count < total else list(grads)
            sums = [s + g for s, g in zip(sums, share, strict=True)] if sums else share
        losses, scores = parts[0] if len(parts) == 1 else _joined(parts)
        return Estimate(losses, tree.unflatten(structure, sums), scores, carry)

    return Estimator(estimate)


def _joined(parts: list[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    scores = {k: torch.cat([s[k] for _, s in parts]) for k in parts[0][1]}
    return torch.cat([losses for losses, _ in parts]), scores


def count_tasks(episodes: Any) -> int:
    """T, and 1 where there are no episodes."""
    if episodes is None:
        return 1
    return tree.axis_size("fit(tasks)", episodes, 0, "tasks", "Stack episodes with metaopt.tree.stack.")


def _per_task(where: str, values: Any, count: int, name: str = "losses") -> Tensor:
    if not isinstance(values, Tensor):
        raise StructureError(where, f"a tensor [task] as {name}", type(values).__name__)
    if values.ndim == 0:
        return values.expand(count)
    if values.shape != (count,):
        expected = f"{name} of shape [{count}], one a task"
        raise StructureError(where, expected, str(list(values.shape)), remedy="Return map_tasks(...)'s.")
    return values


def _check_autocast(dtype: Any) -> None:
    if dtype not in (None, torch.bfloat16):
        raise ArgumentError(
            "fit(autocast)",
            "torch.bfloat16 or None",
            str(dtype),
            remedy="float16 would need its loss scaled, through every inner step.",
        )


def _lowered(leaves: list[Tensor], dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return nullcontext()
    # without the cache: a cast kept from one inner step would be taken for the next one's
    return torch.autocast(leaves[0].device.type, dtype, cache_enabled=False)


def over_ranks(
    estimator: Estimator, asked: Callable[[], bool], meta_params: Any, episodes: Any, step: int, carry: Any
) -> tuple[Estimate, bool]:
    """The estimate over the tasks of all ranks, reduced once; and whether one of them asks to stop.

    Losses and scores come in the order of the tasks, as on one rank.
    """
    number, size = ranks()
    if size == 1:
        with tasks_from(0, step):
            return estimator.estimate(meta_params, episodes, step, carry), asked()
    total = size if episodes is None else count_tasks(episodes)
    mine = share(total, number, size)
    count = mine.stop - mine.start
    # a rank without tasks computes the first one for the shapes of the result, with weight 0
    some = episodes if episodes is None else tree.index(episodes, mine if count else slice(0, 1))
    with tasks_from(mine.start if episodes is not None else 0, step):
        found = estimator.estimate(meta_params, some, step, carry)

    def placed(values: Tensor) -> Tensor:
        row = torch.zeros(total, dtype=values.dtype, device=values.device)
        row[mine] = values[:count]
        return row

    stop = torch.tensor(float(asked()), dtype=found.losses.dtype, device=found.losses.device)
    grads, losses, scores, stop = sum_over_ranks(
        (
            weighted(found.grads, count),
            placed(found.losses),
            {k: placed(v) for k, v in found.scores.items()},
            stop,
        )
    )
    grads = tree.map(lambda g: g / total, grads)
    return Estimate(losses, grads, scores, found.carry), bool(stop)
