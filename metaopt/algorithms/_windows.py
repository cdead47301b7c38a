"""One window of an episode, for many tasks, and what it says about φ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.algorithms._optimization_tasks import OptimizationTasks
from metaopt.batch import map_tasks
from metaopt.exact import exact
from metaopt.hypergrad._es import noise
from metaopt.types import Optimizer
from metaopt.unroll import unroll

__all__ = ["Inner", "advance", "pes_window", "truncated_window"]

Run = Callable[[Any, Any], tuple[Tensor, Any]]


class Inner(NamedTuple):
    """A task under way: parameters, state of the optimizer that is trained, data, steps made."""

    params: Any
    state: Any
    batch: Any
    age: Tensor


def advance(
    tasks: OptimizationTasks,
    opt: Optimizer,
    hparams: Any,
    inner: Inner,
    window: int,
    objective: Callable[[Tensor], Tensor],
    order: Literal[1, 2],
) -> tuple[Tensor, Inner]:
    """One task, ``window`` steps on: objective(ℓ(θ_1), …, ℓ(θ_W)) and the task as it then is.

    With batches a step, θ_j is judged by batch j, which it has not seen.
    """

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> tuple[Any, Any]:
        return opt.update(params, state, tree.detach(grads), hparams)

    rule = opt if order == 2 else opt._replace(update=update)  # the losses keep their derivatives
    batch, last = inner.batch, inner.batch
    steps: int | None = window
    if tasks.stepped:
        rows = inner.age + torch.arange(window + 1, device=inner.age.device)
        rolled = tree.map(lambda x: x.index_select(0, rows), batch)
        batch, last, steps = tree.index(rolled, slice(0, window)), tree.index(rolled, window), None
    out = unroll(tasks.loss_fn, rule, inner.params, batch, steps, hparams, state=inner.state)
    with exact():
        end = tasks.loss_fn(out.params, last)
    value = objective(torch.cat([out.losses[1:], end[None]]))
    return value, inner._replace(params=out.params, state=out.state, age=inner.age + window)


def truncated_window(run: Run, phi: list[Tensor], inner: tuple[Inner, ...]) -> Any:
    """ĝ = mean_i ∂F_i/∂φ, where the carry is a constant; F [task]; the carry."""
    phi = [x.detach().requires_grad_() for x in phi]
    mapped = map_tasks(run, how="vmap")
    value, moved = mapped(phi, *inner)
    finite = value.isfinite()
    kept = value
    if not bool(finite.all()) and bool(finite.any()):  # 0 times their infinities would be NaN: without them
        kept, _ = mapped(phi, *(tree.index(task, finite) for task in inner))
    grad = list(torch.autograd.grad(kept.mean(), phi))
    if not all(bool(g.isfinite().all()) for g in grad):
        grad = [torch.zeros_like(g) for g in grad]
    return grad, value.detach(), (tree.detach(moved),)


def pes_window(
    run: Run, phi: list[Tensor], inner: tuple[Inner, ...], xi: Any, sigma: float, seed: int, step: int
) -> Any:
    """ξ_i ← ξ_i + ε_i,   ĝ = mean_i (F_i(φ + ε_i) − F_i(φ − ε_i)) ξ_i / 2σ²; F [task]; the carries; ξ."""
    num_tasks = len(xi[0])
    eps = tree.scale(noise(phi, num_tasks, seed=(seed * 1_000_003 + step) % 2**31), sigma)
    xi = tree.add(xi, eps)
    mapped = map_tasks(run, how="vmap", in_dims=(0, 0))
    with torch.no_grad():
        up, plus = mapped([x + e for x, e in zip(phi, eps, strict=True)], inner[0])
        down, minus = mapped([x - e for x, e in zip(phi, eps, strict=True)], inner[1])
    slope = (up - down) / (2 * sigma**2)
    slope = torch.where(slope.isfinite(), slope, 0.0) / num_tasks
    return [torch.tensordot(slope, x, 1) for x in xi], (up + down) / 2, (plus, minus), xi
