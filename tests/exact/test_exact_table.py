"""Module kind × norm mode × strategy × order: the meta-gradient is the loop's, and finite differences'."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from kinds import KINDS, build
from torch import Tensor

import metaopt as mo

STEPS, LR, SEED = 2, 0.3, 11
STRATEGIES: dict[str, dict[str, Any]] = {
    "loop": {"how": "loop"},
    "vmap": {"how": "vmap"},
    "chunks": {"how": "vmap", "chunk_size": 2},
    "vmap sqrt": {"how": "vmap", "memory": "sqrt"},
    "loop sqrt": {"how": "loop", "memory": "sqrt"},
}
# The gradient of the padding row is cut, as torch's: finite differences must not move it.
CUT = {"embedding padding": "layer.weight"}
# torch takes the power iteration's vectors for constants, and finite differences do not.
DETACHED = {"spectral norm", "spectral norm conv"}
# torch maps these by a slow loop, says so, and is right.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


class Problem:
    def __init__(self, name: str):
        kind = KINDS[name]
        net, self.episodes = build(kind)
        self.apply, self.params, _ = mo.functional(net, batch_norm=kind.batch_norm)

    def loss(self, params: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (self.apply(params, x) - y).square().mean()

    def meta_loss(self, params: Any, order: int = 2, memory: Any = "all", **how: Any) -> Tensor:
        task_loss = mo.maml(self.loss, mo.optim.sgd(LR), STEPS, order=order, memory=memory)
        return mo.map_tasks(task_loss, seed=SEED, **how)(params, mo.Episode(*self.episodes)).sum()

    def gradient(self, order: int, **how: Any) -> list[Tensor]:
        loss = self.meta_loss(self.params, order, **how)
        return list(torch.autograd.grad(loss, list(self.params.values())))

    def direction(self, name: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(3)
        v = {k: torch.randn(p.shape, dtype=p.dtype, generator=generator) for k, p in self.params.items()}
        if name in CUT:
            v[CUT[name]][1] = 0
        return v

    def slope(self, name: str, order: int, eps: float = 1e-5) -> float:
        """d/dε of the meta-loss along a direction, by central differences of the loop.

        First order takes the inner gradients for constants: there the query loss moves with θ' − θ fixed.
        """
        v = self.direction(name)
        with torch.no_grad():
            if order == 2:
                at = lambda e: self.meta_loss(mo.tree.add(self.params, mo.tree.scale(v, e)), how="loop")
            else:
                at = lambda e: mo.map_tasks(self.shifted(v, e), how="loop", seed=SEED)(
                    self.params, mo.Episode(*self.episodes)
                ).sum()
            return ((at(eps) - at(-eps)) / (2 * eps)).item()

    def shifted(self, v: Any, eps: float) -> Any:
        def task_loss(params: Any, episode: Any) -> Tensor:
            support, query = episode
            fast = mo.unroll(self.loss, mo.optim.sgd(LR), params, support, STEPS).params
            return self.loss(mo.tree.add(fast, mo.tree.scale(v, eps)), query)

        return task_loss


@functools.cache
def reference(name: str, order: int) -> tuple[Problem, list[Tensor]]:
    problem = Problem(name)
    return problem, problem.gradient(order, how="loop")


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", sorted(KINDS.keys() - DETACHED))
def test_the_loop_agrees_with_finite_differences(name: str, order: int) -> None:
    problem, expected = reference(name, order)
    v = problem.direction(name)
    slope = sum((g * v[k]).sum() for g, k in zip(expected, problem.params, strict=True)).item()
    assert slope == pytest.approx(problem.slope(name, order), rel=2e-6, abs=1e-7)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "loop"])
@pytest.mark.parametrize("name", KINDS)
def test_every_strategy_agrees_with_the_loop(name: str, strategy: str, order: int) -> None:
    problem, expected = reference(name, order)
    found = problem.gradient(order, **STRATEGIES[strategy])
    for path, g, e in zip(problem.params, found, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10, msg=lambda m, path=path: f"{path}: {m}")
