"""Schedules: hyperparameters as pure functions of the step, differentiable in their own.

``value(step, hparams) -> []``, where step counts from 0; `scheduled` puts them on an optimizer.

>>> halving = exponential(1.0, 0.5)
>>> [halving.value(torch.tensor(t), halving.hparams).item() for t in (0.0, 1.0, 2.0)]
[1.0, 0.5, 0.25]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.errors import ArgumentError
from metaopt.optim._smooth import like

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "linear",
    "one_cycle",
    "piecewise",
    "warmup",
]


class Schedule(NamedTuple):
    """``value(step, hparams)``, and hparams, a dict of numbers or 0-d tensors."""

    value: Callable[[Tensor, Any], Tensor]
    hparams: dict[str, Any]


def _positive(where: str, value: Any) -> None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not isinstance(value, Tensor) and not (known and value > 0):
        raise ArgumentError(where, "a number > 0 or a tensor", repr(value))


def _number(where: str, *values: Any) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
            raise ArgumentError(where, "a number or a 0-d tensor", repr(value))


def _between(start: Any, end: Any, fraction: Tensor) -> Tensor:
    return start + (end - start) * fraction


def _cosine(start: Any, end: Any, fraction: Tensor) -> Tensor:
    return _between(end, start, (1 + torch.cos(math.pi * fraction)) / 2)


def constant(value: Any) -> Schedule:
    """The value a at every step.

    >>> s = constant(0.1)
    >>> s.value(torch.tensor(5.0), s.hparams)
    tensor(0.1000)
    """
    _number("constant(value)", value)
    return Schedule(lambda t, h: h["value"] + 0.0 * t, {"value": value})


def linear(init_value: Any, end_value: Any, num_steps: Any) -> Schedule:
    """a + (b − a) min(t/T, 1).

    Args: init_value: a. end_value: b. num_steps: T > 0.

    >>> s = linear(0.0, 1.0, 4)
    >>> s.value(torch.tensor(1.0), s.hparams)
    tensor(0.2500)
    """
    _number("linear(init_value, end_value)", init_value, end_value)
    _positive("linear(num_steps)", num_steps)

    def value(t: Tensor, h: Any) -> Tensor:
        return _between(h["init_value"], h["end_value"], (t / h["num_steps"]).clamp(max=1))

    return Schedule(value, {"init_value": init_value, "end_value": end_value, "num_steps": num_steps})


def cosine(init_value: Any, num_steps: Any, end_value: Any = 0.0) -> Schedule:
    """b + (a − b)(1 + cos(π min(t/T, 1)))/2.

    Args: init_value: a. num_steps: T > 0. end_value: b.
    Source: Loshchilov & Hutter 2017, arXiv:1608.03983.

    >>> s = cosine(1.0, 2)
    >>> s.value(torch.tensor(1.0), s.hparams)
    tensor(0.5000)
    """
    _number("cosine(init_value, end_value)", init_value, end_value)
    _positive("cosine(num_steps)", num_steps)

    def value(t: Tensor, h: Any) -> Tensor:
        return _cosine(h["init_value"], h["end_value"], (t / h["num_steps"]).clamp(max=1))

    return Schedule(value, {"init_value": init_value, "end_value": end_value, "num_steps": num_steps})


def exponential(init_value: Any, decay_rate: Any, num_steps: Any = 1) -> Schedule:
    """a · γ^(t/T).

    Args: init_value: a. decay_rate: γ > 0, reached after num_steps: T > 0.
    """
    _number("exponential(init_value)", init_value)
    _positive("exponential(decay_rate)", decay_rate)
    _positive("exponential(num_steps)", num_steps)

    def value(t: Tensor, h: Any) -> Tensor:
        return h["init_value"] * h["decay_rate"] ** (t / h["num_steps"])

    return Schedule(value, {"init_value": init_value, "decay_rate": decay_rate, "num_steps": num_steps})


def piecewise(init_value: Any, boundaries: Sequence[float], scales: Sequence[Any]) -> Schedule:
    """a · Π {sᵢ : t >= bᵢ}.

    Args: init_value: a. boundaries: bᵢ, steps, in any order. scales: sᵢ, each differentiable.

    >>> s = piecewise(1.0, [2], [0.1])
    >>> s.value(torch.tensor(1.0), s.hparams), s.value(torch.tensor(2.0), s.hparams)
    (tensor(1.), tensor(0.1000))
    """
    _number("piecewise(init_value, scales)", init_value, *scales)
    if len(boundaries) != len(scales):
        expected, got = f"a scale for each of {len(boundaries)} boundaries", str(len(scales))
        raise ArgumentError("piecewise(scales)", expected, got)

    def value(t: Tensor, h: Any) -> Tensor:
        now = h["init_value"] + 0.0 * t
        for boundary, scale in zip(boundaries, h["scales"], strict=True):
            now = now * torch.where(t >= boundary, like(scale, t), 1.0)
        return now

    return Schedule(value, {"init_value": init_value, "scales": tuple(scales)})


def warmup(after: Schedule, num_steps: Any, init_value: Any = 0.0) -> Schedule:
    """From a in a straight line to the start of ``after``, which begins at t = T.

    Args: after: the schedule that follows. num_steps: T > 0. init_value: a.
    Source: Goyal et al. 2017, arXiv:1706.02677.

    >>> s = warmup(constant(1.0), 4)
    >>> s.value(torch.tensor(1.0), s.hparams), s.value(torch.tensor(9.0), s.hparams)
    (tensor(0.2500), tensor(1.))
    """
    if not isinstance(after, Schedule):
        raise ArgumentError("warmup(after)", "a Schedule", type(after).__name__)
    _number("warmup(init_value)", init_value)
    _positive("warmup(num_steps)", num_steps)

    def value(t: Tensor, h: Any) -> Tensor:
        target = after.value(torch.zeros_like(t), h["after"])
        rising = _between(h["init_value"], target, t / h["num_steps"])
        later = after.value((t - h["num_steps"]).clamp(min=0), h["after"])
        return torch.where(t < h["num_steps"], rising, later)

    return Schedule(value, {"after": after.hparams, "num_steps": num_steps, "init_value": init_value})


def one_cycle(
    max_value: Any,
    total_steps: Any,
    pct_start: Any = 0.3,
    div_factor: Any = 25.0,
    final_div_factor: Any = 1e4,
) -> Schedule:
    """Up by half a cosine from a/δ to a, and down to a/(δΔ).

    Args: max_value: a. total_steps: T > 1; the rise takes pct_start · T − 1 of them.
          div_factor: δ. final_div_factor: Δ.
    Source: Smith & Topin 2018, arXiv:1708.07120; as torch's OneCycleLR.

    >>> s = one_cycle(1.0, 11, pct_start=6 / 11)
    >>> s.value(torch.tensor(5.0), s.hparams)
    tensor(1.)
    """
    _number("one_cycle(max_value)", max_value)
    for field, x in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
        _positive(f"one_cycle({field})", x)
    _positive("one_cycle(total_steps)", total_steps)
    if isinstance(pct_start, (int, float)) and not 0 <= pct_start <= 1:
        raise ArgumentError("one_cycle(pct_start)", "a number >= 0 and <= 1 or a tensor", repr(pct_start))

    def value(t: Tensor, h: Any) -> Tensor:
        top = h["max_value"]
        bottom = top / h["div_factor"]
        peak, last = h["pct_start"] * h["total_steps"] - 1, h["total_steps"] - 1
        up = _cosine(bottom, top, t / peak)
        down = _cosine(top, bottom / h["final_div_factor"], ((t - peak) / (last - peak)).clamp(max=1))
        return torch.where(t <= peak, up, down)

    hparams = {"max_value": max_value, "total_steps": total_steps, "pct_start": pct_start}
    return Schedule(value, hparams | {"div_factor": div_factor, "final_div_factor": final_div_factor})
