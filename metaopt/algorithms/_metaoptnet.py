"""MetaOptNet: a multi-class support vector machine for a head, its dual ascended by a fixed loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metaopt.errors import ArgumentError
from metaopt.exact import exact

__all__ = ["metaoptnet", "svm_dual"]


def _project(v: Tensor, total: float) -> Tensor:
    """The nearest point of {b >= 0, Σ_k b_k = total}, row by row."""
    ordered = v.sort(-1, descending=True).values
    count = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype, device=v.device)
    shifts = (ordered.cumsum(-1) - total) / count
    inside = (ordered > shifts).sum(-1, keepdim=True)
    return (v - shifts.gather(-1, inside - 1)).clamp_min(0)


def svm_dual(x: Tensor, target: Tensor, reg: float = 0.1, num_iters: int = 30) -> Tensor:
    """The dual variables of Crammer and Singer's machine, [n, d] and one-hot [n, k] to [n, k].

    ::

        max_a  −½ ‖Xᵀa‖² − ½ ‖a‖² + ⟨a, Y⟩    where  a ≤ C·Y,  Σ_k a = 0

    Projected gradient with Nesterov's momentum, of step 1/tr(XXᵀ + I); every iteration is differentiable.
    The ½ ‖a‖² is the authors': it makes the solution unique.

    >>> x, target = torch.tensor([[-1.0], [1.0]]), torch.eye(2)
    >>> svm_dual(x, target, reg=0.1)
    tensor([[ 0.1000, -0.1000],
            [-0.1000,  0.1000]])
    """
    kernel = x @ x.mT + torch.eye(len(x), dtype=x.dtype, device=x.device)
    step = 1 / kernel.diagonal().sum()  # the trace is at least the largest eigenvalue
    bound = reg * target
    a = ahead = torch.zeros_like(target)
    for i in range(num_iters):
        ascent = ahead + step * (target - kernel @ ahead)
        new = bound - _project(bound - ascent, reg)
        ahead = new + i / (i + 3) * (new - a)
        a = new
    return a


def metaoptnet(
    embed_fn: Callable[[Any, Tensor], Tensor],
    way: int,
    *,
    reg: float = 0.1,
    num_iters: int = 30,
    query_loss_fn: Callable[[Tensor, Tensor], Any] = F.cross_entropy,
) -> Callable[..., Any]:
    """MetaOptNet: a support vector machine for a head, ``((params, scale), episode) -> query loss []``.

    ::

        a = svm_dual(X, Y),    X = f(support), Y one-hot
        logits = γ f(query) Xᵀ a

    Args: embed_fn: f, ``(params, x) -> [n, d]``.
          way: classes of an episode; labels are 0 … way−1.
          reg: C > 0.
          num_iters: of the dual ascent.
          query_loss_fn: ``(logits, y) -> tree``, (loss, score) say.
    Returns: a pure function for `map_tasks`; ``meta_params`` is ``(params, scale γ)``.
    Raises: ArgumentError if reg is not positive.
    Cost: one forward and one backward pass, and num_iters products with a kernel of n = way·shot rows.
    Source: Lee et al. 2019, arXiv:1904.03758, equations 4, 6 and 12.

    >>> import metaopt as mo
    >>> task_loss = mo.metaoptnet(lambda scale, x: scale * x, way=2)
    >>> x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    >>> task_loss((torch.tensor(1.0), torch.tensor(5.0)), mo.Episode((x, y), (x, y)))  # log(1 + e⁻²)
    tensor(0.1269)
    """

    if not reg > 0:
        raise ArgumentError("metaoptnet(reg)", "a number > 0", repr(reg))

    def task_loss(meta_params: Any, episode: Any) -> Any:
        (params, scale), ((x, y), (query_x, query_y)) = meta_params, episode
        with exact():
            features, query_features = embed_fn(params, x), embed_fn(params, query_x)
        dual = svm_dual(features, F.one_hot(y, way).to(features.dtype), reg, num_iters)
        return query_loss_fn(scale * query_features @ (features.mT @ dual), query_y)

    return task_loss
