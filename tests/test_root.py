"""mo.root and mo.fixed_point: the derivative of a solver that is not ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scenarios
import torch
from scenarios import assert_close, f64

import metaopt as mo
from metaopt.errors import CaptureError, DivergenceError, StructureError
from metaopt.linsolve import cg, dense

EYE = torch.eye(3, dtype=torch.float64)


def stationarity(w: Any, x: Any, y: Any, decay: Any) -> Any:
    return x.T @ (x @ w - y) + decay * w


@mo.root(stationarity, solve=cg(20, 1e-14))
def ridge(init: Any, x: Any, y: Any, decay: Any) -> Any:
    """A solver outside torch."""
    a = x.numpy()
    gram = a.T @ a + float(decay) * np.eye(3)
    return torch.from_numpy(np.linalg.solve(gram, a.T @ y.numpy()))


def closed(x: Any, y: Any, decay: Any) -> Any:
    return torch.linalg.solve(x.T @ x + decay * EYE, x.T @ y)


INPUTS = (scenarios.vector(12, 1).reshape(4, 3), scenarios.vector(4, 2), f64(0.5))


def test_the_derivative_is_that_of_the_closed_form() -> None:
    for mode in (torch.func.jacrev, torch.func.jacfwd):
        got = mode(lambda *a: ridge(None, *a), (0, 1, 2))(*INPUTS)
        assert_close(got, torch.func.jacrev(closed, (0, 1, 2))(*INPUTS), 1e-11)
    inputs = tuple(x.clone().requires_grad_() for x in INPUTS)
    assert torch.autograd.gradcheck(lambda *a: ridge(None, *a), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: ridge(None, *a), inputs)


def test_a_black_box_is_run_task_by_task_under_vmap() -> None:
    decays = f64([0.1, 0.5, 2.0])
    fn = torch.func.grad(lambda d: ridge(None, *INPUTS[:2], d).sum())
    want = torch.stack([fn(d) for d in decays])
    assert_close(torch.vmap(fn)(decays), want)
    mapped = torch.vmap(lambda d: ridge(None, *INPUTS[:2], d))(decays.requires_grad_())
    assert_close(torch.autograd.grad(mapped.sum(), decays)[0], want)


def test_a_solver_made_of_torch_is_mapped() -> None:
    calls = []

    @mo.root(stationarity, mappable=True, solve=dense())
    def solver(init: Any, x: Any, y: Any, decay: Any) -> Any:
        calls.append(1)
        return closed(x, y, decay)

    decays = f64([0.1, 0.5, 2.0])
    slope = torch.vmap(torch.func.grad(lambda d: solver(None, *INPUTS[:2], d).sum()))(decays)
    assert_close(slope, torch.vmap(torch.func.grad(lambda d: closed(*INPUTS[:2], d).sum()))(decays))
    assert len(calls) == 1


def test_a_fixed_point_of_trees() -> None:
    """x = cos(a x) in a dictionary: dx/da = −x sin(ax) / (1 + a sin(ax))."""

    @mo.fixed_point(lambda x, a: {"x": torch.cos(a * x["x"])})
    def iterate(init: Any, a: Any) -> Any:
        x = init["x"]
        for _ in range(200):
            x = torch.cos(a * x)
        return {"x": x}

    a = f64(0.7).requires_grad_()
    x = iterate({"x": f64(0.5)}, a)["x"]
    (slope,) = torch.autograd.grad(x, a)
    s = torch.sin(a * x).detach()
    assert_close(slope, -x.detach() * s / (1 + a.detach() * s))


def test_bad_input() -> None:
    a = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(CaptureError, match=r"root\(optimality_fn\).*`a`"):
        mo.root(lambda x: x - a)(lambda init: torch.ones(()))(None)
    wrong = mo.root(lambda x, a: {"x": x - a})(lambda init, a: a.clone())(None, a)
    with pytest.raises(StructureError, match=r"root\(optimality_fn\): expected a tree like the solution"):
        wrong.backward()
    flat = mo.root(lambda x, a: 0 * x + a)(lambda init, a: a.clone())(None, a)
    with pytest.raises(DivergenceError, match=r"root\(solve\): expected a residual <= 1e-06 .* singular"):
        flat.backward()
    one = mo.root(lambda x, a: a * x - a)(lambda init, a: torch.ones_like(a))
    with pytest.raises(DivergenceError, match="at task 1"):
        torch.vmap(torch.func.grad(lambda a: one(None, a)))(torch.tensor([1.0, 0.0]))
