"""Losses against outer and against inner steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError
from metaopt.plot._figure import BLUE, LINES, ORANGE, figure

__all__ = ["inner_losses", "learning_curve"]


def _running_median(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Medians of windows of ``width`` entries and the last index of each; about 200 of them."""
    stride = max(len(values) // 200, 1)
    windows = values.unfold(0, width, stride)
    return torch.arange(len(windows)) * stride + width - 1, windows.nanmedian(-1).values


def _number(x: float | None) -> float:
    return math.nan if x is None else x


def learning_curve(lines: Sequence[Mapping[str, float | None]], score: str = "accuracy") -> Any:
    """Draw loss and score against outer steps, raw and as a running median.

    Args: lines: one dict a step with "step", "loss" and ``score``, as in metrics.jsonl; None where a number
              was not finite.
    Raises: ArgumentError for no lines, or one that lacks a number.
    """
    names = ["loss"] if score in ("loss", "mse") else ["loss", score]
    for name in ("step", *names):
        if not lines or any(name not in line for line in lines):
            got = "one without" if lines else "none"
            raise ArgumentError("plot.learning_curve(lines)", f"lines with {name!r}", got)
    fig = figure(figsize=(4.6 * len(names), 3.2))
    steps = torch.tensor([line["step"] for line in lines], dtype=torch.float64)
    width = max(len(lines) // 50, 1)
    for axis, name, colour in zip(fig.subplots(1, len(names), squeeze=False)[0], names, (BLUE, ORANGE)):
        values = torch.tensor([_number(line[name]) for line in lines], dtype=torch.float64)
        axis.plot(steps, values, color=colour, alpha=0.2, linewidth=0.5)
        last, medians = _running_median(values, width)  # one diverging task would drown a mean
        axis.plot(steps[last], medians, color=colour, label=f"median of {width}")
        axis.set(xlabel="outer step", ylabel=f"query {name}")
        axis.set_yscale("log" if name == "loss" else "linear")
        if name == "loss":
            _plain_numbers(axis)
        axis.grid(alpha=0.3, which="both")
        axis.legend(frameon=False)
    return fig


def inner_losses(losses: Tensor | Mapping[str, Tensor], *, log: bool = True) -> Any:
    """Draw the loss against the inner step: one line each, or a median over tasks and its quartiles.

    Args: losses: [step], as ``unroll(...).losses``, or [task, step]; or several of these by name.
          log: a logarithmic axis, where all losses are positive.
    Returns: a matplotlib Figure.
    Raises: ArgumentError for tensors of other shapes; MissingExtraError without matplotlib.

    >>> inner_losses({"sgd": torch.tensor([4.0, 2.0, 1.0])}).axes[0].get_xlabel()
    'inner step'
    """
    lines = losses if isinstance(losses, Mapping) else {"": losses}
    fig = figure(figsize=(5.2, 3.4))
    axis = fig.subplots()
    for (name, values), colour in zip(lines.items(), LINES * len(lines)):
        if values.ndim not in (1, 2) or values.numel() == 0:
            got = f"shape {list(values.shape)}"
            raise ArgumentError("plot.inner_losses(losses)", "[step] or [task, step]", got, name)
        rows = values.detach().cpu().double().reshape(-1, values.shape[-1])
        low, middle, high = rows.quantile(torch.tensor([0.25, 0.5, 0.75]).double(), 0)
        steps = torch.arange(len(middle))
        axis.plot(steps, middle, "o-", markersize=3 if len(middle) <= 30 else 0, color=colour, label=name)
        if len(rows) > 1:
            axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    positive = all(bool((values > 0).all()) for values in lines.values())
    axis.set(xlabel="inner step", ylabel="inner loss", yscale="log" if log and positive else "linear")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if axis.get_yscale() == "log":
        _plain_numbers(axis)
    axis.grid(alpha=0.3)
    if isinstance(losses, Mapping):
        axis.legend(frameon=False)
    return fig


def _plain_numbers(axis: Any) -> None:
    """0.3 instead of 3 × 10⁻¹, and no labels between where they would overlap."""
    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:.1g}" if high < 20 * low else "")
