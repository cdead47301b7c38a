"""Inner step sizes as the outer loop learns them: none, one a leaf, a leaf and step, or an entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.train._config import Config

__all__ = ["outer_rate", "rates", "row"]


def rates(config: Config, fast: Any) -> Any:
    """The inner step sizes of ``fast`` before the first outer step; ``()`` where they are not learned."""
    rows = (config.inner_steps,) if config.learn_lr == "step" else ()

    def rate(p: Tensor) -> Tensor:
        shape = tuple(p.shape) if config.learn_lr == "element" else rows
        return torch.full(shape, config.inner_lr, dtype=p.dtype, device=p.device, requires_grad=True)

    return () if config.learn_lr == "no" else tree.map(rate, fast)


def outer_rate(config: Config) -> Any:
    """The outer step size of these step sizes, a prefix of them."""
    return () if config.learn_lr == "no" else config.lr_lr


def row(config: Config, inner_lr: Any, k: int | None = None) -> Any:
    """The step sizes of step k, or of all steps; the last ones serve for the steps beyond."""
    if config.learn_lr == "no":
        return config.inner_lr
    if config.learn_lr != "step" or k is None:
        return inner_lr
    return tree.index(inner_lr, min(k, config.inner_steps - 1))
