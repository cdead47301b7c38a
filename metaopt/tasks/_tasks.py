"""What every distribution of tasks can do: be sampled, in one call and without state."""

from __future__ import annotations

from typing import Protocol

import torch

from metaopt.errors import ArgumentError, check_at_least
from metaopt.types import Episode

__all__ = ["Tasks", "check_device", "check_draw", "check_floating"]


class Tasks(Protocol):
    """A distribution over tasks.

    ``sample(num_tasks, seed, step=0)`` returns an `Episode` of stacked tensors, task axis first. It is a
    pure function: the same seed and step give the same episodes, on every device, and the first k tasks of
    ``sample(n, ...)`` are ``sample(k, ...)``. Count ``step`` in a training loop; use another ``seed`` for
    evaluation.
    """

    @property
    def shot(self) -> int:
        """Support examples (for classification: of each class)."""

    @property
    def query(self) -> int:
        """Query examples (for classification: of each class)."""

    def sample(self, num_tasks: int, seed: int, step: int = 0) -> Episode:
        """Return ``num_tasks`` episodes."""


def check_draw(num_tasks: object, seed: object, step: object) -> None:
    """Check the arguments of ``sample``."""
    check_at_least("tasks.sample(num_tasks)", num_tasks, 1)
    check_at_least("tasks.sample(seed)", seed, 0)
    check_at_least("tasks.sample(step)", step, 0)


def check_device(where: str, device: torch.device | str) -> torch.device:
    """The device, where torch has it here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        remedy = "Take 'cpu'."
        raise ArgumentError(where, "a device of this machine", repr(device), remedy=remedy) from error


def check_floating(where: str, dtype: torch.dtype) -> None:
    """Raise `ArgumentError` unless ``dtype`` is real and floating."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ArgumentError(where, "a floating dtype", str(dtype))
