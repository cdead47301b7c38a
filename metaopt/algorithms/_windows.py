"""What one window of an episode, for many tasks, says about φ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.algorithms._episodes import Inner
from metaopt.batch import map_tasks
from metaopt.hypergrad._es import noise

__all__ = ["pes_window", "truncated_window"]

Run = Callable[[Any, Any], tuple[Tensor, Any]]


def truncated_window(run: Run, phi: list[Tensor], inner: tuple[Inner, ...], xi: Any, key: int) -> Any:
    """ĝ = mean_i ∂F_i/∂φ, where the carry is a constant; F [task]; the carry; ξ as it was."""
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
    return grad, value.detach(), (tree.detach(moved),), xi


def pes_window(
    run: Run, phi: list[Tensor], inner: tuple[Inner, ...], xi: Any, key: int, *, sigma: float
) -> Any:
    """ξ_i ← ξ_i + ε_i,   ĝ = mean_i (F_i(φ + ε_i) − F_i(φ − ε_i)) ξ_i / 2σ²; F [task]; the carries; ξ."""
    num_tasks = len(xi[0])
    eps = tree.scale(noise(phi, num_tasks, seed=key), sigma)
    xi = tree.add(xi, eps)
    mapped = map_tasks(run, how="vmap", in_dims=(0, 0))
    with torch.no_grad():
        up, plus = mapped([x + e for x, e in zip(phi, eps, strict=True)], inner[0])
        down, minus = mapped([x - e for x, e in zip(phi, eps, strict=True)], inner[1])
    slope = (up - down) / (2 * sigma**2)
    slope = torch.where(slope.isfinite(), slope, 0.0) / num_tasks
    return [torch.tensordot(slope, x, 1) for x in xi], (up + down) / 2, (plus, minus), xi
