"""Random numbers as a function of a counter: no state, the same on every machine and device.

SplitMix64: the i-th number of a stream is a hash of ``key + i · γ``. Row r depends on r alone, so the
first rows of a long draw are those of a short one, which torch's generators do not promise; and its CPU
generator keeps 32 bits of its seed, so that among 65,000 steps two would get the same episodes with
probability 0.4.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["distinct", "key_of", "normal", "uniform"]


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def key_of(*parts: int | str) -> int:
    """Return 64 bits that stand for ``parts``: a seed, a step, the name of what is drawn."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # without the sign


def uniform(key: int, *shape: int) -> Tensor:
    """Independent numbers in [0, 1), float64, on the CPU; the first rows do not depend on how many follow.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA.

    >>> bool((uniform(1, 9, 2)[:3] == uniform(1, 3, 2)).all())
    True
    """
    z = torch.arange(1, 1 + torch.Size(shape).numel()) * _GAMMA + key
    for bits, factor in _FACTORS:
        z = (z ^ _shift(z, bits)) * factor
    z = z ^ _shift(z, 31)
    return (_shift(z, 11).double() * 2.0**-53).view(shape)


def normal(key: int, *shape: int) -> Tensor:
    """√(−2 ln(1 − u₁)) cos 2πu₂: independent standard normal numbers, float64 (Box and Muller)."""
    radius, angle = uniform(key, *shape, 2).unbind(-1)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)


def distinct(key: int, rows: int, count: int, total: int) -> Tensor:
    """Return int64 [rows, count]: ``count`` different numbers below ``total`` in each row, in random order.

    Cost: O(count²) a row, whatever ``total`` is.
    Source: Floyd's sample; Bentley & Floyd 1987, "A sample of brilliance", CACM 30(9).

    >>> distinct(0, 1, 4, 4).sort().values
    tensor([[0, 1, 2, 3]])
    """
    numbers = uniform(key, rows, 2, count)
    tops = torch.arange(total - count, total)
    chosen = (numbers[:, 0] * (tops + 1)).long()
    for i in range(1, count):
        taken = (chosen[:, :i] == chosen[:, i : i + 1]).any(1)
        chosen[:, i] = torch.where(taken, tops[i], chosen[:, i])
    return chosen.gather(1, numbers[:, 1].argsort(1))
