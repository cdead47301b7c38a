"""One loss, differentiated in several ways: the comparison that every verdict rests on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.algorithms import maml
from metaopt.batch import map_tasks
from metaopt.optim import sgd

__all__ = ["Problem", "double", "far", "relative", "said"]


def double(value: Any) -> Any:
    """The tree with floating-point tensors in float64, detached."""

    def of(x: Any) -> Any:
        floating = isinstance(x, Tensor) and x.is_floating_point()
        return x.detach().double() if floating else x

    return tree.map(of, value)


def relative(a: list[Tensor], b: list[Tensor]) -> float:
    """max |a − b| / max |b|, over all leaves together; infinite where either is not finite."""
    scale = max((x.abs().max().item() for x in b if x.numel()), default=0.0)
    error = max((((x - y).abs().max().item()) for x, y in zip(a, b, strict=True) if x.numel()), default=0.0)
    finite = math.isfinite(error) and math.isfinite(scale)
    return error / (scale + 1e-12) if finite else math.inf


def far(a: list[Tensor], b: list[Tensor], exact: bool) -> bool:
    """Tell whether two gradients differ by more than rounding: 1e-8 in float64, 1e-3 below it."""
    return relative(a, b) > (1e-8 if exact else 1e-3)


def said(error: Exception) -> str:
    """The first lines of a message, in one."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


class Problem:
    """A loss, its parameters and a stack of two episodes, for one inner step of SGD."""

    def __init__(self, loss_fn: Callable[..., Tensor], params: Any, episodes: Any, lr: float = 0.1):
        self.loss_fn, self.params, self.episodes, self.lr = loss_fn, params, episodes, lr
        self.leaves = tree.leaves(params)
        self.exact = all(p.dtype == torch.float64 for p in self.leaves)
        self.slow = False

    def meta_loss(self, params: Any, order: Any = 2, **how: Any) -> Tensor:
        task_loss = maml(self.loss_fn, sgd(self.lr), 1, order=order)
        return map_tasks(task_loss, seed=0, **how)(params, self.episodes).sum()

    def gradient(self, order: Any = 2, **how: Any) -> list[Tensor]:
        with warnings.catch_warnings(record=True) as caught, torch.enable_grad():
            warnings.simplefilter("always")
            leaves = [p.detach().requires_grad_() for p in self.leaves]
            loss = self.meta_loss(tree.unflatten(tree.structure(self.params), leaves), order, **how)
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        self.slow |= any("performance drop" in str(w.message) for w in caught)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, leaves, strict=True)]

    def direction(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        draw = lambda p: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        return tree.map(draw, self.params)

    def numeric(self, v: Any, eps: float = 1e-5) -> float:
        """The slope of the meta-loss along v by central differences, in float64 only."""
        with torch.no_grad():
            step = tree.scale(v, eps)
            up = self.meta_loss(tree.add(self.params, step), how="loop")
            down = self.meta_loss(tree.sub(self.params, step), how="loop")
        return ((up - down) / (2 * eps)).item()

    def slope(self, gradient: list[Tensor], v: Any) -> float:
        return sum(((g * x).sum().item() for g, x in zip(gradient, tree.leaves(v), strict=True)), 0.0)
