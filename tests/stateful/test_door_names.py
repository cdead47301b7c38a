"""The names that scripts written for `higher` use, and what they mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from door_models import MODELS, build, loss_of, train
from torch import Tensor, nn

import metaopt as mo
from metaopt import stateful as higher
from metaopt.errors import ArgumentError

grad = torch.autograd.grad


def make() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model, batch = build("mlp")
    return model, torch.optim.SGD(model.parameters(), lr=0.1), batch


def test_parameters_in_time() -> None:
    model, opt, batch = make()
    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        seen = [list(fmodel.parameters())]
        for step in range(3):
            returned = diffopt.step(loss_of(fmodel, batch(step)))
            seen.append(list(fmodel.parameters()))
            assert all(p is q for p, q in zip(returned, seen[-1], strict=True))
        for time, expected in enumerate(seen):
            for at in (time, time - 4):
                assert all(p is q for p, q in zip(fmodel.parameters(time=at), expected, strict=True))
        assert fmodel.fast_params is fmodel.fast_params
        assert all(p is q for p, q in zip(fmodel.init_fast_params, seen[0], strict=True))
        names = [name for name, _ in model.named_parameters()]
        assert [name for name, _ in fmodel.named_parameters()] == names
        assert [p for _, p in fmodel.named_parameters(time=0)] == seen[0]
        with pytest.raises(ArgumentError, match=r"parameters\(time\): expected 0, or from 0 to 3, got 4"):
            fmodel.parameters(time=4)


def test_fast_params_set_appends() -> None:
    model, _, _ = make()
    fmodel = higher.monkeypatch(model)
    fmodel.fast_params = [2 * p for p in fmodel.parameters()]
    fmodel.update_params([3 * p for p in fmodel.parameters()])
    (g,) = grad(fmodel[0].weight.sum(), next(fmodel.parameters(time=0)))
    assert torch.equal(g, torch.full_like(g, 6.0))
    with pytest.raises(ArgumentError, match=r"fmodel.update_params\(params\): expected 4 tensors, got 1"):
        fmodel.fast_params = [torch.ones(1)]


@pytest.mark.parametrize("copied", [True, False])
def test_copy_initial_weights(copied: bool) -> None:
    model, opt, batch = make()
    with higher.innerloop_ctx(model, opt, copy_initial_weights=copied) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
        loss_of(fmodel, batch(1)).backward(retain_graph=True)
        at_zero = grad(loss_of(fmodel, batch(1)), fmodel.parameters(time=0))
        assert all(p.is_leaf == copied for p in fmodel.parameters(time=0))
    for p, g in zip(model.parameters(), at_zero, strict=True):
        assert (p.grad is None) if copied else torch.equal(p.grad, g)


def test_no_tracking_keeps_the_latest_alone_and_freezes_what_was_frozen() -> None:
    model, batch = build("frozen")
    opt = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    own, _ = build("frozen")
    own_opt = torch.optim.Adam(own.parameters(), lr=0.1, weight_decay=0.1)
    train(own, own_opt, map(batch, range(3)))
    with higher.innerloop_ctx(model, opt, track_higher_grads=False) as (fmodel, diffopt):
        for step in range(3):
            diffopt.step(loss_of(fmodel, batch(step)))
        latest = list(fmodel.parameters())
        assert all(p is q for p, q in zip(fmodel.parameters(time=0), latest, strict=True))
        with pytest.raises(ArgumentError, match=r"init_fast_params: expected track_higher_grads=True"):
            _ = fmodel.init_fast_params
        with pytest.raises(ArgumentError, match=r"expected None, 0 or -1, got 1"):
            fmodel.parameters(time=1)
    for p, q in zip(latest, own.parameters(), strict=True):
        assert p.is_leaf
        assert p.requires_grad == q.requires_grad
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-9)


def test_override_forms_and_their_errors() -> None:
    model, _, batch = make()
    first, *rest = model.parameters()
    groups = [{"params": [first]}, {"params": rest, "lr": 0.5}]
    opt = torch.optim.Adam(groups, lr=0.1)
    betas = [(torch.tensor(0.9, requires_grad=True), torch.tensor(0.99, requires_grad=True)), (0.8, 0.9)]
    lr = torch.tensor([0.3], requires_grad=True)  # one entry, as many scripts have it
    with higher.innerloop_ctx(model, opt, override={"lr": [lr], "betas": betas}) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
        diffopt.step(loss_of(fmodel, batch(1)), override={"weight_decay": 0.5, "eps_root": 1e-8})
        diffopt.step(loss_of(fmodel, batch(2)))
        assert [h.weight_decay for h in diffopt.hparams] == [0.5, 0.5]  # it persists
        assert [h.beta1 for h in diffopt.hparams] == [betas[0][0], 0.8]
        found = grad(loss_of(fmodel, batch(3)), [lr, *betas[0]])
        assert all(g.abs() > 0 for g in found)
        with pytest.raises(
            ArgumentError, match=r"step\(override\): expected one of .*'lr'.* got 'learning_rate'"
        ):
            diffopt.step(loss_of(fmodel, batch(3)), override={"learning_rate": [0.1]})
        with pytest.raises(ValueError, match=r"expected 1 value, or one for each of 2 groups, got 3 at 'lr'"):
            diffopt.step(loss_of(fmodel, batch(3)), override={"lr": [0.1, 0.2, 0.3]})
    assert opt.param_groups[1]["lr"] == 0.5


def test_a_rate_for_every_parameter() -> None:
    model, opt, batch = make()
    rates = [torch.full_like(p, 0.1, requires_grad=True) for p in model.parameters()]
    with higher.innerloop_ctx(model, opt, override={"lr": [rates]}) as (fmodel, diffopt):
        loss = loss_of(fmodel, batch(0))
        slopes = grad(loss, fmodel.parameters(), retain_graph=True)
        new = diffopt.step(loss)
    for rate, g, p in zip(rates, slopes, new, strict=True):
        torch.testing.assert_close(grad(p.sum(), rate)[0], -g)


def test_settings_written_between_steps_count() -> None:
    model, opt, batch = make()
    own, own_opt, _ = make()
    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        for step, (lr, momentum) in enumerate([(0.1, 0.0), (0.3, 0.9), (0.2, 0.9)]):
            for groups in (diffopt.param_groups, own_opt.param_groups):
                groups[0].update(lr=lr, momentum=momentum)
            diffopt.step(loss_of(fmodel, batch(step)))
            train(own, own_opt, [batch(step)])
    for p, q in zip(fmodel.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_grad_callback_sees_every_parameter_and_none_for_unused() -> None:
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    opt = torch.optim.SGD(model.parameters(), lr=1.0)
    seen: list[Any] = []

    def halve(grads: Any) -> list[Tensor | None]:
        seen.append(grads)
        return [None if g is None else g / 2 for g in grads]

    def double(grads: Any) -> list[Tensor | None]:
        return [None if g is None else g * 2 for g in grads]

    with higher.innerloop_ctx(model, opt, grad_callback=halve) as (fmodel, diffopt):
        p0 = list(fmodel.parameters())
        p1 = diffopt.step(fmodel[1](torch.ones(1, 2)).sum())
        p2 = diffopt.step(fmodel[1](torch.ones(1, 2)).sum(), grad_callback=double)
    assert isinstance(seen[0], tuple)
    assert [g is None for g in seen[0]] == [True, True, False, False]
    torch.testing.assert_close(p1[2], p0[2] - 0.5)
    torch.testing.assert_close(p2[2], p1[2] - 2.0)
    assert p2[0] is p0[0]


def test_diff_optim_without_an_fmodel() -> None:
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    diffopt = higher.create_diff_optim(torch.optim.SGD, {"lr": 0.25}, params=[p])
    (q,) = diffopt.step((p**2).sum(), params=[p])
    torch.testing.assert_close(q, p / 2)
    with pytest.raises(ArgumentError, match=r"step\(params\): expected the fast weights, got none"):
        diffopt.step((p**2).sum())
    with pytest.raises(ArgumentError, match=r"create_diff_optim\(params\): expected params or an fmodel"):
        higher.create_diff_optim(torch.optim.SGD, {"lr": 0.25})
    grouped = higher.create_diff_optim(
        torch.optim.SGD, {"lr": 0.5}, params=[{"params": [p]}, {"params": [p[:1]], "lr": 0.1}]
    )
    assert [h.lr for h in grouped.hparams] == [0.5, 0.1]


def test_create_diff_optim_over_an_fmodel() -> None:
    model, _, batch = make()
    fmodel = higher.monkeypatch(model)
    diffopt = higher.create_diff_optim(torch.optim.Adam, {"lr": 0.1}, fmodel=fmodel)
    before = [p.clone() for p in fmodel.parameters()]
    diffopt.step(loss_of(fmodel, batch(0)))
    assert not any(torch.equal(p, q) for p, q in zip(before, fmodel.parameters(), strict=True))


def test_make_functional_takes_its_parameters() -> None:
    model, _, batch = make()
    stateless = higher.make_functional(model)
    x, _ = batch(0)
    zeros = [torch.zeros_like(p) for p in model.parameters()]
    assert torch.equal(stateless(x, params=model.parameters()), model(x))
    assert not stateless(x, params=zeros).any()
    assert not stateless(x, params=dict(zip(dict(model.named_parameters()), zeros, strict=True))).any()
    with pytest.raises(ArgumentError, match=r"expected fast weights, got a stateless model"):
        higher.make_functional(model)(x)
    with pytest.raises(ArgumentError, match=r"fmodel\(params\): expected 4 tensors, got 1 entries"):
        stateless(x, params=zeros[:1])
    with pytest.raises(ArgumentError, match=r"expected the 4 parameters by name, got none at '0.weight'"):
        stateless(x, params={"0.bias": zeros[1], "2.weight": zeros[2], "2.bias": zeros[3]})


def test_params_of_a_call_are_remembered_as_the_fast_weights() -> None:
    model, _, batch = make()
    fmodel = higher.monkeypatch(model)
    weights = list(fmodel.parameters())
    for step in range(3):  # by hand, without a diffopt
        loss = (fmodel(batch(step)[0], params=weights) - batch(step)[1]).square().mean()
        slopes = grad(loss, weights, create_graph=True)
        weights = [w - 0.1 * g for w, g in zip(weights, slopes, strict=True)]
    meta = (fmodel(batch(9)[0], params=weights) - batch(9)[1]).square().mean()
    assert all(g.abs().sum() > 0 for g in grad(meta, fmodel.parameters(time=0)))


def test_trainable_hyperparameters_there_and_back() -> None:
    model, _, _ = make()
    first, *rest = model.parameters()
    opt = torch.optim.Adam([{"params": [first], "lr": 0.5}, {"params": rest}], lr=0.1)
    override = higher.get_trainable_opt_params(opt)
    assert sorted(override) == ["betas", "eps", "lr", "weight_decay"]
    assert all(isinstance(b, Tensor) and b.requires_grad for pair in override["betas"] for b in pair)
    other = torch.optim.Adam([{"params": [first], "lr": 9.0}, {"params": rest}], lr=9.0, betas=(0.1, 0.2))
    with torch.no_grad():
        override["lr"][1] += 0.5
    higher.apply_trainable_opt_params(other, override)
    for group, lr in zip(other.param_groups, (0.5, 0.6), strict=True):
        assert type(group["lr"]) is float
        assert group["lr"] == pytest.approx(lr)
        assert group["betas"] == pytest.approx((0.9, 0.999))
        assert type(group["betas"]) is tuple
    with pytest.raises(
        ArgumentError, match=r"apply_trainable_opt_params\(override\): expected one of .*'nope'"
    ):
        higher.apply_trainable_opt_params(other, {"nope": [1.0]})
    with pytest.raises(ArgumentError, match=r"expected 1 value, or one for each of 2 groups, got 3"):
        higher.apply_trainable_opt_params(other, {"lr": [1.0, 2.0, 3.0]})
    nesterov = torch.optim.SGD(rest, lr=0.1, momentum=0.9, nesterov=True)
    assert sorted(higher.get_trainable_opt_params(nesterov)) == ["lr", "momentum", "weight_decay"]


def test_the_modules_of_higher_are_there() -> None:
    model, opt, _ = make()
    fmodel = higher.patch.monkeypatch(model)
    diffopt = higher.optim.get_diff_optim(opt, model.parameters(), fmodel)
    assert isinstance(diffopt, higher.optim.DifferentiableSGD)
    assert isinstance(diffopt, higher.optim.DifferentiableOptimizer)
    assert all(p.is_leaf and p.requires_grad for p in higher.patch.get_func_params(model))
    with pytest.raises(AttributeError, match="DifferentiableNothing"):
        _ = higher.optim.DifferentiableNothing
    assert "DifferentiableOptimizer(SGD, 4 parameters)" in repr(diffopt)


def test_a_registered_rule_and_one_without_registration() -> None:
    class Halving(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float = 1.0) -> None:
            super().__init__(params, {"lr": lr})

    model, _, batch = make()
    live = Halving(model.parameters(), lr=0.25)
    with (
        pytest.raises(ArgumentError, match=r"from_torch\(optimizer\): .* got .*Halving"),
        higher.innerloop_ctx(model, live),
    ):
        pass
    higher.register_optim(Halving, lambda lr: mo.optim.sgd(lr=lr / 2))
    try:
        with higher.innerloop_ctx(model, live) as (fmodel, diffopt):
            registered = diffopt.step(loss_of(fmodel, batch(0)))
    finally:
        del mo.optim._torch.KNOWN[Halving]
    with higher.innerloop_ctx(model, mo.optim.sgd(lr=0.125)) as (fmodel, diffopt):
        given = diffopt.step(loss_of(fmodel, batch(0)), override={"lr": 0.125})
    for p, q in zip(registered, given, strict=True):
        assert torch.equal(p, q)
    with pytest.raises(ArgumentError, match=r"register_optim\(rule\): expected a function"):
        higher.register_optim(Halving, 3)


def test_a_rule_written_for_higher() -> None:
    class Momentum(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float = 0.1) -> None:
            super().__init__(params, {"lr": lr})

    class DifferentiableMomentum(higher.DifferentiableOptimizer):
        def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
            for i, (group, grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
                for j, (p, g) in enumerate(zip(group["params"], grads, strict=True)):
                    if g is None:
                        continue
                    state = self.state[i][j]
                    state["v"] = 0.9 * state.get("v", 0.0) + g
                    group["params"][j] = p - group["lr"] * state["v"]

    model, _, batch = make()
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    higher.register_optim(Momentum, DifferentiableMomentum)
    with higher.innerloop_ctx(model, Momentum(model.parameters()), override={"lr": [lr]}) as (
        fmodel,
        diffopt,
    ):
        assert type(diffopt) is DifferentiableMomentum
        for step in range(3):
            diffopt.step(loss_of(fmodel, batch(step)))
        ours = grad(loss_of(fmodel, batch(9)), [lr, *fmodel.parameters(time=0)])
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with higher.innerloop_ctx(model, sgd, override={"lr": [lr]}) as (fmodel, diffopt):
        for step in range(3):
            diffopt.step(loss_of(fmodel, batch(step)))
        expected = grad(loss_of(fmodel, batch(9)), [lr, *fmodel.parameters(time=0)])
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_forward_and_mode_are_the_models_own(kind: str) -> None:
    model, batch = build(kind)
    fmodel = higher.monkeypatch(model)
    x, _ = batch(0)
    torch.testing.assert_close(fmodel(x), model(x), rtol=1e-10, atol=1e-12)
    fmodel.eval()
    assert model.training
    assert not any(layer.training for layer in fmodel.modules())
    assert fmodel.state_dict().keys() == model.state_dict().keys()
    assert isinstance(fmodel, type(model))


def test_bad_calls_are_named() -> None:
    model, opt, batch = make()
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match=r"innerloop_ctx\(model\): expected an nn.Module, got SGD"):
        higher.innerloop_ctx(opt, model).__enter__()
    with pytest.raises(ArgumentError, match=r"get_diff_optim\(reference_params\): expected every parameter"):
        higher.innerloop_ctx(model, other).__enter__()
    with pytest.raises(ArgumentError, match=r"get_diff_optim\(order\): expected 1 or 2, got 3"):
        higher.innerloop_ctx(model, opt, order=3).__enter__()
    with pytest.raises(ArgumentError, match=r"monkeypatch\(history\): expected an integer >= 1"):
        higher.innerloop_ctx(model, opt, history=0).__enter__()
    with pytest.raises(
        ArgumentError, match=r"functional\(module\): expected a bare module, got DataParallel"
    ):
        higher.monkeypatch(nn.DataParallel(model))
    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        with pytest.raises(ArgumentError, match=r"monkeypatch\(module\): expected a module, got an fmodel"):
            higher.monkeypatch(fmodel)
        with pytest.raises(ArgumentError, match=r"step\(loss\): expected a scalar, got shape \[5, 2\]"):
            diffopt.step(fmodel(batch(0)[0]))
        with pytest.raises(ArgumentError, match=r"step\(loss\): expected a scalar, got float"):
            diffopt.step(1.0)
        stale = loss_of(fmodel, batch(0))
        diffopt.step(loss_of(fmodel, batch(0)))
        with pytest.raises(ArgumentError, match=r"step\(loss\): expected a loss that depends on the current"):
            diffopt.step(stale)
        with pytest.raises(ArgumentError, match=r"fmodel.track_higher_grads: expected a bool, got 1"):
            fmodel.track_higher_grads = 1
