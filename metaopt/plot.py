"""Pictures of training: one call each, returning a matplotlib Figure.

Needs the extra [vision]. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import MissingExtraError

__all__ = ["adapted_images", "adapted_sinusoids", "figure", "learning_curve"]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"


def figure(**kwargs: Any) -> Any:
    """Return an empty matplotlib Figure, which needs no display and no global state.

    Raises: MissingExtraError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "plot", "matplotlib", "no such module", remedy="pip install 'metaopt-torch[vision]'."
        ) from error
    return Figure(layout="constrained", dpi=120, **kwargs)


def _running_median(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Medians of windows of ``width`` entries and the last index of each; about 200 of them."""
    stride = max(len(values) // 200, 1)
    windows = values.unfold(0, width, stride)
    return torch.arange(len(windows)) * stride + width - 1, windows.median(-1).values


def learning_curve(lines: Sequence[dict[str, float]], score: str = "accuracy") -> Any:
    """Draw loss and score against outer steps, raw and as a running median.

    Args: lines: one dict a step with "step", "loss" and ``score``, as in metrics.jsonl.
    """
    names = ["loss"] if score in ("loss", "mse") else ["loss", score]
    fig = figure(figsize=(4.6 * len(names), 3.2))
    steps = torch.tensor([line["step"] for line in lines], dtype=torch.float64)
    width = max(len(lines) // 50, 1)
    for axis, name, colour in zip(fig.subplots(1, len(names), squeeze=False)[0], names, (BLUE, ORANGE)):
        values = torch.tensor([line[name] for line in lines], dtype=torch.float64)
        axis.plot(steps, values, color=colour, alpha=0.2, linewidth=0.5)
        last, medians = _running_median(values, width)  # one diverging task would drown a mean
        axis.plot(steps[last], medians, color=colour, label=f"median of {width}")
        axis.set(xlabel="outer step", ylabel=f"query {name}")
        axis.set_yscale("log" if name == "loss" else "linear")
        if name == "loss":  # 0.3 instead of 3 × 10⁻¹, and no labels between where they would overlap
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:.1g}" if values.max() < 20 * values.min() else "")
        axis.grid(alpha=0.3, which="both")
        axis.legend(frameon=False)
    return fig


def adapted_sinusoids(
    x: Tensor, truth: Tensor, support: Any, predictions: Tensor, steps: Sequence[int]
) -> Any:
    """Draw regression tasks: truth, support points and predictions after some steps.

    Args: x: [point]; truth: [task, point]; support: (x, y), each [task, shot, 1].
          predictions: [step, task, point], one row for each of ``steps``.
    """
    tasks = truth.shape[0]
    fig = figure(figsize=(3.4 * tasks, 3.0))
    shades = [GREY, ORANGE, BLUE]
    for t, axis in enumerate(fig.subplots(1, tasks, squeeze=False, sharey=True)[0]):
        axis.plot(x, truth[t], color="black", linewidth=1, label="truth")
        for row, k in enumerate(steps):
            style = "-" if row == len(steps) - 1 else "--"
            axis.plot(x, predictions[row, t], style, color=shades[row % 3], label=_after(k))
        axis.plot(support[0][t, :, 0], support[1][t, :, 0], "o", color=GREEN, label="support")
        axis.set(xlabel="x", title=f"task {t + 1}")
    fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return fig


def _after(k: int) -> str:
    return "before" if k == 0 else f"after {k} step{'s' if k > 1 else ''}"


def adapted_images(support: Any, query: Any, before: Tensor, after: Tensor, way: int) -> Any:
    """Draw one classification task: support images by class, query images with their predictions.

    Args: support, query: (x [example, 1, h, w], y [example]).
          before, after: predicted classes of the query [example], before and after adaptation.
    """
    rows = [("support", *support, None)]
    columns = max(support[0].shape[0], min(query[0].shape[0], 2 * way))
    for first in range(0, min(query[0].shape[0], 2 * columns), columns):
        part = slice(first, first + columns)
        rows.append(("query", query[0][part], query[1][part], (before[part], after[part])))
    fig = figure(figsize=(0.95 * columns, 1.45 * len(rows)))
    grid = fig.subplots(len(rows), columns, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for line, (name, images, labels, predicted) in zip(grid, rows, strict=True):
        for i, (axis, image) in enumerate(zip(line, images)):
            axis.imshow((1 - image[0]).numpy(), cmap="gray", vmin=0, vmax=1)
            if predicted is None:
                axis.set_title(f"{name} {int(labels[i])}", fontsize=8)
                continue
            was, now, true = int(predicted[0][i]), int(predicted[1][i]), int(labels[i])
            colour = BLUE if now == true else ORANGE
            mark = "right" if now == true else f"is {true}"
            axis.set_title(f"{was} → {now}\n{mark}", fontsize=8, color=colour)
    fig.suptitle("class predicted before → after adaptation", fontsize=9)
    return fig
