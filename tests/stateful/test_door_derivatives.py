"""Meta-gradients through the door against finite differences of torch's own training, in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from door_models import MODELS, build, loss_of, train
from torch import Tensor, nn

import metaopt as mo

pytestmark = pytest.mark.usefixtures("float64")
o, STEPS = torch.optim, 3
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (o.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.2, "weight_decay": 0.1}),
    "SGD at zero": (o.SGD, {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}),
    "SGD nesterov": (o.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "maximize": True}),
    "Adam": (o.Adam, {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1}),
    "Adam maximize": (o.Adam, {"lr": 0.03, "eps": 1e-2, "maximize": True}),
    "AdamW": (o.AdamW, {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-2, "amsgrad": True}),
    "NAdam": (o.NAdam, {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-2, "momentum_decay": 0.1}),
    "RAdam": (o.RAdam, {"lr": 0.03, "betas": (0.8, 0.5), "eps": 1e-2}),
    "Adamax": (o.Adamax, {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-2}),
    "Adagrad": (o.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-2, "initial_accumulator_value": 0.1}),
    "Adadelta": (o.Adadelta, {"lr": 0.5, "rho": 0.8, "eps": 1e-2}),
    "RMSprop": (o.RMSprop, {"lr": 0.03, "alpha": 0.8, "eps": 1e-2, "momentum": 0.5, "centered": True}),
    "ASGD": (o.ASGD, {"lr": 0.1, "lambd": 0.3, "alpha": 0.5, "t0": 1e6, "weight_decay": 0.1}),
    "Rprop": (o.Rprop, {"lr": 0.01, "etas": (0.5, 1.3)}),
    "Adafactor": (o.Adafactor, {"lr": 0.03, "eps": (1e-2, 1e-2), "weight_decay": 0.1}),
    "Muon": (o.Muon, {"lr": 0.1}),
}
UNLEARNED = {"t0", "step_sizes", "ns_coefficients", "d"}  # steps and clamps without a slope, or bfloat16


def optimizer_of(cls: Any, model: nn.Module, settings: dict[str, Any]) -> torch.optim.Optimizer:
    return cls([p for p in model.parameters() if cls is not o.Muon or p.ndim == 2], **settings)


def trained_loss(cls: Any, model: nn.Module, batch: Any, settings: dict[str, Any], steps: int) -> float:
    """The query loss after torch's own training."""
    model = copy.deepcopy(model)
    train(model, optimizer_of(cls, model, settings), map(batch, range(steps)))
    return float(loss_of(model, batch(99)).detach())


def slope(f: Any, at: float) -> float:
    """df/dx by differences; to the right only at 0, below which torch takes no setting."""
    h = 1e-5 * max(abs(at), 1e-2)
    if at == 0:
        return (-3 * f(0.0) + 4 * f(h) - f(2 * h)) / (2 * h)
    return (f(at + h) - f(at - h)) / (2 * h)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "Muon"])
def test_every_continuous_hyperparameter(name: str) -> None:
    cls, settings = SETTINGS[name]
    model, batch = build("mlp")
    opt = optimizer_of(cls, model, settings)
    override = mo.stateful.get_trainable_opt_params(opt)
    with mo.stateful.innerloop_ctx(model, opt, override=override) as (fmodel, diffopt):
        for step in range(STEPS):
            diffopt.step(loss_of(fmodel, batch(step)))
        query = loss_of(fmodel, batch(99))
    checked = 0
    off = {"dampening"} if name == "SGD at zero" else set()  # torch drops it at momentum 0, with a jump
    for key in sorted(override.keys() - UNLEARNED - off):
        (value,) = override[key]
        held = opt.param_groups[0][key]
        for i, x in enumerate(value if isinstance(value, tuple) else (value,)):
            (ours,) = torch.autograd.grad(query, x, retain_graph=True, allow_unused=True)

            def f(v: float, key: str = key, i: int = i, held: Any = held) -> float:
                new = (*held[:i], v, *held[i + 1 :]) if isinstance(held, tuple) else v
                return trained_loss(cls, model, batch, settings | {key: new}, STEPS)

            theirs = slope(f, float(x.detach()))
            ours = 0.0 if ours is None else float(ours)
            assert math.isclose(ours, theirs, rel_tol=2e-4, abs_tol=2e-7), (key, i, ours, theirs)
            checked += 1
    assert checked >= 2


