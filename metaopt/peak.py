"""Peak memory of a call: the storages that are alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt import tree
from metaopt.replay import scaled_zero

__all__ = ["Peak", "peak_memory"]


class Peak(TorchDispatchMode):
    """A context that counts the bytes of every storage made inside it, on one device or on any.

    ``live`` bytes now, ``peak`` bytes at most, beside what was there before. What a kernel allocates and
    frees within itself is not seen; torch.profiler sees it, at a thousand times the memory.

    >>> with Peak() as peak:
    ...     x = torch.ones(1000).double() + 1
    >>> peak.peak, peak.live
    (16000, 8000)
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.device = device
        self.live = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if scaled_zero(func, args):
            return args[0]
        out = func(*args, **(kwargs or {}))
        for x in tree.leaves(out):
            if isinstance(x, Tensor) and self.device in (None, x.device):
                self._watch(x, args, kwargs)
        return out

    def _watch(self, x: Tensor, args: Any, kwargs: Any) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._known or self._is_old(key, args, kwargs):
            return
        size = storage.nbytes()
        self._known[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _is_old(self, key: int, args: Any, kwargs: Any) -> bool:
        """Whether the storage came in by an argument: a view of, or a write to, what was there before."""
        found = tree.leaves((args, kwargs or {}))
        return any(isinstance(y, Tensor) and y.untyped_storage()._cdata == key for y in found)

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)


def peak_memory(fn: Callable[[], Any], device: torch.device | None = None) -> tuple[int, Any]:
    """(peak bytes, result) of ``fn()``, as `Peak` counts them on a device, or on all.

    >>> peak_memory(lambda: torch.ones(1000) + 1)[0]
    8000
    """
    with Peak(device) as peak:
        out = fn()
    return peak.peak, out
