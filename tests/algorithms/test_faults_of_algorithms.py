"""Numbers that were once wrong without an error, each beside the right ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo

DOUBLE = torch.float64


def test_cavia_passes_phi_on() -> None:
    """ℓ = φ (θ + c − b)²/2: one step is c = −½ φ (θ − b), and the query weighs by φ again."""
    loss = lambda p, b, c, phi: phi * (p + c - b) ** 2 / 2
    task_loss = mo.cavia(loss, mo.optim.sgd(lr=0.5), torch.zeros((), dtype=DOUBLE))
    theta, phi = torch.tensor(2.0, dtype=DOUBLE), torch.tensor(0.6, dtype=DOUBLE, requires_grad=True)
    zero = torch.zeros((), dtype=DOUBLE)
    value = task_loss(mo.Meta(theta, None, (phi,)), mo.Episode(zero, zero))
    assert value.item() == pytest.approx(0.6 * (2 * (1 - 0.3)) ** 2 / 2)
    (slope,) = torch.autograd.grad(value, phi)
    assert slope.item() == pytest.approx(2 * (1 - 0.3) ** 2 - 0.6 * 2 * (2 * (1 - 0.3)) / 2)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-7), (torch.bfloat16, 0.05)])
def test_the_drift_of_a_step_size_is_not_rounded_as_parameters_are(dtype: torch.dtype, rtol: float) -> None:
    """α is near 0.1 and moves by 1e-4 a step: in bfloat16 every other step was lost."""
    opt = mo.hypergradient_descent(mo.optim.sgd(lr=0.1), meta_lr=1e-4)

    def drift(dtype: torch.dtype) -> Tensor:
        p = torch.ones(4, dtype=dtype)
        state = opt.init(p)
        for _ in range(20):
            p, state = opt.update(p, state, p, opt.hparams)
        return state.drift

    found, exact = drift(dtype), drift(DOUBLE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=0)


def test_a_task_that_diverges_takes_nothing_from_the_others() -> None:
    """The first task is NaN: the gradient is that of the others alone."""
    rest = torch.tensor([2.0, 3.0, 0.5])

    def run(data: Tensor) -> list[Tensor]:
        tasks = mo.algorithms.OptimizationTasks(
            lambda p, b: (b * (p - 1) ** 2).sum(),
            lambda num_tasks, seed, step=0: (torch.zeros(num_tasks, 2), data),
        )
        settings = {"meta_steps": 1, "window": 3, "num_steps": 3, "meta_opt": mo.optim.sgd(1.0)}
        out = mo.train_learned_optimizer(mo.learned_lstm((3,)), tasks, num_tasks=len(data), **settings)  # type: ignore[arg-type]
        return mo.tree.leaves(out.hparams)

    found, expected = run(torch.cat([torch.tensor([torch.nan]), rest])), run(rest)
    assert any(not torch.equal(x, y) for x, y in zip(expected, mo.tree.leaves(mo.learned_lstm((3,)).hparams)))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("opt", [mo.optim.adam(0.01), mo.optim.sgd(0.1, momentum=0.9)])
def test_moments_of_half_precision_survive_a_checkpoint(opt: Any) -> None:
    def step(p: nn.Parameter, live: Any, i: int) -> None:
        p.grad = (torch.arange(1, 7) / (7 + i)).to(p.dtype)
        live.step()

    p = nn.Parameter(torch.ones(6, dtype=torch.bfloat16))
    live = mo.TorchOptimizer([p], opt)
    for i in range(3):
        step(p, live, i)
    q = nn.Parameter(p.detach().clone())
    again = mo.TorchOptimizer([q], opt)
    again.load_state_dict(copy.deepcopy(live.state_dict()))
    for name, x in live.state[p].items():
        assert torch.equal(again.state[q][name], x), name
    step(p, live, 3)
    step(q, again, 3)
    assert torch.equal(p, q)


def test_hyperparameters_inside_a_chain_are_learned_by_their_names() -> None:
    """lr moves on a log scale wherever it stands: in a chain, a partition, or one a leaf."""
    sgd = mo.optim.sgd(lr=torch.tensor(0.1))
    rules = (
        mo.optim.chain(mo.optim.clip_by_global_norm(10.0), sgd),
        mo.optim.partition({"a": sgd}, {"w": "a"}),
        sgd._replace(hparams=sgd.hparams._replace(lr={"w": torch.tensor(0.1)})),
        sgd,
    )
    found = []
    for opt in rules:
        params = {"w": torch.tensor(1.0)}
        problem = mo.hypergrad.Problem(lambda p, b: p["w"] ** 2 / 2, opt, (), 1, params=params)
        found.append(mo.learn_hparams(problem, meta_steps=5).hparams)
    rates = [found[0][1].lr, found[1]["a"].lr, found[2].lr["w"], found[3].lr]
    assert rates[3] > 0.11
    for rate in rates:
        torch.testing.assert_close(rate, rates[3])
