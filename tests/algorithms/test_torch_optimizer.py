"""A pure optimizer in a loop of torch's own: the same numbers, saved and loaded, scheduled and grouped."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo
from metaopt.errors import ArgumentError, StructureError

DOUBLE = torch.float64
OPTIMIZERS = {
    "learned_mlp": mo.learned_mlp((8,), dtype=DOUBLE),
    "learned_lstm": mo.learned_lstm((5, 4), dtype=DOUBLE),
    "adam": mo.optim.adam(lr=0.02),
    "hypergradient_descent": mo.hypergradient_descent(mo.optim.sgd(lr=0.05), 1e-3),
}
ROWS = pytest.mark.parametrize("opt", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    return torch.randn(8, 3, generator=draw, dtype=DOUBLE), torch.randn(8, 1, generator=draw, dtype=DOUBLE)


def train(net: nn.Module, live: torch.optim.Optimizer, steps: int) -> list[Tensor]:
    x, y = data()
    for _ in range(steps):
        live.zero_grad()
        ((net(x) - y) ** 2).mean().backward()
        live.step()
    return [p.detach().clone() for p in net.parameters()]


def pure(opt: mo.Optimizer, steps: int) -> list[Tensor]:
    """Leaf by leaf for what couples them; the gradients are the same."""
    apply, params, _ = mo.functional(model())
    loss_fn = lambda p, batch: ((apply(p, batch[0]) - batch[1]) ** 2).mean()
    params = {k: p.detach() for k, p in params.items()}
    states = {k: opt.init(p) for k, p in params.items()}
    for _ in range(steps):
        grads = torch.func.grad(loss_fn)(params, data())
        for k in params:
            params[k], states[k] = opt.update(params[k], states[k], grads[k], opt.hparams)
    return list(params.values())


@ROWS
def test_equals_the_pure_optimizer(opt: mo.Optimizer) -> None:
    net = model()
    got = train(net, mo.TorchOptimizer(net.parameters(), opt), 6)
    torch.testing.assert_close(got, pure(opt, 6), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["learned_mlp", "learned_lstm", "adam"])
def test_equals_unroll(name: str) -> None:
    """All leaves at once: a learned rule moves each alone."""
    opt, net = OPTIMIZERS[name], model()
    apply, params, _ = mo.functional(model())
    loss_fn = lambda p, batch: ((apply(p, batch[0]) - batch[1]) ** 2).mean()
    out = mo.unroll(loss_fn, opt, mo.tree.detach(params), data(), 6)
    got = train(net, mo.TorchOptimizer(net.parameters(), opt), 6)
    torch.testing.assert_close(got, list(out.params[k] for k in params), rtol=0, atol=1e-14)


@ROWS
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(opt: mo.Optimizer) -> None:
    """Saved with weights_only in mind; φ comes back too, over an untrained one."""
    net = model()
    live = mo.TorchOptimizer(net.parameters(), opt)
    train(net, live, 3)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "live": live.state_dict()}, file)
    whole = train(net, live, 3)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other = model()
    blank = opt.hparams if opt is OPTIMIZERS["adam"] else mo.tree.map(lambda x: x * 0, opt.hparams)
    resumed = mo.TorchOptimizer(other.parameters(), opt, blank)
    other.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["live"])
    torch.testing.assert_close(train(other, resumed, 3), whole, rtol=0, atol=0)


def test_groups_schedules_closures_and_missing_gradients() -> None:
    opt, net = OPTIMIZERS["learned_mlp"], model()
    first, *rest = net.parameters()
    rest[-1].requires_grad_(False)
    live = mo.TorchOptimizer([{"params": [first], "lr": 0.0}, {"params": rest}], opt)
    schedule = torch.optim.lr_scheduler.LambdaLR(live, lambda step: 0.5**step)
    before = [p.detach().clone() for p in net.parameters()]
    x, y = data()

    def closure() -> Any:
        live.zero_grad()
        loss = ((net(x) - y) ** 2).mean()
        loss.backward()
        return loss

    moves = []
    for _ in range(2):
        start = rest[0].detach().clone()
        assert live.step(closure) > 0
        schedule.step()
        moves.append((rest[0] - start).abs().max())
    assert torch.equal(first, before[0])
    assert torch.equal(rest[-1], before[-1])
    assert live.param_groups[1]["lr"] == 0.25
    assert all(m > 0 for m in moves)


def test_lr_scales_the_move() -> None:
    moved = []
    for lr in (1.0, 0.5):
        p = nn.Parameter(torch.ones(4, dtype=DOUBLE))
        p.grad = torch.linspace(-1, 1, 4, dtype=DOUBLE)
        mo.TorchOptimizer([p], OPTIMIZERS["learned_lstm"], lr=lr).step()
        moved.append(p.detach() - 1)
    torch.testing.assert_close(moved[1], moved[0] / 2)


def test_it_is_copied_and_shown_like_any_other() -> None:
    net = model()
    live = mo.TorchOptimizer(net.parameters(), OPTIMIZERS["learned_mlp"])
    train(net, live, 1)
    twin = copy.deepcopy(live)
    assert twin.state_dict()["state"].keys() == live.state_dict()["state"].keys()
    assert "TorchOptimizer" in repr(live)


def test_half_precision_keeps_its_memory_in_float32() -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    live = mo.TorchOptimizer([p], mo.learned_mlp((4,)))
    p.grad = torch.ones_like(p)
    live.step()
    assert p.dtype == torch.bfloat16
    assert live.state[p]["memory.momenta"].dtype == torch.float32


def test_bad_input_is_told() -> None:
    p = nn.Parameter(torch.ones(1))
    opt = mo.learned_mlp((4,))
    with pytest.raises(ArgumentError, match=r"TorchOptimizer\(lr\): expected a number >= 0, got -1"):
        mo.TorchOptimizer([p], opt, lr=-1)
    with pytest.raises(StructureError, match=r"TorchOptimizer\(hparams\)"):
        mo.TorchOptimizer([p], opt, mo.learned_lstm().hparams)
    other = mo.TorchOptimizer([p], mo.learned_lstm())
    live = mo.TorchOptimizer([p], opt)
    live.load_state_dict(other.state_dict())
    p.grad = torch.ones(1)
    with pytest.raises(StructureError, match="Load it into its own kind"):
        live.step()
