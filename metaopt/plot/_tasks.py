"""Tasks before and after adaptation: curves and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.plot._figure import BLUE, GREEN, GREY, ORANGE, figure
from metaopt.step import inner_step
from metaopt.types import LossFn, Meta, Optimizer

__all__ = ["adaptation", "adapted_images", "adapted_sinusoids"]


def adaptation(
    apply: Callable[..., Tensor],
    loss_fn: LossFn,
    opt: Optimizer,
    meta_params: Any,
    episodes: Any,
    steps: Sequence[int] = (0, 1, 5),
    *,
    num_tasks: int = 3,
    per_step_hparams: bool = False,
    truth: Callable[[int, Tensor], Tensor] | None = None,
) -> Any:
    """Draw tasks: what is adapted on, and what is predicted before and after some inner steps.

    Regression of one variable is drawn as curves, a panel a task; classification of images as the images
    of the first task, each with the class predicted before and after.

    Args: apply: ``(params, x) -> prediction``, as from `metaopt.functional`.
          loss_fn, opt: of the inner loop.
          meta_params: the initial parameters, or a `Meta`.
          episodes: stacked; batches are (x, y), x [task, example, 1] or [task, example, channel, h, w].
          steps: how many inner steps have been taken; the last is drawn as the result.
          num_tasks: panels.
          per_step_hparams: as in `maml`; the last row serves for the steps beyond.
          truth: ``(task, x) -> y``, a curve that is known; the query points are drawn where None.
    Returns: a matplotlib Figure.
    Raises: ArgumentError where x is neither; MissingExtraError without matplotlib.

    >>> import metaopt as mo
    >>> apply, params, _ = mo.functional(torch.nn.Linear(1, 1))
    >>> loss_fn = lambda p, b: ((apply(p, b[0]) - b[1]) ** 2).mean()
    >>> episodes = mo.tasks.sinusoid().sample(num_tasks=3, seed=0)
    >>> len(adaptation(apply, loss_fn, mo.optim.sgd(0.01), params, episodes).axes)
    3
    """
    if not steps or any(isinstance(k, bool) or not isinstance(k, int) or k < 0 for k in steps):
        raise ArgumentError("plot.adaptation(steps)", "numbers of steps >= 0", repr(steps))
    meta = meta_params if isinstance(meta_params, Meta) else Meta(meta_params)
    some = tree.index(episodes, slice(num_tasks))
    (x, _), _ = some
    fits = x.ndim == 3 and x.shape[-1] == 1
    if not fits and x.ndim != 5:
        expected = "x of [task, example, 1] or [task, example, channel, h, w]"
        raise ArgumentError("plot.adaptation(episodes)", expected, str(list(x.shape)), "support[0]")
    if not fits:
        episode = tree.index(some, 0)
        before, after = _trail(loss_fn, opt, meta, episode[0], (steps[0], steps[-1]), per_step_hparams)
        with torch.no_grad():
            was, now = (apply(p, episode[1][0]).argmax(-1).cpu() for p in (before, after))
        support, query = tree.map(lambda v: v.cpu(), tuple(episode))
        return adapted_images(support, query, was, now, way=int(support[1].max()) + 1)
    ends = [x.min(), x.max(), some[1][0].min(), some[1][0].max()]
    line = torch.linspace(float(min(ends)), float(max(ends)), 200, dtype=x.dtype, device=x.device)
    drawn = []
    for episode in tree.unstack(some):
        trail = _trail(loss_fn, opt, meta, episode[0], steps, per_step_hparams)
        with torch.no_grad():
            drawn.append(torch.stack([apply(p, line[:, None])[:, 0] for p in trail]))
    curves = None if truth is None else torch.stack([truth(t, line).reshape(-1) for t in range(len(drawn))])
    support, query = tree.map(lambda v: v.cpu(), tuple(some))
    known = None if curves is None else curves.cpu()
    held_out = query if truth is None else None
    return adapted_sinusoids(line.cpu(), known, support, torch.stack(drawn, 1).cpu(), steps, held_out)


def _trail(
    loss_fn: LossFn, opt: Optimizer, meta: Meta, support: Any, steps: Sequence[int], per_step: bool
) -> list[Any]:
    """The fast weights after each of ``steps``."""
    meta = Meta(*tree.detach(tuple(meta)))
    hparams = opt.hparams if meta.hparams is None else meta.hparams
    params, state, found = meta.params, opt.init(meta.params), {0: meta.params}
    for j in range(max(steps)):
        rows = [
            x[min(j, len(x) - 1)] if per_step and isinstance(x, Tensor) and x.ndim else x
            for x in tree.leaves(hparams)
        ]
        now = tree.unflatten(tree.structure(hparams), rows)
        params, state, _ = inner_step(loss_fn, opt, params, state, support, now, meta.phi, order=1)
        found[j + 1] = params
    return [found[k] for k in steps]


def adapted_sinusoids(
    x: Tensor,
    truth: Tensor | None,
    support: Any,
    predictions: Tensor,
    steps: Sequence[int],
    query: Any = None,
) -> Any:
    """Draw regression tasks: truth, support points and predictions after some steps.

    Args: x: [point]; truth: [task, point] or None; support, query: (x, y), each [task, shot, 1].
          predictions: [step, task, point], one row for each of ``steps``.
    """
    tasks = predictions.shape[1]
    fig = figure(figsize=(3.4 * tasks, 3.0))
    shades = [GREY, ORANGE, BLUE]
    for t, axis in enumerate(fig.subplots(1, tasks, squeeze=False, sharey=True)[0]):
        if truth is not None:
            axis.plot(x, truth[t], color="black", linewidth=1, label="truth")
        for row, k in enumerate(steps):
            style = "-" if row == len(steps) - 1 else "--"
            axis.plot(x, predictions[row, t], style, color=shades[row % 3], label=_after(k))
        axis.plot(support[0][t, :, 0], support[1][t, :, 0], "o", color=GREEN, label="support")
        if query is not None:
            axis.plot(query[0][t, :, 0], query[1][t, :, 0], "x", color="black", label="query")
        axis.set(xlabel="x", title=f"task {t + 1}")
    fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
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
