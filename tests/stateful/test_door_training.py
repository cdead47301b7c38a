"""Steps through the door are torch's own training: every kind of model, every optimizer, warm-started."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from door_models import MODELS, build, loss_of, train
from torch import nn

import metaopt as mo

pytestmark = pytest.mark.usefixtures("float64")
o = torch.optim
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda ps: o.SGD(ps, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "SGD nesterov": lambda ps: o.SGD(ps, lr=0.02, momentum=0.9, nesterov=True, maximize=True),
    "Adam": lambda ps: o.Adam(ps, lr=0.03, betas=(0.8, 0.9), weight_decay=0.1),
    "AdamW": lambda ps: o.AdamW(ps, lr=0.03, amsgrad=True),
    "NAdam": lambda ps: o.NAdam(ps, lr=0.03),
    "RAdam": lambda ps: o.RAdam(ps, lr=0.03),
    "Adamax": lambda ps: o.Adamax(ps, lr=0.03),
    "Adagrad": lambda ps: o.Adagrad(ps, lr=0.03, lr_decay=0.1),
    "Adadelta": lambda ps: o.Adadelta(ps, lr=0.3),
    "RMSprop": lambda ps: o.RMSprop(ps, lr=0.01, momentum=0.5, centered=True),
    "ASGD": lambda ps: o.ASGD(ps, lr=0.1, t0=5),
    "Rprop": lambda ps: o.Rprop(ps, lr=0.01),
    "Adafactor": lambda ps: o.Adafactor(ps, lr=0.03),
    "Muon": lambda ps: o.Muon([p for p in ps if p.ndim == 2], lr=0.03),
    "LBFGS": lambda ps: o.LBFGS(ps, lr=0.1, max_iter=1, history_size=4),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", MODELS)
def test_ten_steps_equal_training(kind: str, optimizer: str) -> None:
    model, batch = build(kind)
    opt = OPTIMIZERS[optimizer](list(model.parameters()))
    train(model, opt, map(batch, range(3)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with mo.stateful.innerloop_ctx(model, opt) as (fmodel, diffopt):
        for step in range(3, 13):
            diffopt.step(loss_of(fmodel, batch(step)))
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()), "the model was written to"
    train(model, opt, map(batch, range(3, 13)))
    tol = 1e-5 if optimizer == "Muon" else 1e-9  # Muon's iteration runs in bfloat16
    for (name, p), q in zip(model.named_parameters(), fmodel.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=tol, atol=tol, msg=lambda text, name=name: f"{name}: {text}")
    for b, q in zip(model.buffers(), fmodel.buffers(), strict=True):
        torch.testing.assert_close(q, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_goes_back_and_training_goes_on(optimizer: str) -> None:
    model, batch = build("mlp")
    own, _ = build("mlp")
    opt = OPTIMIZERS[optimizer](list(model.parameters()))
    own_opt = OPTIMIZERS[optimizer](list(own.parameters()))
    train(own, own_opt, map(batch, range(6)))
    with mo.stateful.innerloop_ctx(model, opt) as (fmodel, diffopt):
        for step in range(3):
            diffopt.step(loss_of(fmodel, batch(step)))
        if optimizer == "LBFGS":
            with pytest.raises(mo.errors.ArgumentError, match=r"state_dict\(\).*Read diffopt.state"):
                diffopt.state_dict()
            return
        opt.load_state_dict(diffopt.state_dict())
        model.load_state_dict(fmodel.state_dict())
    train(model, opt, map(batch, range(3, 6)))
    tol = 1e-5 if optimizer == "Muon" else 1e-9
    for p, q in zip(own.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=tol, atol=tol)


def test_groups_keep_their_own_settings() -> None:
    model, batch = build("mlp")
    weights = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    opt = o.Adam([{"params": biases, "lr": 0.2}, {"params": weights}], lr=0.01)
    train(model, opt, [batch(0)])
    with mo.stateful.innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(1)))
    train(model, opt, [batch(1)])
    for p, q in zip(model.parameters(), fmodel.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-12)


def test_a_loss_that_uses_some_parameters_leaves_the_others_and_their_counts() -> None:
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)]).double()
    opt = o.Adam(model.parameters(), lr=0.1)
    x = torch.ones(1, 2, dtype=torch.float64)

    def loss(m: Any, parts: tuple[int, ...]) -> torch.Tensor:
        return sum(m[i](x).square().sum() for i in parts)

    with mo.stateful.innerloop_ctx(model, opt) as (fmodel, diffopt):
        for parts in ((0,), (0, 1), (1,)):
            diffopt.step(loss(fmodel, parts))
    for parts in ((0,), (0, 1), (1,)):
        opt.zero_grad()
        loss(model, parts).backward()
        opt.step()
    for p, q in zip(model.parameters(), fmodel.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-12)


def test_sparse_adam_is_refused_by_name() -> None:
    model = nn.Linear(2, 1)
    with (
        pytest.raises(mo.errors.ArgumentError, match=r"from_torch\(optimizer\): expected .* got SparseAdam"),
        mo.stateful.innerloop_ctx(model, o.SparseAdam(model.parameters())),
    ):
        pass


def test_lbfgs_with_more_than_one_gradient_a_step_is_refused() -> None:
    model = nn.Linear(2, 1)
    with (
        pytest.raises(mo.errors.ArgumentError, match=r"expected LBFGS\(max_iter=1.*got max_iter=20"),
        mo.stateful.innerloop_ctx(model, o.LBFGS(model.parameters())),
    ):
        pass
