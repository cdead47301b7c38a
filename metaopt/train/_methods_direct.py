"""Methods that give a direction without differentiating an unrolled loop: Reptile and iMAML."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt import algorithms, optim, tree
from metaopt.batch import map_tasks
from metaopt.linsolve import cg
from metaopt.train._config import Config
from metaopt.train._method import Gradient, Learned, Method, leaf_of, walk
from metaopt.train._problem import Problem
from metaopt.types import Episode, Hypergrad, Meta

__all__ = ["imaml", "reptile"]


def _by_direction(config: Config, problem: Problem, task: Any) -> Gradient:
    """Mean over tasks of ``task(params, episode) -> (Hypergrad, adapted params)``; judged on the query."""
    how: Any = config.how

    def one(params: Any, episode: Episode) -> Any:
        found, adapted = task(params, episode)
        return found.value, problem.judge_fn(adapted, episode.query)[1], found.grad

    over_tasks = map_tasks(one, how=how, chunk_size=config.chunk_size or None)

    def gradient(learned: Learned, episodes: Episode, step: int) -> tuple[Tensor, Tensor, Any]:
        with torch.no_grad():
            losses, scores, grads = over_tasks(tree.detach(learned.params), episodes)
        return losses, scores, Learned(tree.map(lambda g: g.mean(0), grads))

    return gradient


def reptile(config: Config, problem: Problem) -> Method:
    """Steps towards the adapted weights, each inner step on its own part of the support.

    The inner loop is plain descent, as in the paper's Algorithm 1. The authors' Omniglot code has Adam with
    β₁ = 0 and carries its second moment from task to task; begun anew with every task, as a pure function
    must, it is the descent of signs.
    """
    opt, steps, shot = optim.sgd(lr=config.inner_lr), config.inner_steps, problem.train.shot
    ways = len(problem.train.sample(1, 0).support[1][0]) // shot
    task = algorithms.reptile(problem.loss_fn, opt, None)

    def parts(batch: Any) -> Any:
        """[way · shot] to [step, way · shot/steps]; all of it at every step where shot is no multiple."""
        if shot % steps:
            return tree.map(lambda x: x.expand(steps, *x.shape), batch)
        return tree.map(
            lambda x: x.unflatten(0, (ways, steps, shot // steps)).transpose(0, 1).flatten(1, 2), batch
        )

    def direction(params: Any, episode: Episode) -> tuple[Hypergrad, Any]:
        found = task(params, Episode(parts(episode.support), ()))
        return found, found.aux

    return Method(
        Learned(leaf_of(problem.params)),
        _by_direction(config, problem, direction),
        Learned(config.meta_lr),
        walk(problem.loss_fn, opt, lambda learned, k: Meta(learned.params, opt.hparams)),
        lambda fast, x: problem.apply(fast[0], x),
        outer=optim.sgd(),
    )


def imaml(config: Config, problem: Problem) -> Method:
    """The meta-gradient at the solution of a proximal problem, by conjugate gradients."""
    opt = optim.sgd(lr=config.inner_lr)
    task = algorithms.imaml(
        problem.loss_fn,
        opt,
        config.inner_steps,
        strength=config.strength,
        damping=config.damping,
        solve=cg(max_iters=config.cg_steps, tol=0.0),
    )

    def proximal(theta: Any, batch: Any, prior: Any) -> Tensor:
        distance = tree.sub(theta, prior)
        return problem.loss_fn(theta, batch) + config.strength / 2 * tree.vdot(distance, distance)

    def direction(params: Any, episode: Episode) -> tuple[Hypergrad, Any]:
        found = task(params, episode)
        return found, found.aux.params

    return Method(
        Learned(leaf_of(problem.params)),
        _by_direction(config, problem, direction),
        Learned(config.meta_lr),
        walk(proximal, opt, lambda learned, k: Meta(learned.params, opt.hparams, (learned.params,))),
        lambda fast, x: problem.apply(fast[0], x),
    )