def directional(model: nn.Module, batch: Any, cls: Any, settings: dict[str, Any]) -> tuple[float, float]:
    """The derivative along one random direction of P[0]: through the door, and by differences."""
    opt = optimizer_of(cls, model, settings)
    with mo.stateful.innerloop_ctx(model, opt) as (fmodel, diffopt):
        for step in range(2):
            diffopt.step(loss_of(fmodel, batch(step)))
        trained = [p for p in fmodel.parameters(time=0) if p.requires_grad]
        grads = torch.autograd.grad(loss_of(fmodel, batch(99)), trained)
    directions = [torch.randn_like(p) for p in trained]
    ours = sum((g * v).sum() for g, v in zip(grads, directions, strict=True))

    def f(h: float) -> float:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, v in zip((p for p in moved.parameters() if p.requires_grad), directions, strict=True):
                p.add_(h * v)
        return trained_loss(cls, moved, batch, settings, 2)

    return float(ours), (f(1e-5) - f(-1e-5)) / 2e-5


@pytest.mark.parametrize("kind", MODELS)
def test_initial_weights_of_every_kind_of_model(kind: str) -> None:
    model, batch = build(kind)
    ours, theirs = directional(model, batch, o.SGD, {"lr": 0.3, "momentum": 0.5})
    assert math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize("name", SETTINGS)
def test_initial_weights_through_every_optimizer(name: str) -> None:
    cls, settings = SETTINGS[name]
    model, batch = build("mlp")
    ours, theirs = directional(model, batch, cls, settings)
    if name == "Muon":  # torch's iteration runs in bfloat16, which has no differences to speak of
        assert math.isfinite(ours)
        return
    assert math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-8)


@pytest.mark.parametrize(
    ("cls", "settings"), [(o.Adam, {}), (o.Adam, {"amsgrad": True}), (o.RMSprop, {"centered": True})]
)
def test_finite_where_a_gradient_is_zero(cls: Any, settings: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # every unit is dead
    x = torch.ones(3, 2)
    lr = torch.tensor(0.1, requires_grad=True)
    opt = cls(model.parameters(), **settings)
    with mo.stateful.innerloop_ctx(model, opt, override={"lr": [lr]}) as (fmodel, diffopt):
        for _ in range(3):
            diffopt.step((fmodel(x) - 1).square().mean())
        grads = torch.autograd.grad((fmodel(x) - 1).square().mean(), [lr, *fmodel.parameters(time=0)])
    assert all(g.isfinite().all() for g in grads)
    assert any(g.abs().sum() > 0 for g in grads)


def test_the_seeds_own_example() -> None:
    def meta_loss_fn(params: Any) -> Tensor:
        return sum(p.square().sum() for p in params)

    model, batch = build("mlp")
    data = [batch(step) for step in range(3)]
    loss_function = nn.functional.mse_loss
    opt = torch.optim.Adam(model.parameters(), eps=1e-2, lr=0.1)
    with mo.stateful.innerloop_ctx(model, opt) as (fmodel, diffopt):
        for xs, ys in data:
            logits = fmodel(xs)
            loss = loss_function(logits, ys)
            diffopt.step(loss)
        grad_of_grads = torch.autograd.grad(meta_loss_fn(fmodel.parameters()), fmodel.parameters(time=0))

    def trained(h: float) -> float:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved[0].weight[0, 1] += h
        inner = torch.optim.Adam(moved.parameters(), eps=1e-2, lr=0.1)
        for xs, ys in data:
            inner.zero_grad()
            loss_function(moved(xs), ys).backward()
            inner.step()
        return float(meta_loss_fn(moved.parameters()).detach())

    expected = (trained(1e-5) - trained(-1e-5)) / 2e-5
    assert math.isclose(float(grad_of_grads[0][0, 1]), expected, rel_tol=1e-6)
