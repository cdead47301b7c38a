"""Gradient noise from an explicit key: pure, mapped and compiled like any other arithmetic."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.optim._chain import Transform
from metaopt.optim._entries import check_bounds, check_type
from metaopt.optim._leafwise import RATE
from metaopt.optim._smooth import root

__all__ = ["NoiseHParams", "NoiseState", "add_noise"]


class NoiseHParams(NamedTuple):
    """Each a number or a 0-d tensor."""

    eta: Any
    gamma: Any = 0.55


class NoiseState(NamedTuple):
    """Steps taken, and the key, 0-d int64: give every task its own with ``state._replace(key=...)``."""

    step: Any
    key: Any


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap; >> is made logical by a mask."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def normal(key: Tensor, like: Tensor) -> Tensor:
    """Standard normal numbers shaped as ``like``, a function of the key alone (Box-Muller).

    >>> key = torch.tensor(0)
    >>> torch.equal(normal(key, torch.zeros(3)), normal(key, torch.zeros(3)))
    True
    """
    index = torch.arange(2 * like.numel(), device=like.device).reshape(2, *like.shape)
    bits = _mix(_mix(index * -7046029254386353131 + key) ^ key)
    u, v = (((bits >> 11) & ((1 << 53) - 1)).double() + 0.5).mul(2.0**-53).unbind()
    return ((-2 * u.log()).sqrt() * (2 * math.pi * v).cos()).to(like.dtype)


def add_noise(eta: Any, gamma: Any = 0.55, *, key: int | Tensor) -> Transform:
    """Add Gaussian noise that fades.

    ::

        g ← g + σ_t z,  σ_t² = η / tᵞ,  z ~ N(0, I) drawn from (key, t, leaf)

    Args: eta: η >= 0, gradient².
          gamma: γ >= 0.
          key: an integer or a 0-d int64 tensor: the same key, the same noise.
    Returns: Transform with hparams NoiseHParams, differentiable in both.
    Raises: ArgumentError if a number is out of range or the key is no integer.
    Source: Neelakantan et al. 2015, arXiv:1511.06807.

    >>> noise = add_noise(1.0, key=0)
    >>> params = [torch.zeros(1000)]
    >>> grads, _ = noise.update(params, noise.init(params), params, noise.hparams)
    >>> round(float(grads[0].std()), 1)
    1.0
    """
    whole = isinstance(key, int) and not isinstance(key, bool)
    if not whole and not (isinstance(key, Tensor) and key.dtype == torch.int64 and key.ndim == 0):
        raise ArgumentError("add_noise(key)", "an integer or a 0-d int64 tensor", repr(key))
    hparams = NoiseHParams(eta, gamma)
    bounds = dict.fromkeys(NoiseHParams._fields, RATE)
    check_bounds("add_noise", hparams, bounds)

    def init(params: Any) -> NoiseState:
        tree.check_parameters("add_noise.init(params)", params, real=True)
        leaves = tree.leaves(params)
        device = leaves[0].device if leaves else None
        return NoiseState(
            torch.zeros((), dtype=torch.float64, device=device), torch.as_tensor(key, device=device)
        )

    def update(params: Any, state: NoiseState, grads: Any, h: Any) -> tuple[Any, NoiseState]:
        tree.check_same("add_noise.update(grads)", grads, params, shapes=True)
        remedy = "Start from what init(params) returns."
        check_type("add_noise.update(state)", state, NoiseState(0, 0), remedy)
        check_type("add_noise.update(hparams)", h, hparams, "Start from this transform's hparams.")
        check_bounds("add_noise", h, bounds)
        step = state.step + 1
        deviation = root(torch.as_tensor(h.eta, dtype=step.dtype, device=step.device) / step**h.gamma)
        leaves, structure = tree.flatten(grads)
        base = _mix(state.key + step.long() * 7046029254386353131)
        noisy = [
            (g + deviation.to(g.dtype) * normal(_mix(base + i), g)).to(g.dtype) for i, g in enumerate(leaves)
        ]
        return tree.unflatten(structure, noisy), state._replace(step=step)

    return Transform(init, update, hparams)
