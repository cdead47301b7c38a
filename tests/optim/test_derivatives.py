"""Derivatives of every row: gradcheck, gradgradcheck, and finite ones where gradients are zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BY_NAME, EVERY, Case
from optim_trees import grads_at, run
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import metaopt as mo
from metaopt import tree

Flat = list[Tensor]


def small(case: Case) -> Any:
    g = torch.Generator().manual_seed(3)
    params = {"w": torch.randn(2, 2, generator=g, dtype=torch.float64)}
    return params if case.matrices else params | {"b": torch.randn(2, generator=g, dtype=torch.float64)}


def numbers(opt: mo.Optimizer) -> dict[str, float]:
    """The hyperparameters that are switched on, by path."""
    named = zip(tree.paths(opt.hparams), tree.leaves(opt.hparams), strict=True)
    return {k: v for k, v in named if isinstance(v, float) and v != 0}


def replaced(opt: mo.Optimizer, new: dict[str, Tensor]) -> Any:
    leaves, structure = tree.flatten(opt.hparams)
    named = zip(tree.paths(opt.hparams), leaves, strict=True)
    return tree.unflatten(structure, [new.get(k, v) for k, v in named])


def closed_over(case: Case, wrt: str, warm: int) -> tuple[Callable[..., tuple[Tensor, ...]], Flat]:
    """One step after ``warm`` others, as a function of one of its arguments, and that argument."""
    opt = case.make(**case.smooth)
    params = small(case)
    params, state = run(opt, params, warm)
    args = {"params": params, "state": state, "grads": grads_at(params, 7)}
    live = args | {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers(opt).items()}
    leaves, structure = tree.flatten(live[wrt])
    counters = {
        id(x)
        for path, x in zip(tree.paths(live[wrt]), leaves, strict=True)
        if wrt == "state" and path.endswith(("step", "key"))
    }
    moving = [x.detach().clone().requires_grad_() for x in leaves if id(x) not in counters]

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        full = tree.unflatten(structure, [x if id(x) in counters else next(given) for x in leaves])
        now = args | ({wrt: full} if wrt in args else {})
        hparams = opt.hparams if wrt in args else replaced(opt, {wrt: full})
        out = opt.update(now["params"], now["state"], now["grads"], hparams)
        return tuple(x for x in tree.leaves(out) if x.requires_grad)

    return step, moving


SAME = ("params", "state", "grads")
ROWS = [
    pytest.param(case, wrt, warm, id=f"{case.name}-{wrt}-{'warm' if warm else 'first'}")
    for case in EVERY
    for warm in (0, case.warm)
    for wrt in (*SAME, *numbers(case.make(**case.smooth)))
    if warm or wrt not in ("state", *case.kinks)
]


@pytest.mark.parametrize(("case", "wrt", "warm"), ROWS)
def test_gradcheck(case: Case, wrt: str, warm: int) -> None:
    step, inputs = closed_over(case, wrt, warm)
    if not inputs:
        assert wrt == "state", "an optimizer without state"
    elif not step(*inputs):
        assert (case.name, wrt) in FLAT, "nothing depends on it"
    else:
        assert gradcheck(step, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


# Not read: after the first step, before it, or where a schedule takes its place.
FLAT = {("adagrad", "initial_accumulator_value"), ("exponential", "inner.momentum")} | {
    (name, "inner.lr") for name in ("scheduled", "one_cycle", "piecewise", "linear", "constant")
}


@pytest.mark.parametrize(
    ("case", "wrt", "warm"),
    [row for row in ROWS if not (row.values[2] and row.values[1] in row.values[0].folds)],
)
def test_gradgradcheck(case: Case, wrt: str, warm: int) -> None:
    step, inputs = closed_over(case, wrt, warm)
    first = [
        torch.autograd.grad(y.sum(), inputs, create_graph=True, allow_unused=True) for y in step(*inputs)
    ]
    if any(g is not None and g.requires_grad for gs in first for g in gs):
        assert gradgradcheck(step, inputs, eps=1e-6, atol=1e-5, rtol=1e-3)
    else:  # linear
        assert not any(g.requires_grad for gs in first for g in gs if g is not None)


def test_there_are_enough() -> None:
    assert len(ROWS) >= 200


@pytest.mark.parametrize("case", EVERY, ids=lambda c: c.name)
@pytest.mark.parametrize("defaults", [True, False])
def test_finite_at_zero_gradient(case: Case, defaults: bool) -> None:
    opt = case.make(**({} if defaults else case.smooth))
    params = small(case) if defaults else tree.zeros_like(small(case))
    live = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in numbers(opt).items()}
    params = tree.map(lambda p: p.requires_grad_(), params)
    grads = tree.map(lambda p: torch.zeros_like(p).requires_grad_(), params)
    new, state = params, opt.init(params)
    for _ in range(2):
        new, state = opt.update(new, state, grads, replaced(opt, live))
    outputs = [x for x in tree.leaves((new, state)) if x.requires_grad]
    inputs = [*tree.leaves(params), *tree.leaves(grads), *live.values()]
    assert all(x.isfinite().all() for x in outputs)
    first = torch.autograd.grad(sum(x.sum() for x in outputs), inputs, create_graph=True, allow_unused=True)
    first = [g for g in first if g is not None]
    assert all(g.isfinite().all() for g in first)
    curved = [g for g in first if g.requires_grad]
    if curved:
        second = torch.autograd.grad(sum(g.sum() for g in curved), inputs, allow_unused=True)
        assert all(g.isfinite().all() for g in second if g is not None)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "nadam", "radam"])
@pytest.mark.parametrize("field", ["weight_decay", "momentum"])
def test_a_tensor_that_is_zero_is_switched_on(name: str, field: str) -> None:
    """higher gives None for weight_decay at 0; the slope there is not zero."""
    case = BY_NAME[name]
    if field not in case.make().hparams._fields:
        pytest.skip("it has none")
    params = small(case)

    def loss(value: Tensor) -> Tensor:
        opt = case.make(**{field: value})
        new, _ = run(opt, params, 3)
        return sum((p**2).sum() for p in tree.leaves(new))

    value = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(value), value)
    h = 1e-6
    difference = (
        loss(torch.tensor(h, dtype=torch.float64)) - loss(torch.tensor(-h, dtype=torch.float64))
    ) / (2 * h)
    assert slope.abs() > 1e-6
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("field", ["beta1", "beta2"])
def test_beta_has_the_right_sign(name: str, field: str) -> None:
    """higher's derivative with respect to beta2 is −1.2198 where +0.00112 is right."""
    opt = BY_NAME[name].make(lr=0.1)

    def loss(beta: Tensor) -> Tensor:
        hparams = opt.hparams._replace(**{field: beta})
        new, _ = run(opt, small(BY_NAME[name]), 4, hparams)
        return sum((p**2).sum() for p in tree.leaves(new))

    beta = torch.tensor(getattr(opt.hparams, field), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(beta), beta)
    difference = (loss(beta.detach() + 1e-6) - loss(beta.detach() - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-9)


def test_adams_first_step() -> None:
    """du/dg = −α·ε/(|g|+ε)²."""
    opt = mo.optim.adam(lr=0.1, eps=0.01)
    p = torch.tensor([1.0, 2.0], dtype=torch.float64)
    g = torch.tensor([0.3, -0.02], dtype=torch.float64, requires_grad=True)
    new, _ = opt.update(p, opt.init(p), g, opt.hparams)
    (slope,) = torch.autograd.grad(new.sum(), g)
    torch.testing.assert_close(slope, -0.1 * 0.01 / (g.detach().abs() + 0.01) ** 2, rtol=1e-12, atol=0)
