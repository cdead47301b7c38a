"""``doctor(model, loss_fn, episode)``: one call before the training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metaopt import tree
from metaopt.doctor._checks import checks
from metaopt.doctor._flags import flags
from metaopt.doctor._modules import record, report
from metaopt.doctor._report import Report
from metaopt.errors import ArgumentError
from metaopt.exact import exact
from metaopt.functional import functional
from metaopt.step import check_loss

__all__ = ["doctor"]


def doctor(
    model: nn.Module, loss_fn: Callable[..., Tensor], episode: Any, *, compile: bool = False
) -> Report:
    """Find out what a model and its loss can be trusted with, in seconds.

    Every submodule that the loss calls is probed alone, on the input that it got: works, works by
    rewrite, or unsupported and what to use in its place. The whole loss is differentiated by loop, vmap
    and chunks, to first and second order, by finite differences, forwards, and compiled. Flagged are
    unused parameters, paths that ``.detach()`` or ``.item()`` cut, captured tensors, mixed dtypes.

    Args: model: the nn.Module.
          loss_fn: ``(params, batch) -> []``, with the params of `functional`, as for `maml`.
          episode: one Episode (support, query), without a task axis.
          compile: compile the meta-loss too (aot_eager, fullgraph); ten seconds more.
    Returns: Report(modules, checks, flags), which prints as a table here and in Jupyter; ``report.ok``.
    Cost: some twenty meta-gradients of two tasks, and two for each submodule.

    >>> import metaopt as mo
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    >>> apply, params, _ = mo.functional(net)
    >>> batch = (torch.randn(4, 2), torch.randn(4, 1))
    >>> loss_fn = lambda params, batch: (apply(params, batch[0]) - batch[1]).square().mean()
    >>> report = mo.doctor(net, loss_fn, mo.Episode(batch, batch))
    >>> report.ok, [(row.subject, row.verdict) for row in report.modules]
    (True, [('0', 'works'), ('1', 'works by rewrite'), ('2', 'works')])
    """
    check_loss("doctor(loss_fn)", loss_fn)
    _, params, buffers = functional(model)
    params = tree.detach(params)
    if not isinstance(episode, tuple) or len(episode) != 2:
        raise ArgumentError("doctor(episode)", "an Episode (support, query)", type(episode).__name__)
    support, _ = episode
    with torch.no_grad(), exact():
        calls = record(lambda: loss_fn(params, support))
    found = report(calls)
    return Report(found, checks(loss_fn, params, episode, compile), flags(loss_fn, params, buffers, episode))
