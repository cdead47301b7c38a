"""compile="whole": the gradient of one loss a task is compiled with it; what is none takes the other way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import metaopt as mo

WHOLE = mo.Compile("whole", "aot_eager")
X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # [task, example]
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, -1.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    mo.forget_compiled()
    yield
    mo.forget_compiled()


def learned(value: float = 0.7) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def task(theta: Tensor, x: Tensor) -> Tensor:
    out = mo.unroll(lambda p, b: ((p * b).sin() ** 2).sum(), mo.optim.sgd(0.1), theta, x, num_steps=2)
    return ((out.params * x).cos() * theta).sum()


def grads(compile: Any, fn: Any, *args: Any, inputs: Any, **how: Any) -> Any:
    outputs = mo.map_tasks(fn, compile=compile, **how)(*args)
    weighed = [(WEIGHTS @ y.reshape(4, -1)).sum() for y in mo.tree.leaves(outputs) if y.requires_grad]
    return [outputs, *torch.autograd.grad(torch.stack(weighed).sum(), inputs)]


def agree(fn: Any, *args: Any, inputs: Any, **how: Any) -> None:
    found, expected = (grads(c, fn, *args, inputs=inputs, **how) for c in (WHOLE, False))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert all(row.run for row in mo.compile_report())


def joint() -> int:
    """How many functions were compiled with their gradients."""
    return sum(row.joint for row in mo.compile_report())


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_what_tasks_share_and_what_each_has(how: Any) -> None:
    theta, x = learned(), X.t().contiguous().requires_grad_()  # the task axis is the second
    agree(task, theta, x, inputs=[theta, x], how=how, in_dims=(None, 1))
    assert joint() == 1


def test_a_score_beside_the_loss_is_a_constant() -> None:
    theta = learned()
    agree(lambda p, x: (task(p, x), (x > 0).sum(), x.detach().mean()), theta, X, inputs=[theta])
    assert joint() == 1


def test_two_losses_or_a_vector_go_the_other_way() -> None:
    theta = learned()
    agree(lambda p, x: (task(p, x), task(2 * p, x)), theta, X, inputs=[theta])
    agree(lambda p, x: (p * x).sin(), theta, X, inputs=[theta])
    assert joint() == 0


def test_a_captured_tensor_that_needs_a_gradient_gets_it() -> None:
    theta, scale = learned(), learned(1.3)
    agree(lambda p, x: task(p * scale, x), theta, X, inputs=[theta, scale])
    assert joint() == 0


def test_a_captured_constant_may_change() -> None:
    theta, scale = learned(), torch.tensor(1.3, dtype=torch.float64)
    fn = lambda p, x: task(p * scale, x)
    for value in (1.3, -0.4):
        scale.fill_(value)
        agree(fn, theta, X, inputs=[theta])
    assert joint() == 1


def test_an_input_that_the_loss_does_not_use_has_gradient_zero() -> None:
    theta, idle = learned(), learned()
    agree(lambda both, x: task(both[0], x) + 0 * both[1], (theta, idle), X, inputs=[theta, idle])
    outputs = mo.map_tasks(lambda both, x: task(both[0], x), compile=WHOLE)((theta, idle), X)
    assert torch.autograd.grad(outputs.sum(), idle)[0] == 0


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    with torch.no_grad():
        found = mo.map_tasks(task, compile=WHOLE)(learned(), X)
    assert not found.requires_grad
    assert joint() == 0


def test_a_second_derivative_is_refused() -> None:
    theta = learned()
    loss = mo.map_tasks(task, compile=WHOLE)(theta, X).sum()
    (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
    with pytest.raises(RuntimeError, match=r"map_tasks\(compile\): expected one derivative, got a second"):
        torch.autograd.grad(slope, theta)


def test_a_map_in_a_map_is_right() -> None:
    theta, x = learned(), torch.stack([X, 2 * X, X - 1, X**2])
    inner = lambda p, xs: mo.map_tasks(task, compile=WHOLE)(p, xs).sum()
    found = mo.map_tasks(inner)(theta, x)
    expected = mo.map_tasks(lambda p, xs: mo.map_tasks(task)(p, xs).sum())(theta, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
