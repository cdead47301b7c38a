"""Tables as pictures: the audit's estimators and the plan's strategies, a row each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from metaopt.errors import ArgumentError
from metaopt.hypergrad import Audit, Plan
from metaopt.plot._figure import BLUE, GREY, ORANGE, figure

__all__ = ["agreement", "costs"]


class _Panel(NamedTuple):
    """One column of dots; ``exact`` is where nothing is wrong. Without ``log``, from −1 to 1."""

    title: str
    values: list[float]
    log: bool = True
    exact: float | None = None


def agreement(audit: Audit) -> Any:
    """Draw an audit: direction, error, time and peak memory of every estimator, a row each.

    Estimators that cannot see this φ have a row that says so.

    Args: audit: what `metaopt.audit` returned.
    Returns: a matplotlib Figure.
    Raises: ArgumentError for anything else; MissingExtraError without matplotlib.

    >>> import torch, metaopt as mo
    >>> problem = mo.hypergrad.Problem(lambda p, b: (p**2).sum(), mo.optim.sgd(lr=0.1), num_steps=4)
    >>> [axis.get_title() for axis in agreement(mo.audit(problem, torch.ones(3))).axes]
    ['cosine', 'relative error', 'time (ms)', 'peak (KiB)']
    """
    if not isinstance(audit, Audit):
        raise ArgumentError("plot.agreement(audit)", "what metaopt.audit returned", type(audit).__name__)
    refused = [r.name for r in audit.rows if r.note]
    rows = [r for r in audit.rows if not r.note]
    panels = [
        _Panel("cosine", [r.cosine for r in rows], log=False, exact=1.0),
        _Panel("relative error", [max(r.error, 1e-16) for r in rows]),
        _Panel("time (ms)", [1e3 * r.seconds for r in rows]),
        _Panel("peak (KiB)", [r.peak / 1024 for r in rows]),
    ]
    fig = _dots([r.name for r in rows], panels, [BLUE] * len(rows))
    if refused:
        fig.supxlabel(f"cannot see this φ: {', '.join(refused)}", fontsize=9, color=GREY)
    return fig


def costs(plan: Plan, budget: float | None = None) -> Any:
    """Draw a plan: peak memory and time of every memory strategy, the chosen one in orange.

    Args: plan: what `metaopt.plan` returned.
          budget: bytes; drawn as a line.
    Returns: a matplotlib Figure.
    Raises: ArgumentError for anything else; MissingExtraError without matplotlib.

    >>> import torch, metaopt as mo
    >>> problem = mo.hypergrad.Problem(lambda p, b: (p**2).sum(), mo.optim.sgd(lr=0.1), num_steps=64)
    >>> [axis.get_title() for axis in costs(mo.plan(problem, phi=torch.ones(3))).axes]
    ['peak (MiB)', 'time (s)']
    """
    if not isinstance(plan, Plan):
        raise ArgumentError("plot.costs(plan)", "what metaopt.plan returned", type(plan).__name__)
    rows = plan.strategies
    panels = [
        _Panel("peak (MiB)", [max(s.peak, 1) / 2**20 for s in rows]),
        _Panel("time (s)", [s.seconds for s in rows]),
    ]
    names = [f"every {s.memory} steps" if isinstance(s.memory, int) else str(s.memory) for s in rows]
    fig = _dots(names, panels, [ORANGE if s == plan.choice else BLUE for s in rows])
    if budget is not None:
        fig.axes[0].axvline(budget / 2**20, color=GREY, linestyle="--")
        fig.supxlabel("dashed: the budget; orange: the choice", fontsize=9, color=GREY)
    return fig


def _dots(names: Sequence[str], panels: Sequence[_Panel], colours: Sequence[str]) -> Any:
    fig = figure(figsize=(1.6 + 1.9 * len(panels), 0.3 * len(names) + 1.3))
    for axis, panel in zip(fig.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        if panel.exact is not None:
            axis.axvline(panel.exact, color=GREY, linewidth=1, linestyle="--")
        axis.scatter(panel.values, range(len(names)), c=list(colours), zorder=3)
        axis.set_title(panel.title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.margins(x=0.15)
        axis.tick_params(labelsize=8)
        if panel.log:
            _decades(axis, panel.values)
        else:
            axis.set(xlim=(-1.3, 1.3), xticks=[-1, 0, 1])
        axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)  # shared by all; the first on top
    return fig


def _decades(axis: Any, values: Sequence[float]) -> None:
    """A log axis with at most four labels, all of them powers of ten."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    every = max(math.ceil((high - low) / 3), 1)
    ticks = range(low, high + every, every)
    margin = 0.15 * (ticks[-1] - low)  # where a label would meet that of the next panel
    axis.set(xscale="log", xlim=(10.0 ** (low - margin), 10.0 ** (ticks[-1] + margin)))
    axis.set_xticks([10.0**k for k in ticks], [f"$10^{{{k}}}$" for k in ticks], minor=False)
    axis.set_xticks([], minor=True)
