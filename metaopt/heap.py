"""What the process does with memory that was freed: it keeps some, for the next step wants as much."""

from __future__ import annotations

import functools

import torch

__all__ = ["keep_freed"]


def keep_freed() -> None:
    """Let the C library keep freed blocks of up to 31 MiB.

    glibc takes blocks of 128 KiB from the system and gives them back at once, so that every inner step
    faults its pages in again: half the time of a compiled step of a small net. A large block that was freed
    once raises that limit to its own size, and what is kept at the top of the heap to twice as much
    (mallopt(3), M_MMAP_THRESHOLD). Other C libraries are left as they are; no page of it is touched.
    """
    if not torch.compiler.is_compiling():
        _free_one()


@functools.cache
def _free_one() -> None:
    torch.empty(31 << 20, dtype=torch.uint8)
