"""First order, truncation, bounded history, recomputation, and contexts that leave nothing behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from door_models import MODELS, build, loss_of, train
from torch import Tensor, nn

import metaopt as mo
from metaopt.errors import ArgumentError, CaptureError
from metaopt.stateful import innerloop_ctx

grad = torch.autograd.grad
o = torch.optim


def live_tensors() -> int:
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


def graph_size(root: Tensor) -> int:
    """Nodes of the graph behind a tensor."""
    seen, todo = set(), [root.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize("cls", [o.SGD, o.Adam])
def test_first_order_is_maml_with_constant_gradients(cls: Any) -> None:
    model, batch = build("mlp")
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    opt = cls(model.parameters(), lr=0.05)
    options: Any = {"copy_initial_weights": False, "order": 1, "override": {"lr": [lr]}}
    with innerloop_ctx(model, opt, **options) as (fmodel, diffopt):
        for step in range(3):
            diffopt.step(loss_of(fmodel, batch(step)))
        assert graph_size(fmodel[0].weight) < 40, "no step's activations are kept"
        loss_of(fmodel, batch(9)).backward()
    adapted, _ = build("mlp")
    own = cls(adapted.parameters(), lr=0.05)
    train(adapted, own, map(batch, range(3)))
    own.zero_grad()
    loss_of(adapted, batch(9)).backward()
    for p, q in zip(model.parameters(), adapted.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9)
    assert lr.grad is not None
    assert lr.grad.abs() > 0


def test_truncation_lets_go_of_graph_and_history_and_keeps_the_state() -> None:
    model, batch = build("mlp")
    opt = o.Adam(model.parameters(), lr=0.01)
    own, _ = build("mlp")
    own_opt = o.Adam(own.parameters(), lr=0.01)
    sizes = []
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        for _ in range(3):
            for step in range(2):
                diffopt.step(loss_of(fmodel, batch(step)))
            found = grad(loss_of(fmodel, batch(9)), fmodel.parameters(time=0), retain_graph=True)
            assert all(g.abs().sum() > 0 for g in found)
            sizes.append(graph_size(fmodel[0].weight))
            diffopt.truncate()
            assert all(p.is_leaf and p.requires_grad for p in fmodel.parameters(time=0))
            assert all(not x.requires_grad for x in mo.tree.leaves(diffopt.state))
    assert sizes[1] == sizes[2]
    train(own, own_opt, map(batch, [0, 1] * 3))
    for p, q in zip(own.parameters(), fmodel.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_state_is_handed_out_and_taken_up() -> None:
    model, batch = build("mlp")
    opt = o.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
        state, weights = diffopt.state, list(fmodel.parameters())
        expected = diffopt.step(loss_of(fmodel, batch(1)))
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.state, fmodel.fast_params = state, weights
        found = diffopt.step(loss_of(fmodel, batch(1)))
    assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))


def test_hand_back_continues_the_live_training() -> None:
    model, batch = build("buffers")
    opt = o.Adam(model.parameters(), lr=0.01)
    own, _ = build("buffers")
    own_opt = o.Adam(own.parameters(), lr=0.01)
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
        diffopt.hand_back()
        fmodel.hand_back(model)
    train(model, opt, [batch(1)])
    train(own, own_opt, [batch(0), batch(1)])
    for a, b in zip(model.state_dict().values(), own.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_a_bounded_history_keeps_the_first_and_the_latest() -> None:
    model, batch = build("mlp")
    opt = o.SGD(model.parameters(), lr=0.1)
    with innerloop_ctx(model, opt, track_higher_grads=True, history=2, order=1) as (fmodel, diffopt):
        first = next(fmodel.parameters())
        dropped = weakref.ref(diffopt.step(loss_of(fmodel, batch(0)))[0])
        for step in range(1, 5):
            diffopt.step(loss_of(fmodel, batch(step)))
        assert next(fmodel.parameters(time=0)) is first
        assert next(fmodel.parameters(time=4)) is not next(fmodel.parameters())
        with pytest.raises(ArgumentError, match=r"expected 0, or from 4 to 5, got 1. Raise history"):
            fmodel.parameters(time=1)
    assert dropped() is None


@pytest.mark.parametrize("kind", MODELS)
def test_recomputed_steps_have_the_same_meta_gradient(kind: str) -> None:
    model, batch = build(kind)
    opt = o.SGD(model.parameters(), lr=0.2, momentum=0.5)
    results = []
    for recompute in (False, True):
        lr = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        temperature = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        with innerloop_ctx(model, opt, override={"lr": [lr]}) as (fmodel, diffopt):

            def loss(t: Tensor, step: int = 0, fmodel: Any = fmodel) -> Tensor:
                x, y = batch(step)
                return (fmodel(x) * t - y).square().mean()

            for step in range(3):
                if recompute:
                    diffopt.step(lambda t, k=step: loss(t, k), recompute=True, phi=(temperature,))
                else:
                    diffopt.step(loss(temperature, step))
            size = graph_size(next(p for p in fmodel.parameters() if p.requires_grad))
            trained = [p for p in fmodel.parameters(time=0) if p.requires_grad]
            found = grad(loss_of(fmodel, batch(9)), [lr, temperature, *trained])
            buffers = [b.clone() for b in fmodel.buffers()]
        results.append((found, list(fmodel.parameters()), buffers, size))
    (plain, weights, buffers, large), (again, other, moved, small) = results
    torch.testing.assert_close(again, plain, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(other, weights, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moved, buffers, rtol=1e-9, atol=1e-11)
    assert small < large / 2


def test_recomputation_refuses_what_it_would_lose() -> None:
    model, batch = build("mlp")
    temperature = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    with innerloop_ctx(model, o.SGD(model.parameters(), lr=0.1)) as (fmodel, diffopt):
        with pytest.raises(CaptureError, match="temperature"):
            diffopt.step(lambda: loss_of(fmodel, batch(0)) * temperature, recompute=True)
        with pytest.raises(ArgumentError, match=r"step\(recompute\): expected a function of the loss"):
            diffopt.step(loss_of(fmodel, batch(0)), recompute=True)
        step = 0
        diffopt.step(lambda: loss_of(fmodel, batch(step)), recompute=True)
        step = 1  # bound late
        with pytest.raises(
            CaptureError, match=r"step\(loss\): expected the loss .* again .* Bind what changes"
        ):
            grad(loss_of(fmodel, batch(9)), list(fmodel.parameters(time=0)))
        diffopt.step(lambda t: loss_of(fmodel, batch(0)) * t, phi=(temperature,))
        assert grad(fmodel[0].weight.sum(), temperature)[0].abs() > 0


def test_a_thousand_contexts_leave_nothing_behind() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))
    opt = o.Adam(model.parameters(), lr=0.01)
    x = torch.randn(4, 2)

    def context() -> Tensor:
        with innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
            diffopt.step(fmodel(x).square().mean())
            grads = grad(fmodel(x).square().mean(), list(model.parameters()))
        return grads[0]

    for _ in range(10):
        context()
    gc.collect()
    gc.disable()  # so that nothing is freed but by its last reference
    try:
        before = live_tensors()
        for _ in range(1000):
            context()
        after = live_tensors()
        cycles = gc.collect()
    finally:
        gc.enable()
    assert after == before
    assert cycles == 0, "a context leaves no cycle for the collector"


def test_a_long_first_order_loop_is_flat() -> None:
    model, batch = build("mlp")
    with innerloop_ctx(model, o.SGD(model.parameters(), lr=0.01), track_higher_grads=False) as (
        fmodel,
        diffopt,
    ):
        for step in range(5):
            diffopt.step(loss_of(fmodel, batch(step)))
        before = live_tensors()
        for step in range(300):
            diffopt.step(loss_of(fmodel, batch(step % 5)))
        assert live_tensors() == before
