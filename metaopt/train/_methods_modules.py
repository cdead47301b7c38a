"""Methods that change the network: context parameters and warp layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaopt import algorithms, optim
from metaopt.algorithms import split
from metaopt.functional import functional
from metaopt.train._config import Config
from metaopt.train._method import Learned, Method, by_gradient, leaf_of, walk
from metaopt.train._problem import Problem
from metaopt.train._rates import outer_rate, rates, row
from metaopt.types import Meta

__all__ = ["Film", "cavia", "warp", "warpgrad"]


class Film(nn.Module):
    """A Sequential whose blocks hear of a context, ``(x, context)``.

    ::

        h ← (1 + γ(c)) h + β(c)     after the norm of every convolution, feature-wise, γ and β linear in c
        x ← (x, c)                  where there is no convolution
    """

    def __init__(self, layers: nn.Sequential, context: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        norms: list[Any] = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
        self.films = nn.ModuleList(nn.Linear(context, 2 * norm.num_features, bias=False) for norm in norms)
        if not norms:
            first: Any = layers[0]
            self.layers[0] = nn.Linear(first.in_features + context, first.out_features)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        films = iter(self.films)
        if not self.films:
            x = torch.cat([x, context.expand(len(x), -1)], -1)
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                gamma, beta = next(films)(context)[:, None, None].chunk(2)
                x = (1 + gamma) * x + beta
        return x


def cavia(config: Config, problem: Problem) -> Method:
    """Only the context adapts, an input of the network; it starts at 0."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        plain = problem.module()
        module = Film(plain, config.context).to(next(plain.parameters()))
    apply, params, _ = functional(module)
    context = next(iter(params.values())).new_zeros(config.context)
    opt = optim.sgd(lr=config.inner_lr)

    def judge(params: Any, batch: Any, context: Tensor) -> tuple[Tensor, Tensor]:
        x, y = batch
        return problem.judge(apply(params, x, context), y)

    def loss_fn(params: Any, batch: Any, context: Tensor) -> Tensor:
        return judge(params, batch, context)[0]

    def hparams(learned: Learned, k: int | None = None) -> Any:
        return opt.hparams._replace(lr=row(config, learned.inner_lr, k))

    def at(learned: Learned, k: int) -> Meta:
        return Meta(torch.zeros_like(context), hparams(learned, k), (learned.params,))

    inner = algorithms.cavia(
        loss_fn,
        opt,
        context,
        config.inner_steps,
        query_loss_fn=judge,
        per_step_hparams=config.learn_lr == "step",
        order=1 if config.first_order else 2,
    )

    def task(learned: Learned, episode: Any, step: int) -> Any:
        return inner(Meta(learned.params, hparams(learned)), episode)

    return Method(
        Learned(leaf_of(params), rates(config, context)),
        by_gradient(config, task),
        Learned(config.meta_lr, outer_rate(config)),
        walk(lambda context, batch, params: loss_fn(params, batch, context), opt, at),
        lambda fast, x: apply(fast[1][0], x, fast[0]),
    )


def warp(module: nn.Sequential) -> nn.Sequential:
    """The network with a linear warp layer, the identity at first, after every layer of its own.

    Warp parameters are those whose path has ``warp`` in it.
    """
    made = nn.Sequential()
    for i, layer in enumerate(module):
        made.add_module(f"task{i}", layer)
        if isinstance(layer, nn.Conv2d):
            added: Any = nn.Conv2d(layer.out_channels, layer.out_channels, 1, bias=False)
        elif isinstance(layer, nn.Linear):
            added = nn.Linear(layer.out_features, layer.out_features, bias=False)
        else:
            continue
        nn.init.eye_(added.weight.data.view(len(added.weight), -1))
        made.add_module(f"warp{i}", added)
    return made


def warpgrad(config: Config, problem: Problem) -> Method:
    """Warp layers between those that adapt; every point of the trajectory teaches them one step."""
    module = problem.module()
    apply, params, _ = functional(warp(module).to(next(module.parameters())))
    part = split(leaf_of(params), lambda path: "warp" not in path)
    opt = optim.sgd(lr=config.inner_lr)

    def judge(theta: Any, batch: Any, omega: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        return problem.judge(apply(part.join(theta, omega), x), y)

    def loss_fn(theta: Any, batch: Any, omega: Any) -> Tensor:
        return judge(theta, batch, omega)[0]

    def at(learned: Learned, k: int = 0) -> Meta:
        return Meta(learned.params, opt.hparams._replace(lr=row(config, learned.inner_lr)), (learned.other,))

    task = algorithms.warpgrad(loss_fn, opt, config.inner_steps, query_loss_fn=judge)
    return Method(
        Learned(part.fast, rates(config, part.fast), part.slow),
        by_gradient(config, lambda learned, episode, step: task(at(learned), episode)),
        Learned(config.meta_lr, outer_rate(config), config.meta_lr),
        walk(loss_fn, opt, at),
        lambda fast, x: apply(part.join(fast[0], *fast[1]), x),
    )
