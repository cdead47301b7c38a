"""R2-D2: a ridge regression, solved in closed form, for a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metaopt.exact import exact

__all__ = ["RidgeHead", "r2d2", "ridge"]


class RidgeHead(NamedTuple):
    """What R2-D2 learns beside the features: log λ, and the logits' scale α and bias β."""

    log_decay: Any
    scale: Any
    bias: Any


def ridge(x: Tensor, y: Tensor, decay: Any) -> Tensor:
    """W = Xᵀ(XXᵀ + λI)⁻¹Y: ridge regression in as many unknowns as examples, [n, d], [n, k] to [d, k].

    >>> ridge(torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0]]), 1.0)
    tensor([[2.],
            [0.]])
    """
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
    return x.mT @ torch.linalg.solve(x @ x.mT + decay * eye, y)


def r2d2(
    embed_fn: Callable[[Any, Tensor], Tensor],
    way: int,
    *,
    query_loss_fn: Callable[[Tensor, Tensor], Any] = F.cross_entropy,
) -> Callable[..., Any]:
    """R2-D2: ridge regression in closed form for a head, ``((params, head), episode) -> query loss []``.

    ::

        W = Xᵀ(XXᵀ + λI)⁻¹Y,    X = f(support), Y one-hot
        logits = α f(query) W + β

    Args: embed_fn: f, ``(params, x) -> [n, d]``.
          way: classes of an episode; labels are 0 … way−1.
          query_loss_fn: ``(logits, y) -> tree``, (loss, score) say.
    Returns: a pure function for `map_tasks`; ``meta_params`` is ``(params, RidgeHead)``.
    Raises: nothing of its own.
    Cost: one forward and one backward pass, and a system of n = way·shot unknowns.
    Source: Bertinetto et al. 2019, arXiv:1805.08136, equations 4 and 6.

    >>> import metaopt as mo
    >>> task_loss = mo.r2d2(lambda scale, x: scale * x, way=2)
    >>> head = mo.algorithms.RidgeHead(torch.tensor(0.0), torch.tensor(2.0), torch.tensor(0.0))
    >>> x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    >>> task_loss((torch.tensor(1.0), head), mo.Episode((x, y), (x, y)))  # W = (−1/3, 1/3)
    tensor(0.2340)
    """

    def task_loss(meta_params: Any, episode: Any) -> Any:
        (params, head), ((x, y), (query_x, query_y)) = meta_params, episode
        with exact():
            features, query_features = embed_fn(params, x), embed_fn(params, query_x)
        target = F.one_hot(y, way).to(features.dtype)
        weight = ridge(features, target, head.log_decay.exp())
        return query_loss_fn(head.scale * query_features @ weight + head.bias, query_y)

    return task_loss
