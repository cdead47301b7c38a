"""The first law: every way of mapping, chunking and remembering gives the loop's meta-gradient."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metaopt as mo

F64 = torch.float64
TASKS = 3


def layer_norm_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 6),
        nn.LayerNorm(6),
        nn.Tanh(),
        nn.Linear(6, 5),
        nn.LayerNorm(5),
        nn.Tanh(),
        nn.Linear(5, 1),
    )


def omniglot_conv() -> nn.Module:
    """The 4-conv net of the Omniglot experiments, narrow, with max pooling."""
    layers: list[nn.Module] = []
    for i in range(4):
        conv = nn.Conv2d(6 if i else 1, 6, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 5))


class Case(NamedTuple):
    name: str
    module: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch: Callable[[], tuple[Tensor, Tensor]]
    steps: int


CASES = [
    Case(
        "layer_norm_mlp",
        layer_norm_mlp,
        F.mse_loss,
        lambda: (torch.randn(TASKS, 6, 3, dtype=F64), torch.randn(TASKS, 6, 1, dtype=F64)),
        3,
    ),
    Case(
        "batch_norm_conv4",
        omniglot_conv,
        F.cross_entropy,
        lambda: (torch.rand(TASKS, 5, 1, 28, 28, dtype=F64), torch.arange(5).expand(TASKS, 5)),
        3,
    ),
]


class Setup(NamedTuple):
    loss_fn: Any
    params: dict[str, Tensor]
    episodes: mo.Episode
    steps: int

    def meta_loss(self, params: Any, how: Any, chunk_size: int | None = None, **options: Any) -> Tensor:
        task = mo.maml(self.loss_fn, mo.optim.sgd(lr=0.1), self.steps, **options)
        return mo.map_tasks(task, how=how, chunk_size=chunk_size)(params, self.episodes).mean()

    def gradient(self, how: Any, chunk_size: int | None = None, **options: Any) -> list[Tensor]:
        loss = self.meta_loss(self.params, how, chunk_size, **options)
        return list(torch.autograd.grad(loss, list(self.params.values())))


def set_up(case: Case) -> Setup:
    apply, params, _ = mo.functional(case.module().double())
    params = {k: (p + 0.3 * torch.randn_like(p)).detach().requires_grad_() for k, p in params.items()}
    episodes = mo.Episode(case.batch(), case.batch())
    return Setup(lambda p, b: case.loss(apply(p, b[0]), b[1]), params, episodes, case.steps)


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference, in units of the largest entry."""
    top = max(float(y.abs().max()) for y in b)
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) / top


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_strategy_equals_the_loop(case: Case) -> None:
    setup = set_up(case)
    reference = setup.gradient("loop")
    for how, chunk_size, memory in product(("loop", "vmap"), (None, 2), ("all", "sqrt", 1)):
        got = setup.gradient(how, chunk_size, memory=memory)
        assert distance(got, reference) < 1e-10, (how, chunk_size, memory)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("how", ["loop", "vmap"])
def test_meta_gradient_equals_finite_differences(case: Case, how: str) -> None:
    setup = set_up(case)
    direction = [torch.randn_like(p) for p in setup.params.values()]

    def along(h: float) -> float:
        moved = {k: p.detach() + h * d for (k, p), d in zip(setup.params.items(), direction, strict=True)}
        return float(setup.meta_loss(moved, how).detach())

    h = 1e-7  # small enough that no ReLU or max-pool changes its mind on the way
    numeric = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    exact = float(sum((g * d).sum() for g, d in zip(setup.gradient(how), direction, strict=True)))
    assert exact == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_backward_over_vmap_fills_grad(case: Case) -> None:
    setup = set_up(case)
    setup.meta_loss(setup.params, "vmap").backward()
    got = [p.grad for p in setup.params.values() if p.grad is not None]
    assert distance(got, setup.gradient("loop")) < 1e-10


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_first_order_equals_the_loop_and_is_not_second_order(case: Case) -> None:
    setup = set_up(case)
    first = setup.gradient("loop", order=1)
    assert distance(setup.gradient("vmap", order=1), first) < 1e-10
    assert distance(setup.gradient("loop"), first) > 1e-3


def test_plain_vmap_over_torchs_layer_norm_is_wrong() -> None:
    """The reason for metaopt.exact; the day this fails, pytorch/functorch#534 is mended."""
    module = layer_norm_mlp().double()
    params = {
        k: (p + 0.3 * torch.randn_like(p)).detach().requires_grad_() for k, p in module.named_parameters()
    }
    support, query = CASES[0].batch(), CASES[0].batch()

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(torch.func.functional_call(module, p, (x,)), y)

    def task(xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        grads = torch.func.grad(loss)(params, xs, ys)
        return loss({k: p - 0.1 * grads[k] for k, p in params.items()}, xq, yq)

    leaves = list(params.values())
    mapped = torch.autograd.grad(torch.vmap(task)(*support, *query).mean(), leaves)
    rows = [task(*(z[i] for z in (*support, *query))) for i in range(TASKS)]
    looped = torch.autograd.grad(torch.stack(rows).mean(), leaves)
    assert distance(list(mapped), list(looped)) > 1e-4
