"""What was broken in `higher` and is no derivative: each row of the list a test."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from door_models import MODELS, build, loss_of
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import metaopt as mo
from metaopt.stateful import innerloop_ctx, monkeypatch

grad = torch.autograd.grad


def setup(kind: str = "mlp", **settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model, batch = build(kind)
    return model, torch.optim.SGD(model.parameters(), **{"lr": 0.1} | settings), batch


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adadelta", "Adamax"])
def test_maximize(name: str) -> None:
    cls = getattr(torch.optim, name)
    model, batch = build("mlp")
    moved = []
    for maximize in (False, True):
        with innerloop_ctx(model, cls(model.parameters(), lr=0.01, maximize=maximize)) as (fmodel, diffopt):
            before = loss_of(fmodel, batch(0))
            diffopt.step(before)
            moved.append(float((loss_of(fmodel, batch(0)) - before).detach()))
    assert moved[0] < 0 < moved[1]


def test_an_optimizers_subclass_is_its_class() -> None:
    class Mine(torch.optim.AdamW):
        pass

    model, batch = build("mlp")
    results = []
    for cls in (Mine, torch.optim.AdamW):
        with innerloop_ctx(model, cls(model.parameters(), lr=0.1)) as (_, diffopt):
            results.append(diffopt.step(loss_of(_, batch(0))))
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_a_learned_rate_that_lives_on_the_optimizer() -> None:
    model, batch = build("mlp")
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    opt = torch.optim.SGD([{"params": model.parameters(), "lr": lr}], lr=0.1)
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        loss = loss_of(fmodel, batch(0))
        slopes = grad(loss, fmodel.parameters(), retain_graph=True)
        diffopt.step(loss)
        (ours,) = grad(sum(p.sum() for p in fmodel.parameters()), lr)
        diffopt.hand_back()
    torch.testing.assert_close(ours, -sum(g.sum() for g in slopes))
    assert opt.param_groups[0]["lr"] is lr, "the learned tensor itself stays on the optimizer"


@pytest.mark.parametrize("kind", MODELS)
def test_layers_called_alone_have_the_current_weights(kind: str) -> None:
    model, opt, batch = setup(kind)
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
        diffopt.hand_back()  # the model now has P[1] too
        fmodel.hand_back(model)
        x, _ = batch(1)
        ours, theirs = (next(iter(m.children())) for m in (fmodel, model))
        ours, theirs = ours(x), theirs(x)
    ours, theirs = (out[0] if isinstance(out, tuple) else out for out in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert ours.requires_grad


def test_assigned_weights_are_the_current_ones() -> None:
    model, opt, batch = setup("tied")
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        doubled = 2 * fmodel[0].weight
        fmodel[0].weight = doubled
        x, _ = batch(0)
        fmodel(x)
        assert fmodel[2].weight is doubled, "tied slots hold one weight"
        assert next(fmodel.parameters()) is doubled
        diffopt.step(loss_of(fmodel, batch(0)))
        (g,) = grad(fmodel[0].weight.sum(), next(fmodel.parameters(time=0)))
        assert g.abs().sum() > 0


@pytest.mark.parametrize("kind", MODELS)
def test_deepcopy_and_pickle(kind: str) -> None:
    model, opt, batch = setup(kind)
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
        copies = [copy.deepcopy(fmodel)]
        if kind not in ("parametrized", "hooks"):  # torch refuses parametrized modules, Python lambdas
            copies.append(pickle.loads(pickle.dumps(fmodel)))
        x, _ = batch(1)
        expected = fmodel(x)
        for other in copies:
            torch.testing.assert_close(other(x), expected, rtol=1e-12, atol=1e-12)
            assert all(p.is_leaf for p in other.parameters())
            other.fast_params = [torch.zeros_like(p) for p in other.parameters()]
        torch.testing.assert_close(fmodel(x), expected, rtol=1e-12, atol=1e-12)


def test_clone_stays_connected() -> None:
    model, opt, batch = setup("buffers")
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
        branch = fmodel.clone()
        calls = int(branch.layer.calls)
        found = grad(loss_of(branch, batch(1)), fmodel.parameters(time=0))
        assert int(fmodel.layer.calls) == calls == int(branch.layer.calls) - 1
    assert all(g.abs().sum() > 0 for g in found)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_compiled_model_is_unwrapped(inplace: bool) -> None:
    model, opt, batch = setup()
    compiled: Any = model
    if inplace:
        model.compile(backend="eager")
    else:
        compiled = torch.compile(model, backend="eager")
    with innerloop_ctx(compiled, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
        found = grad(loss_of(fmodel, batch(1)), fmodel.parameters(time=0))
    plain, opt, _ = setup()
    with innerloop_ctx(plain, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
        expected = grad(loss_of(fmodel, batch(1)), fmodel.parameters(time=0))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_hooks_run_backward_hooks_too() -> None:
    model, opt, batch = setup()
    calls: list[str] = []
    model[2].register_forward_hook(lambda *_: calls.append("forward"))
    model[2].register_full_backward_hook(lambda *_: calls.append("backward"))
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel, batch(0)))
    assert calls == ["forward", "backward"]


def test_models_with_methods_and_attributes_of_their_own() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.power = nn.Linear(4, 3), nn.Linear(3, 2), 2
            self.empty: nn.Parameter | None
            self.register_parameter("empty", None)
            self.table = nn.ParameterDict({"a": nn.Parameter(torch.ones(3))})
            self.rows = nn.ParameterList([nn.Parameter(torch.ones(3))])

        def encode(self, x: Tensor) -> Tensor:
            return self.body(x) ** self.power * self.table["a"] + self.rows[0]

        def penalty(self) -> Tensor:
            return sum(p.square().sum() for p in self.parameters())

        def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
            return self.head(self.encode(x)) * scale

    model = Model()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(5, 4)
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(fmodel(x, scale=0.5).square().mean() + fmodel.penalty())
        found = grad(fmodel.encode(x).sum(), list(fmodel.parameters(time=0)), allow_unused=True)
        diffopt.hand_back()
    torch.testing.assert_close(model.encode(x), fmodel.encode(x))
    assert sum(g is not None for g in found) == 6
    assert not hasattr(monkeypatch(model), "nothing_of_the_kind")


def test_recurrent_nets_have_second_derivatives_at_the_default_settings() -> None:
    for kind in ("rnn", "lstm", "gru", "transformer"):
        model, opt, batch = setup(kind)
        with innerloop_ctx(model, opt) as (fmodel, diffopt):
            diffopt.step(loss_of(fmodel, batch(0)))
            found = grad(loss_of(fmodel, batch(1)), fmodel.parameters(time=0))
        assert all(g.isfinite().all() and g.abs().sum() > 0 for g in found)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_seen_by_a_mode_only_where_it_changes_them(kind: Any) -> None:
    """`exact` sees no call inside torch's own layer on a CPU; a user's mode, and a map, see all."""
    layer, x, seen = kind(3, 4, batch_first=True).double(), torch.randn(2, 5, 3).double(), []

    class Listening(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    fmodel = monkeypatch(nn.Sequential(layer))
    expected, name = layer(x)[0], kind.__name__.lower().replace("rnn", "rnn_tanh")
    counted = mo.exact.__torch_function__
    looked: list[Any] = []
    look = lambda self, f, *rest: (looked.append(f), counted(self, f, *rest))[1]
    with pytest.MonkeyPatch.context() as patch, mo.exact(twice=True):
        patch.setattr(mo.exact, "__torch_function__", look)
        torch.testing.assert_close(fmodel[0](x)[0], expected)
        assert getattr(torch, name) not in looked
        with Listening():
            torch.testing.assert_close(fmodel[0](x)[0], expected)
        mapped = torch.vmap(lambda w: fmodel(x, params=w)[0])(
            [torch.stack([p, p]) for p in layer.parameters()]
        )
    assert name in seen
    assert getattr(torch, name) in looked
    torch.testing.assert_close(mapped[1], expected)


def test_the_model_may_be_mapped_over_weights() -> None:
    model, batch = build("nested")
    fmodel = monkeypatch(model)
    x, _ = batch(0)
    stacked = [torch.stack([p, 2 * p]) for p in fmodel.parameters()]
    mapped = torch.vmap(lambda *ps: fmodel(x, params=ps))(*stacked)
    torch.testing.assert_close(mapped[0], fmodel(x))
    assert all(p.is_leaf for p in fmodel.parameters()), "what is mapped does not stay behind"
    assert mapped.shape == (2, 5, 2)
    torch.testing.assert_close(
        mapped[1], mo.stateful.make_functional(model)(x, params=[2 * p for p in model.parameters()])
    )
