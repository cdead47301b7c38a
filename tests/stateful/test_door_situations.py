"""Mixed precision, running statistics, several optimizers, frozen backbones, and the others' step objects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from door_models import build, loss_of, train
from torch import Tensor, nn

import metaopt as mo
from metaopt.errors import ArgumentError
from metaopt.stateful import MAML, MetaSGD, innerloop_ctx, monkeypatch, torchopt

grad = torch.autograd.grad
o = torch.optim


def test_a_grad_scaler_changes_nothing_but_skips_infinities() -> None:
    model, batch = build("mlp")
    opt = o.Adam(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    results = []
    for scaled in (False, True):
        with innerloop_ctx(model, opt) as (fmodel, diffopt):
            for step in range(3):
                diffopt.step(loss_of(fmodel, batch(step)), scaler=scaler if scaled else None)
            results.append(grad(loss_of(fmodel, batch(9)), fmodel.parameters(time=0)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-12)
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        before, state = fmodel.fast_params, diffopt.state
        after = diffopt.step(loss_of(fmodel, batch(0)) * float("inf"), scaler=scaler)
        assert diffopt.skipped == 1
        assert after is before is fmodel.fast_params
        assert diffopt.state is state


@pytest.mark.parametrize("track", [True, False])
def test_autocast(track: bool) -> None:
    model, batch = build("mlp")
    model.float()
    opt = o.SGD(model.parameters(), lr=0.1)
    found = []
    for enabled in (False, True):
        with innerloop_ctx(model, opt, track_higher_grads=track) as (fmodel, diffopt):
            for step in range(3):
                x, y = (t.float() for t in batch(step))
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    loss = (fmodel(x) - y).square().mean()
                diffopt.step(loss)
            assert all(p.dtype == torch.float32 for p in fmodel.parameters())
            x, y = (t.float() for t in batch(9))
            found.append(grad((fmodel(x) - y).square().mean(), fmodel.parameters(time=0)))
    for exact, cast in zip(*found, strict=True):
        torch.testing.assert_close(cast, exact, rtol=0.1, atol=0.03)
        assert not torch.equal(cast, exact)


def test_running_statistics_are_handed_back_on_request() -> None:
    model, batch = build("buffers")
    own, _ = build("buffers")
    train(own, o.SGD(own.parameters(), lr=0.1), map(batch, range(3)))
    mean = dict(model.named_buffers())["layer.inner.1.running_mean"]
    with innerloop_ctx(model, o.SGD(model.parameters(), lr=0.1)) as (fmodel, diffopt):
        for step in range(3):
            diffopt.step(loss_of(fmodel, batch(step)))
        assert not mean.any(), "not before it is asked for"
        fmodel.hand_back(model)
    for a, b in zip(model.buffers(), own.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    weights = [p.clone() for p in model.parameters()]
    fmodel.hand_back(model, params=True, buffers=False)
    assert not any(torch.equal(p, q) for p, q in zip(weights, model.parameters(), strict=True))
    wider = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ArgumentError, match=r"fmodel.hand_back\(module\): expected shape \[3\], got \[2\]"):
        monkeypatch(wider).hand_back(nn.Sequential(nn.BatchNorm1d(2)))


def test_several_inner_optimizers_over_one_model() -> None:
    def optimizers(model: nn.Module) -> tuple[Any, Any]:
        return o.SGD(model[0].parameters(), lr=0.1, momentum=0.9), o.Adam(model[2].parameters(), lr=0.01)

    model, batch = build("mlp")
    with innerloop_ctx(model, optimizers(model)) as (fmodel, (body, head)):
        for step in range(4):
            losses = loss_of(fmodel, batch(step)), loss_of(fmodel, batch(step + 10))
            body.step(losses[0])
            head.step(losses[1])  # taken at P[t] too: the head has not moved since
        found = grad(loss_of(fmodel, batch(99)), fmodel.parameters(time=0))
    own, _ = build("mlp")
    one, two = optimizers(own)
    for step in range(4):
        both = loss_of(own, batch(step)), loss_of(own, batch(step + 10))
        for loss, part in zip(both, (own[0], own[2]), strict=True):
            for p, g in zip(part.parameters(), grad(loss, list(part.parameters())), strict=True):
                p.grad = g
        one.step()
        two.step()
    for p, q in zip(fmodel.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
    assert all(g.abs().sum() > 0 for g in found)


def test_gradients_reach_what_the_inner_loop_does_not_move() -> None:
    """An embedding that is learned outside, under a head that adapts inside (ANIL)."""
    model, batch = build("mlp")
    body, _, head = model
    with innerloop_ctx(model, o.SGD(head.parameters(), lr=0.5), copy_initial_weights=False) as (
        fmodel,
        diffopt,
    ):
        for step in range(2):
            diffopt.step(loss_of(fmodel, batch(step)))
        loss_of(fmodel, batch(9)).backward()
    ours = body.weight.grad.clone()
    h, moved = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            body.weight[1, 2] += sign * h
        with innerloop_ctx(model, o.SGD(head.parameters(), lr=0.5)) as (fmodel, diffopt):
            for step in range(2):
                diffopt.step(loss_of(fmodel, batch(step)))
            moved.append(float(loss_of(fmodel, batch(9)).detach()))
        with torch.no_grad():
            body.weight[1, 2] -= sign * h
    torch.testing.assert_close(float(ours[1, 2]), (moved[0] - moved[1]) / (2 * h), rtol=1e-6, atol=1e-9)


def test_gradients_pass_through_a_frozen_backbone() -> None:
    """What comes before frozen layers, a learned input say, and what comes after both get theirs."""
    model, batch = build("frozen")
    prompt = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    with innerloop_ctx(model, o.SGD(model.parameters(), lr=0.5)) as (fmodel, diffopt):
        x, y = batch(0)
        diffopt.step((fmodel(x + prompt) - y).square().mean())
        found = grad(
            loss_of(fmodel, batch(9)), [prompt, *(p for p in fmodel.parameters(time=0) if p.requires_grad)]
        )
        frozen = [p for p in fmodel.parameters() if not p.requires_grad]
    assert all(g.abs().sum() > 0 for g in found)
    assert len(frozen) == 2
    assert all(torch.equal(p, q) for p, q in zip(frozen, model[2].parameters(), strict=True))


def test_device_moves_weights_buffers_and_state() -> None:
    model, batch = build("buffers")
    opt = o.Adam(model.parameters(), lr=0.1)
    train(model, opt, [batch(0)])
    with innerloop_ctx(model, opt, device="meta") as (fmodel, diffopt):
        tensors = [*fmodel.parameters(), *fmodel.buffers(), *mo.tree.leaves(diffopt.state)]
        assert {x.device.type for x in tensors} == {"meta"}
        assert all(p.is_leaf and p.requires_grad for p in fmodel.parameters())


@pytest.mark.parametrize("first_order", [False, True])
def test_clone_and_adapt(first_order: bool) -> None:
    model, batch = build("mlp")
    maml = MAML(model, lr=0.1, first_order=first_order)
    learner = maml.clone()
    for step in range(2):
        learner.adapt(loss_of(learner, batch(step)))
    branch = learner.clone()
    branch.adapt(loss_of(branch, batch(2)))
    loss_of(branch, batch(9)).backward()
    ours = [p.grad.clone() for p in maml.parameters()]
    opt = o.SGD(model.parameters(), lr=0.1)
    with innerloop_ctx(model, opt, order=1 if first_order else 2) as (fmodel, diffopt):
        for step in range(3):
            diffopt.step(loss_of(fmodel, batch(step)))
        expected = grad(loss_of(fmodel, batch(9)), fmodel.parameters(time=0))
    torch.testing.assert_close(ours, list(expected), rtol=1e-10, atol=1e-12)
    assert torch.equal(maml(batch(0)[0]), model(batch(0)[0]))


def test_meta_sgd_learns_a_rate_for_every_entry() -> None:
    model, batch = build("mlp")
    meta = MetaSGD(model, lr=0.1)
    outer = o.Adam(meta.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        learner = meta.clone()
        learner.adapt(loss_of(learner, batch(0)))
        loss = loss_of(learner, batch(9))
        outer.zero_grad()
        loss.backward()
        outer.step()
        losses.append(float(loss.detach()))
    assert len(list(meta.parameters())) == 2 * len(list(model.parameters()))
    assert losses[-1] < losses[0] / 2
    assert all(not torch.equal(r, torch.full_like(r, 0.1)) for r in meta.lrs)


def test_step_objects_and_going_back() -> None:
    model, batch = build("buffers")
    net = monkeypatch(model, copy_initial_weights=False)
    inner = torchopt.MetaAdam(net, lr=0.1, eps_root=1e-8)
    start, state = torchopt.extract_state_dict(net), torchopt.extract_state_dict(inner)
    results: list[Tensor] = []
    for _ in range(2):
        for step in range(2):
            inner.step(loss_of(net, batch(step)))
        results.append(loss_of(net, batch(9)))
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(inner, state)
    assert torch.equal(*results)
    results[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_weights_go_back_to_a_module_of_the_same_shapes_alone() -> None:
    """A bias of one entry used to be broadcast to three, and a deeper module was written to in part."""
    fmodel = mo.stateful.monkeypatch(nn.Linear(3, 1))
    for other in (
        nn.Linear(3, 4),
        nn.Linear(3, 1, bias=False),
        nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 1)),
    ):
        before = [p.clone() for p in other.parameters()]
        with pytest.raises(ArgumentError, match=r"hand_back\(module\): expected (shape \[1, 3\]|2 tensors)"):
            fmodel.hand_back(other, params=True)
        assert all(map(torch.equal, before, other.parameters()))
    same = nn.Linear(3, 1)
    fmodel.hand_back(same, params=True)
    assert torch.equal(same.weight, fmodel.weight)
