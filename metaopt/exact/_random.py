"""Draws that are a function of a key: the same however tasks are mapped, chunked and computed again.

A generator's state moves on with every draw, so that what a task draws depends on who drew before it.
Here draw number n under key k is hash(k, n): every task has its own key, and counts its own draws.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError

__all__ = ["Draws", "advance", "current_draws", "seeded", "task_keys", "tasks_from", "unseeded"]


def _signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


# SplitMix64: Steele, Lea & Flood 2014, doi:10.1145/2714064.2660195.
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_FLOAT_BITS = {torch.float64: 52, torch.float32: 23}


def _shift(z: Tensor, places: int) -> Tensor:
    """z >> places with zeros from the left; int64's own shift repeats the sign."""
    return (z >> places) & ((1 << (64 - places)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection in which every bit of z moves half of the bits."""
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _fold(key: Tensor, number: int) -> Tensor:
    return _mix(key + _signed((number + 1) * _GOLDEN))


class Draws:
    """A key, int64 [], and the number of draws made from it."""

    def __init__(self, key: Tensor, count: int = 0):
        self.key = key
        self.count = count

    def bits(self, shape: Sequence[int], device: Any = None) -> Tensor:
        """64 random bits an entry, int64."""
        key = self.key if device is None else self.key.to(device)
        base = _fold(key, self.count)
        self.count += 1
        index = torch.arange(1, math.prod(shape) + 1, device=key.device)
        return _mix(base + index * _signed(_GOLDEN)).reshape(tuple(shape))

    def uniform(self, shape: Sequence[int], dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        """u ~ U(0, 1), the ends excluded."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        wide = dtype if dtype in _FLOAT_BITS else torch.float32
        digits = _FLOAT_BITS[wide]
        u = (_shift(self.bits(shape, device), 64 - digits).to(wide) + 0.5) * 2.0**-digits
        return u if wide is dtype else u.to(dtype).clamp(max=1 - torch.finfo(dtype).eps)

    def normal(self, shape: Sequence[int], dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        """z = √2 erf⁻¹(2u − 1) ~ N(0, 1)."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        wide = dtype if dtype in _FLOAT_BITS else torch.float32
        return (math.sqrt(2) * torch.erfinv(2 * self.uniform(shape, wide, device) - 1)).to(dtype)

    def bernoulli(self, p: Any, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """1 with probability p and 0 otherwise, in like's dtype; p a number or a tensor."""
        wide = like.dtype if like.dtype in _FLOAT_BITS else torch.float32
        u = self.uniform(like.shape if shape is None else shape, wide, like.device)
        return (u < p).to(like.dtype)

    def split(self, number: int) -> Tensor:
        """``number`` keys, int64 [number], that share no draws with this one."""
        return self.bits((number,))


def advance(key: Tensor, count: int) -> Tensor:
    """The key whose draw number n is draw number count + n of ``key``."""
    return key + _signed(count * _GOLDEN)


_local = threading.local()


def current_draws() -> Draws | None:
    """The draws of the innermost `seeded` in this thread, or None."""
    return getattr(_local, "draws", None)


class tasks_from:
    """A context in which the tasks of a map are numbers ``first``, ``first + 1``, … of a larger batch.

    A share of the tasks, a rank's or a chunk's, then draws what it would draw as a part of the whole.
    Contexts add up: a chunk within a share. A map inside a map counts its own tasks from 0.

    Args: first: tasks before these, >= 0; None: the batch is whole again.
          step: of an outer loop, >= 0; seeds then draw anew at every step. None: the surrounding one's.
    Raises: ArgumentError.

    >>> with tasks_from(2):
    ...     share = task_keys(0, 1)
    >>> torch.equal(share, task_keys(0, 3)[2:])
    True
    """

    def __init__(self, first: int | None, step: int | None = None):
        for name, value in (("first", first), ("step", step)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ArgumentError(f"tasks_from({name})", "an integer >= 0 or None", repr(value))
        self.first, self.step = first, step

    def __enter__(self) -> None:
        self.before = _place()
        first, step = self.before
        step = step if self.step is None else self.step
        _local.place = (0, None) if self.first is None else (first + self.first, step)

    def __exit__(self, *exc: Any) -> None:
        _local.place = self.before


def _place() -> tuple[int, int | None]:
    """The first task's number in the whole batch, and the step of the outer loop."""
    return getattr(_local, "place", (0, None))


def task_keys(seed: int | Tensor | Draws, num_tasks: int) -> Tensor:
    """One key a task, int64 [task]: a function of the seed and of the task's place alone.

    The place is the position among these tasks, and what `tasks_from` says of the whole batch.
    """
    first, step = _place()
    draws = seed
    if not isinstance(draws, Draws):
        key = _key("map_tasks(seed)", seed)
        draws = Draws(key if step is None else _fold(key, step))
    return draws.split(first + num_tasks)[first:]


def _key(where: str, seed: Any) -> Tensor:
    if isinstance(seed, int) and not isinstance(seed, bool):
        return torch.tensor(_signed(seed))
    if isinstance(seed, Tensor) and seed.ndim == 0 and seed.dtype == torch.int64:
        return seed
    got = f"{seed.dtype} {list(seed.shape)}" if isinstance(seed, Tensor) else repr(seed)
    raise ArgumentError(where, "an int, or an int64 tensor of shape []", got)


class seeded:
    """A context in which every draw of `exact` is a function of ``seed`` and of its place in the order.

    Dropout of every kind, attention's and recurrent dropout, noise by ``torch.randn`` and its family.

    Args: seed: an int, or an int64 tensor [], which may be mapped: one key a task.
          count: the number of draws already made from this seed.
    Raises: ArgumentError for another seed. VmapError for a distribution that has no such form.
    Cost: some ten elementwise kernels a draw, where torch's generator takes one.
    Source: Salmon et al. 2011, doi:10.1145/2063384.2063405; Steele et al. 2014 for the hash.

    >>> from metaopt.exact import exact
    >>> with exact(), seeded(0):
    ...     a = torch.rand(3)
    >>> with exact(), seeded(0):
    ...     b = torch.rand(3)
    >>> torch.equal(a, b)
    True
    """

    def __init__(self, seed: int | Tensor, count: int = 0):
        self.draws = Draws(_key("seeded(seed)", seed), count)

    def __enter__(self) -> Draws:
        self.before = getattr(_local, "draws", None)
        _local.draws = self.draws
        return self.draws

    def __exit__(self, *exc: Any) -> None:
        _local.draws = self.before


@contextmanager
def unseeded() -> Iterator[None]:
    """A context in which no `seeded` is open, where its key has become an argument."""
    before = getattr(_local, "draws", None)
    _local.draws = None
    try:
        yield
    finally:
        _local.draws = before
