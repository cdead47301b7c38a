"""The table of the algorithms: each with what it learns and its task function, on small float64 problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import metaopt as mo
from metaopt import Episode, Meta
from metaopt import algorithms as alg

DOUBLE = torch.float64
TASKS, WAY = 3, 3


class Case(NamedTuple):
    """``task(meta_params, episode)`` is a loss [], or a Hypergrad where ``direct``.

    ``exact``: its gradient is the derivative of its value.
    """

    name: str
    task: Callable[[Any, Any], Any]
    meta_params: Any
    episodes: Episode
    exact: bool = True
    direct: bool = False


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def network(out: int = 1) -> tuple[Any, dict[str, Tensor]]:
    """An MLP with a norm whose affine weights are fast weights: what plain vmap gets wrong."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, out)).double()
    apply, params, _ = mo.functional(module)
    return apply, {k: (p + 0.3 * draw(*p.shape, seed=len(k))).detach() for k, p in params.items()}


def regression() -> Episode:
    batches = [(draw(TASKS, 5, 2, seed=s), draw(TASKS, 5, 1, seed=s + 1)) for s in (1, 3)]
    return Episode(*batches)


def classes(shot: int) -> tuple[Tensor, Tensor]:
    y = torch.arange(WAY).repeat_interleave(shot).expand(TASKS, -1)
    return draw(TASKS, WAY * shot, 2, seed=10 + shot) + y[..., None], y


def classification() -> Episode:
    return Episode(classes(2), classes(3))


APPLY, PARAMS = network()
EMBED, FEATURES = network(3)
DESCENT = mo.optim.sgd(lr=0.2)


def loss(params: Any, batch: Any) -> Tensor:
    return ((APPLY(params, batch[0]) - batch[1]) ** 2).mean()


def loss_of_context(params: Any, batch: Any, context: Tensor) -> Tensor:
    return ((APPLY(params, batch[0] + context) - batch[1]) ** 2).mean()


def loss_of_norm(params: Any, batch: Any, norm: Any) -> Tensor:
    return loss(params | norm, batch)


def loss_of_warp(params: Any, batch: Any, warp: Tensor) -> Tensor:
    return ((APPLY(params, batch[0] @ warp) - batch[1]) ** 2).mean()


def is_head(path: str) -> bool:
    return path.startswith("['3.")


def plus_plus() -> Case:
    norm = {k: p for k, p in PARAMS.items() if k.startswith("1.")}
    rest = {k: p for k, p in PARAMS.items() if k not in norm}
    meta = alg.maml_plus_plus_init(rest, 2, 0.2, norm)
    task = mo.maml_plus_plus(loss_of_norm, 2)
    weights = alg.multi_step_weights(2, 0.3)
    return Case("maml_plus_plus", lambda meta, episode: task(meta, episode, weights), meta, regression())


WARP = (torch.eye(2, dtype=DOUBLE) + 0.1,)
HEAD = alg.RidgeHead(*(torch.tensor(x, dtype=DOUBLE) for x in (0.2, 2.0, 0.1)))

CASES = [
    Case("maml", mo.maml(loss, DESCENT, 2), PARAMS, regression()),
    Case("fomaml", mo.fomaml(loss, DESCENT, 2), PARAMS, regression(), exact=False),
    Case("reptile", mo.reptile(loss, DESCENT, 2), PARAMS, regression(), exact=False, direct=True),
    Case("anil", mo.anil(loss, DESCENT, 2, head=is_head), PARAMS, regression()),
    Case("boil", mo.boil(loss, DESCENT, 2, head=is_head), PARAMS, regression()),
    Case("imaml", mo.imaml(loss, DESCENT, 30), PARAMS, regression(), exact=False, direct=True),
    Case("meta_sgd", mo.meta_sgd(loss, 2), alg.meta_sgd_init(PARAMS, 0.2), regression()),
    Case("meta_curvature", mo.meta_curvature(loss, 2), alg.meta_curvature_init(PARAMS, 0.2), regression()),
    plus_plus(),
    Case("cavia", mo.cavia(loss_of_context, DESCENT, draw(2), 2), PARAMS, regression()),
    Case("warpgrad", mo.warpgrad(loss_of_warp, DESCENT, 1), Meta(PARAMS, None, WARP), regression()),
    Case("protonet", mo.protonet(EMBED, WAY), FEATURES, classification()),
    Case("r2d2", mo.r2d2(EMBED, WAY), (FEATURES, HEAD), classification()),
    Case(
        "metaoptnet",
        mo.metaoptnet(EMBED, WAY, num_iters=15),
        (FEATURES, torch.tensor(2.0, dtype=DOUBLE)),
        classification(),
    ),
]
ELSEWHERE = {"gimli"}  # a training step and no function of a task: test_gimli.py


def gradient(case: Case, how: Any, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The mean outer value and gradient over the tasks, leaf by leaf."""
    over_tasks = mo.map_tasks(case.task, how=how, **options)
    if case.direct:
        found = over_tasks(case.meta_params, case.episodes)
        return found.value.mean(), [g.mean(0) for g in mo.tree.leaves(found.grad)]
    leaves, structure = mo.tree.flatten(case.meta_params)
    index = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    for i in index:
        leaves[i] = leaves[i].clone().requires_grad_()
    value = over_tasks(mo.tree.unflatten(structure, leaves), case.episodes).mean()
    return value.detach(), list(torch.autograd.grad(value, [leaves[i] for i in index]))
