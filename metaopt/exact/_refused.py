"""Functions without a double backward, refused by name where they are differentiated twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from metaopt.errors import DerivativeError, VmapError
from metaopt.exact._levels import calling_module, differentiated
from metaopt.exact._random import current_draws

__all__ = ["NO_DOUBLE_BACKWARD", "NO_KEYED_FORM", "refuse", "refuse_draw"]

# function -> the way out. cdist: pytorch/pytorch#83510; embedding_bag: #86819 (no batching rule either).
NO_DOUBLE_BACKWARD: dict[Callable[..., Any], str] = {
    F.embedding_bag: "Use nn.Embedding and .sum(-2) or .mean(-2).",
    torch.embedding_bag: "Use nn.Embedding and .sum(-2) or .mean(-2).",
    torch.cdist: "Pass compute_mode='use_mm_for_euclid_dist', or write "
    "(x[:, None] - y).square().sum(-1), squared, as Prototypical Networks have it.",
    torch.pdist: "Write the pairwise differences out, and select i < j.",
    F.pdist: "Write the pairwise differences out, and select i < j.",
    F.multi_margin_loss: "Use F.cross_entropy, or write "
    "(margin - x.gather(1, y[:, None]) + x).clamp(min=0) without the true class.",
    F.multilabel_margin_loss: "Use F.multilabel_soft_margin_loss.",
    F.ctc_loss: "Take first-order gradients, order=1.",
    torch.ctc_loss: "Take first-order gradients, order=1.",
}

# Draws that have no keyed form here; under `seeded` they would depend on how tasks are mapped.
NO_KEYED_FORM = (
    torch.multinomial,
    torch.Tensor.multinomial,
    torch.poisson,
    torch.binomial,
    torch._standard_gamma,
    torch._sample_dirichlet,
    torch.Tensor.geometric_,
    torch.Tensor.cauchy_,
    torch.Tensor.log_normal_,
    torch.Tensor.random_,
)


def refuse(func: Any) -> Callable[..., Any]:
    """``func``, or the error where it is differentiated twice."""

    def run(*args: Any, **kwargs: Any) -> Any:
        euclidean = "use_mm_for_euclid_dist" in (*args, *kwargs.values())
        if euclidean or not differentiated(2, *args, *kwargs.values()):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        raise DerivativeError(
            f"inner_step({name})",
            "a function with a second derivative",
            f"{name}, for which torch has none,",
            at=calling_module() or "the loss",
            remedy=NO_DOUBLE_BACKWARD[func],
        )

    return run


def refuse_draw(func: Any) -> Callable[..., Any]:
    """``func``, or the error under `seeded`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if current_draws() is None or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        raise VmapError(
            f"seeded({name})",
            "a draw that is a function of the seed: dropout, rand, randn, bernoulli, randint, randperm",
            name,
            at=calling_module() or "the loss",
            remedy="Draw it before the map, and pass it in the batch.",
        )

    return run
