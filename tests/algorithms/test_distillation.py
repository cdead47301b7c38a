"""Dataset distillation: its gradient, and a handful of examples that train a net."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import metaopt as mo
from metaopt.errors import ArgumentError, StructureError


def loss_fn(w: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(batch[0] @ w, batch[1])


def rings(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four classes around the origin, in 5 dimensions of which 2 tell."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=g)
    x = torch.randn(n, 5, generator=g, dtype=torch.float64)
    angle = y * torch.pi / 2
    x[:, 0] += 2.5 * angle.cos()
    x[:, 1] += 2.5 * angle.sin()
    return x, y


def start(steps: int = 2) -> mo.Distilled:
    x, _ = rings(4 * steps, 7)
    return mo.Distilled(
        0.1 * x.reshape(steps, 4, 5),
        torch.arange(4).repeat(steps, 1),
        torch.zeros(steps, dtype=torch.float64),
    )


@pytest.mark.parametrize("memory", ["all", "sqrt"])
def test_the_gradient_is_that_of_finite_differences(memory: Any) -> None:
    task_loss = mo.distillation(loss_fn, epochs=2, memory=memory)
    inits = 0.3 * torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    given = start()

    def value(inputs: Tensor, rates: Tensor) -> Tensor:
        distilled = given._replace(inputs=inputs, rates=rates)
        starts = (inits, mo.tree.stack([rings(20, s) for s in (1, 2, 3)]))
        return mo.map_tasks(task_loss)(distilled, starts).mean()

    points = (given.inputs.clone().requires_grad_(), given.rates.clone().requires_grad_())
    assert torch.autograd.gradcheck(value, points)


def test_four_examples_do_for_a_net_what_random_ones_do_not() -> None:
    """Trained for random initialisations, tested on new ones and on new data."""
    task_loss, real = mo.distillation(loss_fn), rings(200, 1)
    g = torch.Generator().manual_seed(0)
    draw = lambda n: 0.5 * torch.randn(n, 5, 4, generator=g, dtype=torch.float64)
    given = start()
    learned, opt = [given.inputs, given.rates], mo.optim.adam(0.1)
    state = opt.init(learned)
    for _ in range(60):
        xs = [x.requires_grad_() for x in learned]
        distilled = mo.Distilled(xs[0], given.targets, xs[1])
        mapped = mo.map_tasks(task_loss, in_dims=(None, (0, None)))
        loss = mapped(distilled, (draw(8), real)).mean()
        grads = list(torch.autograd.grad(loss, xs))
        learned, state = opt.update(mo.tree.detach(xs), state, grads, opt.hparams)

    def scores(distilled: mo.Distilled) -> float:
        x, y = rings(300, 2)
        opt = mo.optim.sgd()
        hparams = opt.hparams._replace(lr=F.softplus(distilled.rates))
        batch = (distilled.inputs, distilled.targets)
        hits = [
            (x @ mo.unroll(loss_fn, opt, w, batch, hparams=hparams, per_step_hparams=True).params).argmax(1)
            == y
            for w in draw(5)
        ]
        return torch.stack(hits).double().mean().item()

    before, after = scores(given), scores(mo.Distilled(learned[0], given.targets, learned[1]))
    assert after > 0.9 > 0.75 > before


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"distillation\(epochs\): expected an integer >= 1, got 0"):
        mo.distillation(loss_fn, epochs=0)
    bad = start()._replace(rates=torch.zeros(3))
    with pytest.raises(StructureError, match=r"distillation\(distilled\): expected 2 steps on axis 0"):
        mo.distillation(loss_fn)(bad, (torch.zeros(5, 4), rings(4, 1)))
