"""Prototypical networks: the nearest class mean in a learned metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from metaopt.errors import ArgumentError
from metaopt.exact import exact
from metaopt.peek import peek, readable

__all__ = ["protonet", "prototypes"]


def prototypes(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """c_k, the mean of the features of class k: [n, d] and [n] to [way, d].

    >>> import torch
    >>> prototypes(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), way=2)
    tensor([[1.],
            [5.]])
    """
    member = F.one_hot(labels, way).to(features.dtype)
    count = member.sum(0)
    if readable():
        _check_present(count)
    return member.T @ features / count[:, None]


def _check_present(count: Tensor) -> None:
    """An absent class has no mean: 0/0. ``count`` [way], and the tasks that vmap hides."""
    seen, mapped = peek(count)
    absent = (seen == 0).nonzero().tolist()
    if absent:
        k, *task = absent[0]
        of = f" of task {task[0]}" if mapped else ""
        remedy = "Sample every class, or relabel and lower way to the classes that are there."
        expected = f"an example of each of {len(seen)} classes"
        raise ArgumentError("protonet(support)", expected, f"none of class {k}{of}", remedy=remedy)


def protonet(
    embed_fn: Callable[[Any, Tensor], Tensor],
    way: int,
    *,
    query_loss_fn: Callable[[Tensor, Tensor], Any] = F.cross_entropy,
) -> Callable[..., Any]:
    """Prototypical networks: the nearest class mean, ``(params, episode) -> query loss []``.

    ::

        c_k = mean of f(x) over the support of class k
        p(y = k | x) = softmax_k(−‖f(x) − c_k‖²)

    Args: embed_fn: f, ``(params, x) -> [n, d]``.
          way: classes of an episode; labels are 0 … way−1.
          query_loss_fn: ``(logits, y) -> tree``, (loss, score) say.
    Returns: a pure function for `map_tasks`; ``episode`` is ((x, y), (x, y)).
    Raises: ArgumentError where a class has no example in the support (eager; compiled code does not look).
    Cost: one forward and one backward pass of support and query; no inner loop.
    Source: Snell et al. 2017, arXiv:1703.05175, equations 1 and 2.

    >>> import torch, metaopt as mo
    >>> task_loss = mo.protonet(lambda scale, x: scale * x, way=2)
    >>> x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    >>> task_loss(torch.tensor(1.0), mo.Episode((x, y), (x, y)))  # log(1 + e⁻⁴)
    tensor(0.0181)
    """

    def task_loss(params: Any, episode: Any) -> Any:
        (x, y), (query_x, query_y) = episode
        with exact():
            centres = prototypes(embed_fn(params, x), y, way)
            features = embed_fn(params, query_x)
        logits = -((features[:, None] - centres) ** 2).sum(-1)
        return query_loss_fn(logits, query_y)

    return task_loss
