"""What the tests of `higher` itself ask of an fmodel, beyond what stands elsewhere here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from door_models import MODELS, build, loss_of
from torch import Tensor, nn

from metaopt import stateful as higher


class PartlyUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(4, 3)), nn.Parameter(torch.rand(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a


@pytest.mark.parametrize("kind", MODELS)
def test_backward_fills_grad_as_the_model_does(kind: str) -> None:
    model, batch = build(kind)
    fmodel = higher.monkeypatch(model)
    for step in range(3):
        loss_of(model, batch(step)).backward()
        loss_of(fmodel, batch(step)).backward()
    for p, q in zip(model.parameters(), fmodel.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells_carry_their_state_through_an_unroll(cell: Any) -> None:
    model = cell(3, 4)
    fmodel = higher.monkeypatch(model)
    xs = torch.randn(5, 2, 3)
    state = expected = None
    for x in xs:
        state, expected = fmodel(x, state), model(x, expected)
    torch.testing.assert_close(state, expected, rtol=0, atol=0)

    def hidden(out: Any) -> Tensor:
        return out[0] if isinstance(out, tuple) else out

    slopes = torch.autograd.grad(hidden(state).sum().square(), fmodel.parameters(), create_graph=True)
    fmodel.fast_params = [p - 0.1 * g for p, g in zip(fmodel.parameters(), slopes, strict=True)]
    final = hidden(fmodel(xs[0], state)).sum()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(final, fmodel.parameters(time=0)))


@pytest.mark.parametrize("make", [PartlyUsed, lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))])
def test_maml_and_its_test_time(make: Any) -> None:
    model = make()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for track in (True, False):
        model.zero_grad()
        with higher.innerloop_ctx(model, opt, copy_initial_weights=False, track_higher_grads=track) as (
            fmodel,
            diffopt,
        ):
            start = fmodel.parameters(time=0)
            for _ in range(4):
                diffopt.step(fmodel(torch.rand(8, 4)).sum().square())
            total = sum(p.sum() for p in fmodel.parameters())
            found = torch.autograd.grad(total, start, retain_graph=True, allow_unused=True)
            total.backward()
        for p, g in zip(model.parameters(), found, strict=True):
            assert (p.grad is None and g is None) if not track else torch.equal(p.grad, g)


def test_forward_with_given_weights_is_bitwise_the_functional_form() -> None:
    conv, norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=1.0)
    model = nn.Sequential(conv, norm, nn.ReLU(inplace=True), nn.MaxPool2d(2))
    fmodel = higher.monkeypatch(model)
    for _ in range(3):
        weights = [torch.rand_like(p) for p in model.parameters()]
        x = torch.rand(4, 1, 8, 8)
        h = nn.functional.conv2d(x, weights[0], weights[1])
        h = nn.functional.batch_norm(h, torch.zeros(3), torch.ones(3), weights[2], weights[3], True, 1.0)
        assert torch.equal(nn.functional.max_pool2d(h.relu(), 2), fmodel(x, params=weights))
    assert not norm.running_mean.any(), "the model's own statistics are untouched"


def test_a_submodule_is_called_directly() -> None:
    class Nested(nn.Module):
        def __init__(self, f: nn.Module) -> None:
            super().__init__()
            self.f = f

        def forward(self, x: Tensor) -> Tensor:
            return self.f(x)

    fmodel = higher.monkeypatch(Nested(Nested(nn.Linear(3, 4))))
    x = torch.randn(2, 3)
    assert torch.equal(fmodel(x), fmodel.f(x))
    assert torch.equal(fmodel(x), fmodel.f.f(x))
