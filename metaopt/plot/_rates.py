"""Learned step sizes, layer by layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.plot._figure import BLUE, GREY, figure

__all__ = ["rates"]


def rates(values: Any, *, start: float | None = None, per_step: bool = False, name: str = "step size") -> Any:
    """Draw learned rates by layer: one dot a leaf, a range where a leaf has many, a cell a step.

    Args: values: tree of tensors, ``hparams.lr`` of a `Meta` say.
          start: where all of them began; drawn as a line.
          per_step: every leaf is [step], and drawn as a row of cells with their values.
          name: what is learned, for the axis.
    Returns: a matplotlib Figure.
    Raises: MissingExtraError without matplotlib.

    >>> rates({"w": torch.tensor(0.1), "b": torch.tensor(0.3)}).axes[0].get_xlabel()
    'step size'
    """
    names = [path.replace("['", "").replace("']", "") or "all" for path in tree.paths(values)]
    leaves = [torch.as_tensor(x).detach().cpu().double() for x in tree.leaves(values)]
    height = 0.34 * len(leaves) + 1.1
    if per_step:
        return _cells(names, torch.stack(leaves), height, name)
    fig = figure(figsize=(5.6, height))
    axis = fig.subplots()
    if start is not None:
        axis.axvline(start, color=GREY, linestyle="--", label="start")
    for row, x in enumerate(leaves):
        low, middle, high = x.reshape(-1).quantile(torch.tensor([0.05, 0.5, 0.95]).double())
        axis.plot([middle], [row], "o", color=BLUE, label="learned" if row == 0 else None)
        if x.numel() > 1:
            label = "5 to 95 % of the entries" if not axis.collections else None
            axis.hlines(row, low, high, color=BLUE, linewidth=2, alpha=0.5, label=label)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel=name, ylim=(len(names) - 0.5, -0.5))
    axis.grid(alpha=0.3, axis="x")
    if start is not None or axis.collections:
        fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return fig


def _cells(names: list[str], values: Tensor, height: float, name: str) -> Any:
    steps = values.shape[1]
    fig = figure(figsize=(2.2 + 0.62 * steps, height + 0.3))
    axis = fig.subplots()
    wide = bool(values.min() > 0) and float(values.max()) > 30 * float(values.min())
    shade = values.log10() if wide else values
    low, high = float(shade.min()), float(shade.max())
    image = axis.imshow(values.numpy(), cmap="cividis", aspect="auto", norm="log" if wide else "linear")
    for row in range(len(names)):
        for j in range(steps):
            x = float(values[row, j])
            dark = float(shade[row, j]) - low < 0.5 * (high - low) or math.isclose(low, high)
            text, ink = f"{x:.2g}" if abs(x) < 99.5 else f"{x:.0f}", "white" if dark else "black"
            axis.text(j, row, text, ha="center", va="center", color=ink, size=8)
    axis.set_yticks(range(len(names)), names)
    axis.set_xticks(range(steps), range(1, steps + 1))
    axis.set(xlabel="inner step")
    fig.colorbar(image, label=name)
    return fig
