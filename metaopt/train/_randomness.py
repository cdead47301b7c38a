"""What a step draws from global generators, as a function of the seed and the step."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from metaopt.tasks._random import key_of

__all__ = ["drawing"]


@contextmanager
def drawing(*parts: int | str) -> Iterator[None]:
    """Seed torch's, Python's and numpy's global generators by ``parts``, and put them back after.

    So that a resumed run draws what an uninterrupted one draws, without a generator in its checkpoint.
    """
    key = key_of("fit", *parts) & (2**63 - 1)
    own = random.getstate()
    cpu = torch.default_generator.get_state()
    numpy = sys.modules.get("numpy")
    arrays = numpy.random.get_state() if numpy else None
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    gpu = torch.cuda.get_rng_state() if on_gpu else None
    random.seed(key)
    torch.default_generator.manual_seed(key)
    if numpy:
        numpy.random.seed(key % 2**32)
    if on_gpu:
        torch.cuda.manual_seed(key)
    try:
        yield
    finally:
        random.setstate(own)
        torch.default_generator.set_state(cpu)
        if numpy:
            numpy.random.set_state(arrays)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
