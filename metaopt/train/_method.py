"""An algorithm as the outer loop sees it: one record, and how most of them are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import optim, tree
from metaopt.batch import map_tasks
from metaopt.step import inner_step
from metaopt.train._config import Config
from metaopt.types import Episode, LossFn, Meta, Optimizer

__all__ = ["Gradient", "Learned", "Method", "by_gradient", "leaf_of", "walk"]

Gradient = Callable[[Any, Episode, int], tuple[Tensor, Tensor, Any]]


class Learned(NamedTuple):
    """What the outer loop learns: initial parameters, inner step sizes or ``()``, and the rest or ``()``.

    ``other`` is the algorithm's own: warp layers, curvatures, an affine layer a step, a head's scale.
    """

    params: Any
    inner_lr: Any = ()
    other: Any = ()


class Method(NamedTuple):
    """An algorithm as a value.

    Args: learned: the tree it learns, before the first step; every leaf requires grad.
          gradient: ``(learned, episodes, step) -> (losses [task], scores [task], grads like learned)``,
              the mean over these tasks of the outer gradient, or of what stands for it (Reptile).
          rates: the outer step sizes before any schedule, a prefix of ``learned``.
          adapt: ``(learned, support, num_steps) -> [fast, ...]``, one task's fast weights after 0, 1, ...
              steps; a single entry where nothing is stepped (prototypes, a closed form).
          predict: ``(fast, x) -> outputs``, logits say, of an entry of that list.
          outer: the outer optimizer.
    """

    learned: Any
    gradient: Gradient
    rates: Any
    adapt: Callable[[Any, Any, int], list[Any]]
    predict: Callable[[Any, Tensor], Tensor]
    outer: Optimizer = optim.adam()


def leaf_of(params: Any) -> Any:
    """The parameters as fresh leaves of the outer graph."""
    return tree.map(lambda p: p.detach().clone().requires_grad_(), params)


def by_gradient(config: Config, task: Callable[[Any, Any, int], tuple[Tensor, Tensor]]) -> Gradient:
    """The gradient of a method with an outer loss, ``task(learned, episode, step) -> (loss, score)``.

    ::

        ∇ mean over tasks of loss
    """
    how: Any = config.how

    def gradient(learned: Any, episodes: Episode, step: int) -> tuple[Tensor, Tensor, Any]:
        over_tasks = map_tasks(
            lambda learned, episode: task(learned, episode, step),
            how=how,
            chunk_size=config.chunk_size or None,
        )
        losses, scores = over_tasks(learned, episodes)
        leaves, structure = tree.flatten(learned)
        grads = torch.autograd.grad(losses.mean(), leaves, materialize_grads=True)
        return losses.detach(), scores.detach(), tree.unflatten(structure, grads)

    return gradient


def walk(
    loss_fn: LossFn, opt: Optimizer, at: Callable[[Any, int], Meta]
) -> Callable[[Any, Any, int], list[Any]]:
    """``adapt`` of an inner loop whose step k takes its rates and loss parameters from ``at(learned, k)``.

    An entry is (θ_k, φ_k).
    """

    def adapt(learned: Any, support: Any, num_steps: int) -> list[Any]:
        meta = at(learned, 0)
        params, state = meta.params, opt.init(meta.params)
        trail = [(params, meta.phi)]
        for k in range(num_steps):
            meta = at(learned, k)
            params, state, _ = inner_step(
                loss_fn, opt, params, state, support, meta.hparams, meta.phi, order=1
            )
            trail.append((params, at(learned, k + 1).phi))
        return trail

    return adapt
