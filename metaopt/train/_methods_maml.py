"""The gradient-based initialisations as the outer loop sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt import algorithms, optim, tree
from metaopt.step import inner_step
from metaopt.train._config import Config
from metaopt.train._method import Learned, Method, by_gradient, leaf_of
from metaopt.train._problem import Problem
from metaopt.types import Meta, Optimizer

__all__ = ["maml"]


def inner_optimizer(config: Config) -> Optimizer:
    """Plain gradient descent, as in MAML."""
    return optim.sgd(lr=config.inner_lr)


def rates_of(config: Config, params: Any) -> Any:
    """Inner step sizes to be learned: none, one a leaf, or one a leaf and step."""
    rows = (config.inner_steps,) if config.learn_lr == "step" else ()

    def rate(p: Tensor) -> Tensor:
        return torch.full(rows, config.inner_lr, dtype=p.dtype, device=p.device, requires_grad=True)

    return () if config.learn_lr == "no" else tree.map(rate, params)


def as_meta(config: Config, learned: Learned) -> Meta:
    """Parameters and hyperparameters as the inner loop takes them."""
    hparams = inner_optimizer(config).hparams
    if config.learn_lr != "no":
        hparams = hparams._replace(lr=learned.inner_lr)
    return Meta(learned.params, hparams)


def maml(config: Config, problem: Problem) -> Method:
    """Model-agnostic meta-learning, with inner step sizes learned per leaf unless told otherwise."""
    opt = inner_optimizer(config)
    task = algorithms.maml(
        problem.loss_fn,
        opt,
        config.inner_steps,
        query_loss_fn=problem.judge_fn,
        per_step_hparams=config.learn_lr == "step",
        order=1 if config.first_order else 2,
    )

    def adapt(learned: Learned, support: Any, num_steps: int) -> list[Any]:
        meta = as_meta(config, learned)
        params, state = meta.params, opt.init(meta.params)
        trail = [params]
        for k in range(num_steps):
            hparams = meta.hparams
            if config.learn_lr == "step":  # the last row serves for the steps beyond
                row = min(k, config.inner_steps - 1)
                hparams = hparams._replace(lr=tree.index(hparams.lr, row))
            params, state, _ = inner_step(problem.loss_fn, opt, params, state, support, hparams, order=1)
            trail.append(params)
        return trail

    params = leaf_of(problem.params)
    return Method(
        Learned(params, rates_of(config, params)),
        by_gradient(config, lambda learned, episode, step: task(as_meta(config, learned), episode)),
        Learned(config.meta_lr, config.lr_lr if config.learn_lr != "no" else ()),
        adapt,
        problem.apply,
    )
