"""Methods without an inner loop: prototypes, ridge regression and a support vector machine as heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metaopt import algorithms
from metaopt.errors import ArgumentError
from metaopt.functional import functional
from metaopt.train._config import Config
from metaopt.train._method import Learned, Method, by_gradient, leaf_of
from metaopt.train._problem import Problem
from metaopt.types import Episode

__all__ = ["metaoptnet", "protonet", "r2d2"]


def _embedding(config: Config, problem: Problem) -> tuple[Callable[..., Tensor], Any]:
    """The network without its pooling and head, ``(params, x) -> [example, feature]``."""
    if problem.score != "accuracy":
        raise ArgumentError(
            "train(algorithm)",
            "an algorithm that fits regression",
            repr(config.algorithm),
            remedy="Prototypes and such heads need classes: train omniglot, or take maml.",
        )
    layers = list(problem.module())
    apply, params, _ = functional(nn.Sequential(*layers[:-3], nn.Flatten()))
    return apply, leaf_of(params)


def _method(
    config: Config,
    problem: Problem,
    params: Any,
    other: Any,
    task: Callable[[Any, Episode, int, Any], Any],
) -> Method:
    """A method whose "fast weights" are the support set: ``task(learned, episode, way, judge)``."""
    way = config.train_way or config.way

    def predict(fast: Any, x: Tensor) -> Tensor:
        learned, support = fast
        unknown = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        logits: Tensor = task(learned, Episode(support, (x, unknown)), config.way, lambda logits, y: logits)
        return logits

    return Method(
        Learned(params, (), other),
        by_gradient(config, lambda learned, episode, step: task(learned, episode, way, problem.judge)),
        Learned(config.meta_lr, (), config.lr_lr if other != () else ()),
        lambda learned, support, num_steps: [(learned, support)],
        predict,
    )


def protonet(config: Config, problem: Problem) -> Method:
    """The nearest mean of the support's features."""
    embed, params = _embedding(config, problem)

    def task(learned: Learned, episode: Episode, way: int, judge: Any) -> Any:
        return algorithms.protonet(embed, way, query_loss_fn=judge)(learned.params, episode)

    return _method(config, problem, params, (), task)


def r2d2(config: Config, problem: Problem) -> Method:
    """Ridge regression in closed form on the support's features."""
    embed, params = _embedding(config, problem)
    like = next(iter(params.values()))
    start = [like.new_tensor(x).requires_grad_() for x in (0.0, 10.0, 0.0)]
    head = algorithms.RidgeHead(*start)

    def task(learned: Learned, episode: Episode, way: int, judge: Any) -> Any:
        return algorithms.r2d2(embed, way, query_loss_fn=judge)((learned.params, learned.other), episode)

    return _method(config, problem, params, head, task)


def metaoptnet(config: Config, problem: Problem) -> Method:
    """A support vector machine on the support's features, its dual ascended by a fixed loop."""
    embed, params = _embedding(config, problem)
    scale = next(iter(params.values())).new_tensor(1.0).requires_grad_()

    def task(learned: Learned, episode: Episode, way: int, judge: Any) -> Any:
        inner = algorithms.metaoptnet(embed, way, query_loss_fn=judge)
        return inner((learned.params, learned.other), episode)

    return _method(config, problem, params, scale, task)
