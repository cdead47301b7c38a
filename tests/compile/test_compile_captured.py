"""compile=: what a loss captured, reads or draws may change from one call to the next."""

from __future__ import annotations

import copy
import random
import types
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo

REPLAY = mo.Compile("step", "aot_eager")


@pytest.fixture(autouse=True)
def fresh() -> Any:
    mo.forget_compiled()
    yield
    mo.forget_compiled()


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0
        self.weight = nn.Parameter(torch.tensor(1.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.weight * x if self.training else x


class Weighed:
    """A loss with a number of its own, read by a method that the loss calls."""

    def __init__(self) -> None:
        self.factor = 2.0

    def scaled(self, p: Tensor) -> Tensor:
        return self.factor * p

    def loss(self, p: Tensor, b: Any) -> Tensor:
        return self.scaled(p).square()


def set_dtype(layer: Any) -> None:
    layer.double()
    layer.weight.data *= 1.1


CHANGES: dict[str, tuple[Any, Any, Any]] = {
    "attribute of an object": (types.SimpleNamespace(factor=2.0), None, lambda o: vars(o).update(factor=3.0)),
    "attribute read by a method": (Weighed(), "loss", lambda o: vars(o).update(factor=3.0)),
    "entry of an ordered dict": (OrderedDict(factor=2.0), "entry", lambda o: o.update(factor=3.0)),
    "mode of a module": (Scale(), "call", lambda o: o.eval()),
    "attribute of a module": (Scale(), "call", lambda o: vars(o).update(factor=3.0)),
    "parameter of a module": (Scale(), "call", lambda o: setattr(o, "weight", nn.Parameter(torch.ones(())))),
    "dtype of a parameter": (Scale(), "call", set_dtype),
    "what is learned of a module": (Scale().requires_grad_(False), "call", lambda o: o.requires_grad_()),
    "hook of a module": (Scale(), "call", lambda o: o.register_forward_hook(lambda m, x, y: 5 * y)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_the_loss_reads_may_change(name: str) -> None:
    made, how, change = CHANGES[name]
    held = copy.deepcopy(made)
    losses = {
        None: lambda p, b: (held.factor * p).square(),
        "loss": getattr(held, "loss", None),
        "entry": lambda p, b: (held["factor"] * p).square(),
        "call": lambda p, b: held(p).square().to(p.dtype),
    }

    def run(compile: Any) -> Any:
        theta = torch.tensor(1.0, requires_grad=True)
        out = mo.unroll(losses[how], mo.optim.sgd(0.1), theta, (), num_steps=2, compile=compile).params
        learned = [theta, *(x for x in getattr(held, "parameters", list)() if x.requires_grad)]
        return out, torch.autograd.grad(out, learned, allow_unused=True)

    before = run(REPLAY)
    torch.testing.assert_close(before, run(False))
    change(held)
    after = run(REPLAY)
    torch.testing.assert_close(after, run(False))
    assert len(after[1]) != len(before[1]) or not torch.equal(after[0], before[0])


def test_draws_of_python_stay_eager() -> None:
    loss = lambda p, b: p.square() * random.random()

    def run(compile: Any) -> Tensor:
        random.seed(0)
        return mo.unroll(loss, mo.optim.sgd(0.1), torch.tensor(1.0), (), num_steps=2, compile=compile).params

    torch.testing.assert_close(run(REPLAY), run(False))
    assert "seed" in mo.compile_report()[0].reason


def test_the_default_dtype_may_change() -> None:
    loss = lambda p, b: (p * torch.full((1,), 1 / 3)).square().sum().to(p.dtype)
    theta = torch.tensor(1.0)
    run = lambda compile: mo.unroll(loss, mo.optim.sgd(0.1), theta, (), num_steps=2, compile=compile).losses
    try:
        for dtype in (torch.bfloat16, torch.float32):
            torch.set_default_dtype(dtype)
            torch.testing.assert_close(run(REPLAY), run(False))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(mo.compile_report()) == 2
