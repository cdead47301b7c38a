"""Ten steps of the rules that torch.optim lacks, against the stored values of make_reference.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo
from metaopt import tree

STORED = json.loads((Path(__file__).parent / "reference.json").read_text())["rows"]
ROWS = [pytest.param(row, id=f"{row['name']}-{i}") for i, row in enumerate(STORED)]


def waves(shape: tuple[int, ...], step: int) -> Tensor:
    index = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return torch.sin(1.7 * (step + 1) * index + 0.3 * len(shape)).reshape(shape)


def start() -> dict[str, Tensor]:
    return {k: 1.5 * waves(s, -3) for k, s in {"w": (4, 3), "b": (3,), "k": (2, 3, 2)}.items()}


def ten_steps(opt: mo.Optimizer, params: Any) -> Any:
    state = opt.init(params)
    for step in range(10):
        grads = {k: (0.3 * p.double() + waves(p.shape, step)).to(p.dtype) for k, p in params.items()}
        params, state = opt.update(params, state, grads, opt.hparams)
    return params


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("row", ROWS)
def test_equals_the_stored_reference(row: dict[str, Any], dtype: torch.dtype) -> None:
    opt = getattr(mo.optim, row["name"])(**row["options"])
    params = ten_steps(opt, tree.map(lambda p: p.to(dtype), start()))
    tol = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for name, stored in row["params"].items():
        torch.testing.assert_close(params[name], torch.tensor(stored, dtype=torch.float64).to(dtype), **tol)


@pytest.mark.parametrize("name", sorted({row["name"] for row in STORED}))
def test_maximize_is_descent_on_the_negative(name: str) -> None:
    make, params = getattr(mo.optim, name), start()
    grads = {k: waves(p.shape, 1) for k, p in params.items()}
    up, down = make(maximize=True), make()
    climbed = up.update(params, up.init(params), grads, up.hparams)[0]
    descended = down.update(params, down.init(params), tree.scale(grads, -1.0), down.hparams)[0]
    for k in params:
        torch.testing.assert_close(climbed[k], descended[k], rtol=0, atol=0)


@pytest.mark.parametrize("lr", [0.1, 1.0])
@pytest.mark.parametrize("history_size", [1, 3, 10])
def test_lbfgs_equals_torch(lr: float, history_size: int) -> None:
    params = start()
    live = {k: nn.Parameter(p.clone()) for k, p in params.items()}
    theirs = torch.optim.LBFGS(live.values(), lr=lr, max_iter=1, history_size=history_size)

    def loss(ps: dict[str, Tensor]) -> Tensor:
        return sum(((p**2 + 0.3 * p) ** 2).sum() + (p * waves(p.shape, 0)).sum() for p in ps.values())

    def closure() -> Tensor:
        theirs.zero_grad()
        value = loss(live)
        value.backward()
        return value

    opt = mo.optim.lbfgs(lr, history_size)
    state = opt.init(params)
    for _ in range(10):
        grads = torch.func.grad(loss)(params)
        params, state = opt.update(params, state, grads, opt.hparams)
        theirs.step(closure)
    for k, p in live.items():
        torch.testing.assert_close(params[k], p.detach(), rtol=1e-9, atol=1e-10)


def test_preconditioned_by_hand() -> None:
    g = torch.Generator().manual_seed(0)
    p, grad = (torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    matrices = tuple(torch.randn(n, n, generator=g, dtype=torch.float64) for n in p.shape)
    opt = mo.optim.preconditioned_sgd(0.1, {"p": matrices})
    new, _ = opt.update({"p": p}, opt.init({"p": p}), {"p": grad}, opt.hparams)
    metric = torch.einsum("ai,bj,ck,ijk->abc", *matrices, grad)
    torch.testing.assert_close(new["p"], p - 0.1 * metric, rtol=1e-12, atol=1e-12)
    live = tuple(m.clone().requires_grad_() for m in matrices)

    def step(*ms: Tensor) -> Tensor:
        return opt.update(
            {"p": p}, opt.init({"p": p}), {"p": grad}, opt.hparams._replace(preconditioner={"p": ms})
        )[0]["p"]

    assert torch.autograd.gradcheck(step, live)
    identity = opt.hparams._replace(preconditioner=mo.optim.identity_preconditioner({"p": p}))
    plain = opt.update({"p": p}, opt.init({"p": p}), {"p": grad}, identity)[0]["p"]
    torch.testing.assert_close(plain, p - 0.1 * grad)


def test_mirror_descent_stays_where_it_belongs() -> None:
    p = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], dtype=torch.float64)
    g = torch.tensor([[1.0, -2.0, 0.5], [900.0, -900.0, 0.0]], dtype=torch.float64)
    opt = mo.optim.mirror_descent(0.3, "simplex")
    new, _ = opt.update(p, opt.init(p), g, opt.hparams)
    torch.testing.assert_close(new, torch.softmax(p.log() - 0.3 * g, -1), rtol=1e-12, atol=0)
    opt = mo.optim.mirror_descent(0.3)
    new, _ = opt.update(p, opt.init(p), g / 100, opt.hparams)
    torch.testing.assert_close(new, (p.log() - 0.003 * g).exp(), rtol=1e-12, atol=0)


def test_proximal_step_minimises_its_objective() -> None:
    p, g = torch.linspace(-1, 1, 9, dtype=torch.float64), torch.linspace(2, -1, 9, dtype=torch.float64)
    opt = mo.optim.proximal_sgd(0.1, l1=0.7, l2=0.4)
    new, _ = opt.update(p, opt.init(p), g, opt.hparams)

    def objective(z: Tensor) -> Tensor:
        return (z - (p - 0.1 * g)) ** 2 / 0.2 + 0.7 * z.abs() + 0.2 * z**2

    for shift in (-1e-4, 1e-4):
        assert (objective(new) < objective(new + shift)).all()
    assert (new == 0).any()
