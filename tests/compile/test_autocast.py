"""bfloat16 autocast: every way of mapping, recomputing and compiling computes what the loop computes.

The inputs are 1 + k/512, which bfloat16 rounds to 1, and the loss looks at what is beyond 1: float32 is
far away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    mo.forget_compiled()
    yield
    mo.forget_compiled()


def meta_gradient(opt: Any, low: bool = True, memory: Any = "all", **how: Any) -> list[Tensor]:
    """Losses of 4 tasks and the derivative of their sum, the backward pass outside of autocast."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(0, 2, shape, generator=g).float()
    part = lambda: (1 + draw(4, 3, 8) / 512, draw(4, 3, 2))
    episodes = mo.Episode(part(), part())
    net = nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(draw(2, 8) / 2)
    apply, params, _ = mo.functional(net)

    def loss_fn(p: Any, batch: Any) -> Tensor:
        away = apply(p, batch[0]) - p["weight"].sum(-1)
        return ((away - 0.0625 * batch[1]) * 32).square().mean()

    task_loss = mo.maml(loss_fn, opt, num_steps=2, memory=memory)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        losses = mo.map_tasks(task_loss, **how)(params, episodes)
    return [losses, *torch.autograd.grad(losses.sum(), list(params.values()))]


WAYS: dict[str, dict[str, Any]] = {
    "vmap": {"how": "vmap"},
    "chunks": {"how": "vmap", "chunk_size": 3},
    "chunks of the loop": {"how": "loop", "chunk_size": 3},
    "workers": {"how": "loop", "workers": 2},
    "sqrt": {"how": "vmap", "memory": "sqrt"},
    "one step": {"how": "loop", "memory": 1},
    "binomial": {"how": "vmap", "memory": mo.Binomial(1)},
    "compiled step": {"compile": "step"},
    "compiled whole": {"compile": "whole"},
}
# Of the largest entry. Fused kernels keep float32 where eager code rounds to bfloat16 in between.
EAGER, FUSED, FLOAT32 = 1e-3, 0.1, 0.5
RULES = {"sgd": mo.optim.sgd(lr=2.0**-9), "momentum": mo.optim.sgd(lr=2.0**-9, momentum=0.5)}


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.mark.parametrize(("way", "rule"), [(way, "momentum") for way in WAYS] + [("vmap", "sgd")])
def test_autocast_is_the_loop_under_autocast(way: str, rule: str) -> None:
    loop = meta_gradient(RULES[rule], how="loop")
    found = meta_gradient(RULES[rule], **WAYS[way])
    for a, b in zip(found, loop, strict=True):
        assert a.dtype is torch.float32
        assert distance(a, b) < (FUSED if "compiled" in way else EAGER)


def test_float32_is_elsewhere() -> None:
    low, full = (meta_gradient(RULES["momentum"], low, how="loop") for low in (True, False))
    assert distance(full[1], low[1]) > FLOAT32


@pytest.mark.parametrize("compile", [False, "step"])
def test_moments_stay_float32(compile: Any) -> None:
    net = nn.Linear(3, 1, bias=False)  # vmap adds a bias in float32
    apply, params, _ = mo.functional(net)
    opt = mo.optim.adam(lr=0.01)
    dtypes = set()

    def task(p: Any, batch: Any) -> Tensor:
        loss_fn = lambda p, batch: apply(p, batch[0]).square().mean()
        assert apply(p, batch[0]).dtype is torch.bfloat16
        out = mo.unroll(loss_fn, opt, p, batch, num_steps=2)
        kept = mo.tree.leaves((out.params, out.state.exp_avg, out.state.exp_avg_sq))
        dtypes.update(x.dtype for x in kept)
        return torch.stack([x.sum() for x in kept])

    with torch.autocast("cpu", torch.bfloat16):
        moments = mo.map_tasks(task, compile=compile)(params, (torch.ones(2, 5, 3),))
    assert moments.dtype is torch.float32
    assert dtypes == {torch.float32}


def test_aot_eager_stays_eager_and_says_so() -> None:
    """Its compiled derivative of a layer with a bias would end in torch's view error."""
    apply, params, _ = mo.functional(nn.Linear(8, 2))
    task_loss = mo.maml(lambda p, b: (apply(p, b[0]) - b[1]).square().mean(), mo.optim.sgd(0.1), 2)
    torch.manual_seed(0)
    part = lambda: (torch.randn(4, 3, 8), torch.randn(4, 3, 2))
    episodes = mo.Episode(part(), part())

    def gradient(compile: Any) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            losses = mo.map_tasks(task_loss, how="vmap", compile=compile)(params, episodes)
        return list(torch.autograd.grad(losses.sum(), list(params.values())))

    found = gradient(mo.Compile("step", "aot_eager"))
    torch.testing.assert_close(found, gradient(False))
    assert all("aot_eager, autocast" in row.reason for row in mo.compile_report())
    assert mo.compile_report()
