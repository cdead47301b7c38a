"""Every kind of dropout and noise by `seeded` draws, where there are any, and by torch's otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metaopt.exact._random import Draws, current_draws

__all__ = ["dropout"]

_ALPHA = -1.7580993408473766  # −λα of SELU: Klambauer et al. 2017, arXiv:1706.02515


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """``F.dropout``: x · mask / (1 − p)."""
    draws = current_draws()
    if draws is None:
        return F.dropout(input, p, training, inplace)
    return _drop(draws, input, p, training, inplace, input.shape)


def _drop(draws: Draws, x: Tensor, p: float, training: bool, inplace: bool, shape: Sequence[int]) -> Tensor:
    if not training or p == 0:
        return x
    kept = draws.bernoulli(1 - p, x, shape)
    factor = kept / (1 - p) if p < 1 else kept
    return x.mul_(factor) if inplace else x * factor


def _channels(x: Tensor, lead: int) -> tuple[int, ...]:
    """The shape of a mask that drops whole channels: 1 on every axis after ``lead``."""
    return (*x.shape[:lead], *(1 for _ in x.shape[lead:]))


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    lead = 1 if input.ndim == 2 else 2
    return _drop(_draws(), input, p, training, inplace, _channels(input, lead))


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _drop(_draws(), input, p, training, inplace, _channels(input, 2))


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    lead = 1 if input.ndim == 4 else 2
    return _drop(_draws(), input, p, training, inplace, _channels(input, lead))


def _alpha(x: Tensor, p: float, training: bool, inplace: bool, shape: Sequence[int]) -> Tensor:
    """a (x · mask + α' (1 − mask)) + b, with the mean and variance of x."""
    if not training or p == 0:
        return x
    kept = _draws().bernoulli(1 - p, x, shape)
    a = 0.0 if p == 1 else ((1 - p) * (1 + p * _ALPHA**2)) ** -0.5
    out = a * (x * kept + _ALPHA * (1 - kept)) - a * _ALPHA * p
    return x.copy_(out) if inplace else out


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    return _alpha(input, p, training, inplace, input.shape)


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _alpha(input, p, training, inplace, _channels(input, 2))


def rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """x where x ≥ 0, slope · x elsewhere; slope ~ U(lower, upper), or its mean in eval."""
    if training:
        draws = current_draws()
        u = torch.rand_like(input) if draws is None else draws.uniform(input.shape, input.dtype, input.device)
        slope: Any = lower + (upper - lower) * u
    else:
        slope = (lower + upper) / 2
    out = torch.where(input >= 0, input, slope * input)
    return input.copy_(out) if inplace else out


def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """softmax((logits + g) / τ), g = −log(−log u)."""
    u = _draws().uniform(logits.shape, logits.dtype, logits.device)
    soft = ((logits - (-u.log()).log()) / tau).softmax(dim)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


def fractional(pool: Any, axes: int) -> Any:
    """A fractional max pool whose ``_random_samples`` [N, C, axes] are drawn here."""

    def run(input: Tensor, *args: Any, _random_samples: Any = None, **kwargs: Any) -> Any:
        if _random_samples is None and len(args) < 5:
            lead = (1, *input.shape[:1]) if input.ndim == axes + 1 else tuple(input.shape[:2])
            _random_samples = _draws().uniform((*lead, axes), input.dtype, input.device)
            kwargs["_random_samples"] = _random_samples
        return pool(input, *args, **kwargs)

    return run


def _draws() -> Draws:
    found = current_draws()
    assert found is not None, "the table asks for these functions under `seeded` only"
    return found
