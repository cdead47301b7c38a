"""Every memory strategy of unroll: the same gradient, under vmap, in two orders; bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios
import torch
from scenarios import assert_close, f64
from torch import nn

import metaopt as mo
from metaopt.errors import ArgumentError, CaptureError
from metaopt.revolve import repetitions

STRATEGIES: dict[str, Any] = {
    "sqrt": "sqrt",
    "1": 1,
    "3": 3,
    "binomial 1": mo.Binomial(1),
    "binomial 2": mo.Binomial(2),
    "binomial 16": mo.Binomial(16),
    "offload": mo.Offload(),
    "offload 4": mo.Offload(4),
}
every = pytest.mark.parametrize("memory", STRATEGIES.values(), ids=STRATEGIES.keys())


def outer(scenario: Any, memory: Any, phi: Any, batch: Any) -> torch.Tensor:
    problem = scenario.problem
    out = mo.unroll(problem.loss_fn, problem.opt, phi.params, batch, 7, phi.hparams, phi.phi, memory=memory)
    return problem.outer_loss(out.params, batch, *phi.phi) + out.losses.sum()


def leaves_of(phi: Any) -> tuple[Any, list[torch.Tensor]]:
    phi = mo.tree.map(lambda x: x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x, phi)
    return phi, [x for x in mo.tree.leaves(phi) if isinstance(x, torch.Tensor)]


@every
@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "vmap"])
def test_the_gradient_is_the_same(memory: Any, mapped: bool) -> None:
    scenario = scenarios.everything()
    batches = [(scenarios.positive(4, t), scenarios.vector(4, t)) for t in range(3)]
    results = []
    for strategy in ("all", memory):
        phi, leaves = leaves_of(scenario.phi)
        fn = lambda phi, batch, m=strategy: outer(scenario, m, phi, batch)
        if mapped:
            value = mo.map_tasks(fn, how="vmap")(phi, mo.tree.stack(batches)).sum()
        else:
            value = fn(phi, batches[0])
        results.append((value.detach(), torch.autograd.grad(value, leaves)))
    assert_close(results[1], results[0])


@every
def test_the_second_derivative_is_the_same(memory: Any) -> None:
    a, b = f64(1.5), f64(0.3)
    slope = lambda m: torch.func.grad(
        torch.func.grad(
            lambda lr: (
                mo.unroll(
                    scenarios.scalar_quadratic,
                    mo.optim.sgd(),
                    f64(2.0),
                    (a, b),
                    7,
                    mo.optim.SGDHParams(lr),
                    memory=m,
                ).params
            )
        )
    )(f64(0.3))
    assert_close(slope(memory), slope("all"))


def test_binomial_holds_no_more_carries_than_slots() -> None:
    """Each step is computed at most t times more, and never more than a few carries are alive."""
    for num_steps, slots in [(30, 2), (40, 3), (10, 1)]:
        calls = []

        def loss_fn(p: Any, batch: Any, calls: list[int] = calls) -> Any:
            calls.append(1)
            return (p**2).sum() / 2

        theta = torch.ones(1).double().requires_grad_()
        out = mo.unroll(loss_fn, mo.optim.sgd(lr=0.1), theta, (), num_steps, memory=mo.Binomial(slots))
        assert len(calls) == num_steps
        out.params.sum().backward()
        assert len(calls) <= num_steps * (repetitions(num_steps, slots) + 2)
        assert_close(theta.grad, torch.full((1,), 0.9**num_steps, dtype=torch.float64))


@pytest.mark.parametrize("memory", ["some", 0, True, 1.5, None, mo.Binomial(0), mo.Offload(0)])
def test_a_strategy_out_of_range_is_named(memory: Any) -> None:
    with pytest.raises(ArgumentError, match=r"unroll\(memory\): expected 'all', 'sqrt'"):
        mo.unroll(lambda p, b: p**2, mo.optim.sgd(), torch.ones(()), (), 3, memory=memory)


@every
def test_a_captured_tensor_is_named(memory: Any) -> None:
    scale = torch.ones((), requires_grad=True)
    with pytest.raises(CaptureError, match="`scale`"):
        mo.unroll(lambda p, b: scale * p**2, mo.optim.sgd(), torch.ones(()), (), 3, memory=memory)


def test_random_draws_are_repeated_as_they_fell() -> None:
    """Dropout in the loss: the backward pass sees the same masks."""
    grads = []
    for memory in ("all", *STRATEGIES.values()):
        torch.manual_seed(3)
        theta = torch.ones(6).double().requires_grad_()
        loss = lambda p, b: (torch.nn.functional.dropout(p) ** 2).sum() / 2
        out = mo.unroll(loss, mo.optim.sgd(lr=0.1), theta, (), 9, memory=memory)
        (slope,) = torch.autograd.grad(out.params.sum(), theta)
        grads.append((slope, out.losses.detach()))
    for g in grads[1:]:
        assert_close(g, grads[0])


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize("memory", ["sqrt", mo.Binomial(1), mo.Offload(2)], ids=str)
def test_seeded_draws_and_counters_are_repeated_in_the_backward_pass(memory: Any, how: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    apply, params, buffers = mo.functional(net)
    x = torch.randn(3, 5, 2, dtype=torch.float64)

    def loss_fn(params: Any, x: Any, buffers: Any) -> Any:
        y, buffers = apply.with_buffers(params, buffers, x)
        return y.square().mean(), buffers

    def gradient(memory: Any) -> Any:
        task_loss = mo.maml(loss_fn, mo.optim.sgd(0.1), 4, memory=memory)
        mapped = mo.map_tasks(task_loss, how=how, in_dims=(None, 0, None), seed=7)
        losses, moved = mapped(params, mo.Episode(x, x), buffers)
        return [*mo.tree.leaves(moved), *torch.autograd.grad(losses.sum(), list(params.values()))]

    torch.testing.assert_close(gradient(memory), gradient("all"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_step_has_no_losses_of_the_dtype_of_params(dtype: torch.dtype) -> None:
    params = torch.ones(2, dtype=dtype)
    out = mo.unroll(lambda p, b: (p**2).sum(), mo.optim.sgd(lr=0.1), params, (), num_steps=0)
    assert out.losses.dtype is dtype
    assert out.losses.shape == (0,)
