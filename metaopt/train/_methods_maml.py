"""MAML and its variants, as the outer loop sees them: gradients through an inner loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metaopt import algorithms, optim, tree
from metaopt.algorithms import split
from metaopt.train._config import Config
from metaopt.train._method import Learned, Method, by_gradient, leaf_of, walk
from metaopt.train._problem import Problem
from metaopt.train._rates import outer_rate, rates, row
from metaopt.types import Meta

__all__ = ["anil", "boil", "maml", "maml_plus_plus", "meta_curvature"]


def maml(config: Config, problem: Problem) -> Method:
    """MAML, first-order MAML and Meta-SGD: these differ in ``first_order`` and in ``learn_lr``."""
    opt = optim.sgd(lr=config.inner_lr)

    def at(learned: Learned, k: int | None = None) -> Meta:
        return Meta(learned.params, opt.hparams._replace(lr=row(config, learned.inner_lr, k)))

    task = algorithms.maml(
        problem.loss_fn,
        opt,
        config.inner_steps,
        query_loss_fn=problem.judge_fn,
        per_step_hparams=config.learn_lr == "step",
        order=1 if config.first_order else 2,
    )
    params = leaf_of(problem.params)
    return Method(
        Learned(params, rates(config, params)),
        by_gradient(config, lambda learned, episode, step: task(at(learned), episode)),
        Learned(config.meta_lr, outer_rate(config)),
        walk(problem.loss_fn, opt, at),
        lambda fast, x: problem.apply(fast[0], x),
    )


def _partial(config: Config, problem: Problem, algorithm: Any, adapts_head: bool) -> Method:
    opt, head = optim.sgd(lr=config.inner_lr), _head(problem.params)
    part = split(problem.params, lambda path: head(path) == adapts_head)

    def at(learned: Learned, k: int | None = None) -> Meta:
        return Meta(learned.params, opt.hparams._replace(lr=row(config, learned.inner_lr, k)))

    def at_part(learned: Learned, k: int) -> Meta:
        fast, slow, _ = split(learned.params, lambda path: head(path) == adapts_head)
        return Meta(fast, at(learned, k).hparams, (slow,))

    task = algorithm(
        problem.loss_fn,
        opt,
        config.inner_steps,
        head=head,
        query_loss_fn=problem.judge_fn,
        per_step_hparams=config.learn_lr == "step",
        order=1 if config.first_order else 2,
    )
    return Method(
        Learned(leaf_of(problem.params), rates(config, part.fast)),
        by_gradient(config, lambda learned, episode, step: task(at(learned), episode)),
        Learned(config.meta_lr, outer_rate(config)),
        walk(lambda fast, batch, slow: problem.loss_fn(part.join(fast, slow), batch), opt, at_part),
        lambda fast, x: problem.apply(part.join(fast[0], *fast[1]), x),
    )


def _head(params: Any) -> Any:
    """Whether a path is of the last layer."""
    last = list(params)[-1].rpartition(".")[0]
    return lambda path: path.startswith(f"['{last}.")


def anil(config: Config, problem: Problem) -> Method:
    """The inner loop moves the last layer alone."""
    return _partial(config, problem, algorithms.anil, True)


def boil(config: Config, problem: Problem) -> Method:
    """The inner loop moves all but the last layer."""
    return _partial(config, problem, algorithms.boil, False)


def meta_curvature(config: Config, problem: Problem) -> Method:
    """A learned matrix for every axis of every leaf transforms the inner gradient."""
    opt = optim.preconditioned_sgd(lr=config.inner_lr)
    start = algorithms.meta_curvature_init(leaf_of(problem.params))

    def at(learned: Learned, k: int = 0) -> Meta:
        lr = row(config, learned.inner_lr)
        return Meta(learned.params, opt.hparams._replace(lr=lr, preconditioner=learned.other))

    task = algorithms.meta_curvature(
        problem.loss_fn,
        config.inner_steps,
        query_loss_fn=problem.judge_fn,
        order=1 if config.first_order else 2,
    )
    return Method(
        Learned(start.params, rates(config, start.params), leaf_of(start.hparams.preconditioner)),
        by_gradient(config, lambda learned, episode, step: task(at(learned), episode)),
        Learned(config.meta_lr, outer_rate(config), config.lr_lr),
        walk(problem.loss_fn, opt, at),
        lambda fast, x: problem.apply(fast[0], x),
    )


def maml_plus_plus(config: Config, problem: Problem) -> Method:
    """Rates a leaf and step, a loss a step, an affine layer a step; first order at first.

    The weights of the losses are annealed over the first 15 % of training, and the inner gradients are
    constants for as long, if training is to be second order at all.
    """
    steps = config.inner_steps
    norms = [name for name, layer in problem.module().named_modules() if isinstance(layer, nn.BatchNorm2d)]

    def is_theta(path: str) -> bool:
        return not any(path.startswith(f"['{name}.") for name in norms)

    part = split(leaf_of(problem.params), is_theta)
    start = algorithms.maml_plus_plus_init(part.fast, steps, config.inner_lr, part.slow)

    def loss_fn(theta: Any, batch: Any, psi: Any) -> Tensor:
        return problem.loss_fn(part.join(theta, psi), batch)

    def judge(theta: Any, batch: Any, psi: Any) -> tuple[Tensor, Tensor]:
        return problem.judge_fn(part.join(theta, psi), batch)

    tasks = [algorithms.maml_plus_plus(loss_fn, steps, query_loss_fn=judge, order=o) for o in (1, 2)]
    opt = optim.sgd()

    def task(learned: Learned, episode: Any, step: int) -> Any:
        progress = step / (0.15 * config.iterations)
        weights = algorithms.multi_step_weights(steps, progress)
        meta = Meta(learned.params, opt.hparams._replace(lr=learned.inner_lr), (learned.other,))
        return tasks[progress >= 1 and not config.first_order](meta, episode, weights)

    def at(learned: Learned, k: int) -> Meta:
        hparams = opt.hparams._replace(lr=tree.index(learned.inner_lr, min(k, steps - 1)))
        return Meta(learned.params, hparams, (tree.index(learned.other, min(k, steps)),))

    return Method(
        Learned(start.params, leaf_of(start.hparams.lr), leaf_of(start.phi[0])),
        by_gradient(config, task),
        Learned(config.meta_lr, config.lr_lr, config.meta_lr),
        walk(loss_fn, opt, at),
        lambda fast, x: problem.apply(part.join(fast[0], *fast[1]), x),
    )
