"""compile=: the same numbers as eager code, no second compilation, and a report where it cannot be done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo

REPLAY = mo.Compile("step", "aot_eager")
WHOLE = mo.Compile("whole", "aot_eager")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    mo.forget_compiled()
    yield
    mo.forget_compiled()


class Problem:
    def __init__(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.apply, self.params, _ = mo.functional(net)
        make = lambda: torch.randn(3, 5, 2, dtype=torch.float64)
        self.episodes = mo.Episode((make(), make()[..., :1]), (make(), make()[..., :1]))

    def loss(self, params: Any, batch: Any, *phi: Tensor) -> Tensor:
        scale = phi[0] if phi else 1.0
        return ((self.apply(params, batch[0]) - batch[1]) * scale).square().mean()

    def gradient(self, meta: Any = None, opt: Any = None, map: Any = None, steps: int = 3, **how: Any) -> Any:
        meta = self.params if meta is None else meta
        task = mo.maml(self.loss, opt or mo.optim.sgd(0.1), steps, **how)
        out = mo.map_tasks(task, **(map or {}))(meta, self.episodes).sum()
        leaves = [x for x in mo.tree.leaves(meta) if isinstance(x, Tensor) and x.requires_grad]
        return [out, *torch.autograd.grad(out, leaves)]


def meta_sgd(problem: Problem) -> mo.Meta:
    """A rate a step, a momentum, and a parameter of the loss, all learned."""
    tensor = lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True)
    hparams = mo.optim.sgd(0.1, momentum=0.9).hparams
    hparams = hparams._replace(lr=tensor([0.1, 0.05, 0.2]), momentum=tensor(0.8))
    return mo.Meta(problem.params, hparams, (tensor(1.3),))


CASES: dict[str, dict[str, Any]] = {
    "vmap": {},
    "loop": {"map": {"how": "loop"}},
    "chunks": {"map": {"chunk_size": 2}},
    "first order": {"order": 1},
    "recomputed": {"memory": "sqrt"},
    "binomial": {"memory": mo.Binomial(2)},
    "adam": {"opt": mo.optim.adam(lr=0.05, eps_root=1e-8)},
    "everything learned": {
        "meta": meta_sgd,
        "opt": mo.optim.sgd(0.1, momentum=0.9),
        "per_step_hparams": True,
    },
}


@pytest.mark.parametrize("way", [REPLAY, WHOLE], ids=lambda way: way.how)
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_meta_gradient_is_the_eager_one(name: str, way: mo.Compile) -> None:
    problem, case = Problem(), dict(CASES[name])
    case["meta"] = case["meta"](problem) if "meta" in case else None
    expected = problem.gradient(**case)
    case["map"] = {**case.get("map", {}), "compile": way}
    found = problem.gradient(**case)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert all(row.run for row in mo.compile_report()), mo.compile_report()


@pytest.mark.parametrize("way", [REPLAY, WHOLE], ids=lambda way: way.how)
def test_nothing_is_compiled_twice(way: mo.Compile) -> None:
    problem = Problem()
    problem.gradient(map={"compile": way})
    before = mo.compile_report()
    found = problem.gradient(map={"compile": way})  # a new task_loss over the same loss
    assert [id(row) for row in mo.compile_report()] == [id(row) for row in before]
    problem.gradient(map={"compile": way}, steps=6)
    # the step is the same for any number of them, and the whole is not
    assert len(mo.compile_report()) - len(before) == (1 if way is WHOLE else 0)
    torch.testing.assert_close(found, problem.gradient(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("how", ["step", "whole"])
def test_inductor_generates_the_same_numbers(how: Any) -> None:
    problem = Problem()
    found = problem.gradient(map={"compile": how}, steps=4)
    torch.testing.assert_close(found, problem.gradient(steps=4), rtol=1e-10, atol=1e-10)
    assert {row.backend for row in mo.compile_report() if row.run} == {"inductor"}


def test_auto_measures_and_keeps_the_numbers() -> None:
    problem = Problem()
    found = problem.gradient(map={"compile": mo.Compile("auto", "aot_eager")})
    torch.testing.assert_close(found, problem.gradient(), rtol=1e-10, atol=1e-10)
    names = {row.name for row in mo.compile_report()}
    assert names == {"unroll step", "unroll step, derivative", "map_tasks"}


def test_running_statistics_are_threaded_through_compiled_steps() -> None:
    torch.manual_seed(0)
    apply, params, buffers = mo.functional(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double())
    x = torch.randn(4, 6, 2, dtype=torch.float64)

    def loss(params: Any, batch: Any, buffers: Any) -> Any:
        y, buffers = apply.with_buffers(params, buffers, batch)
        return (y.sin() - 1).square().mean(), buffers

    def run(compile: Any) -> Any:
        out = mo.unroll(loss, mo.optim.sgd(0.1), params, x, buffers=buffers, compile=compile)
        total = out.losses.sum() + out.buffers["1.running_var"].sum()
        return [out.losses, *out.buffers.values(), *torch.autograd.grad(total, list(params.values()))]

    torch.testing.assert_close(run(REPLAY), run(False), rtol=1e-10, atol=1e-10)
    assert mo.compile_report()[0].run is not None


def test_captured_tensors_are_read_at_every_call_and_differentiated() -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    loss = lambda p, b: (scale * p - b) ** 2
    theta, b = torch.tensor(1.0), torch.tensor(3.0)

    def run(compile: Any) -> Any:
        out = mo.unroll(loss, mo.optim.sgd(0.1), theta, b, num_steps=2, compile=compile).params
        return out, torch.autograd.grad(out, scale)[0]

    torch.testing.assert_close(run(REPLAY), run(False))
    before = len(mo.compile_report())
    with torch.no_grad():
        scale.add_(1.0)
    torch.testing.assert_close(run(REPLAY), run(False))
    assert len(mo.compile_report()) == before


def test_a_captured_number_that_changes_is_compiled_again() -> None:
    def run(rate: float, compile: Any) -> Tensor:
        loss = lambda p, b: rate * p**2
        theta = torch.tensor(1.0)
        return mo.unroll(loss, mo.optim.sgd(0.1), theta, (), num_steps=2, compile=compile).params

    for rate in (1.0, 2.0, 1.0):
        torch.testing.assert_close(run(rate, REPLAY), run(rate, False))
    assert len(mo.compile_report()) == 2


def test_what_cannot_be_traced_stays_eager_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    loss = lambda p, b: p**2 if (b > 0).item() else p**4
    theta, b = torch.tensor(1.0, requires_grad=True), torch.tensor(1.0)
    with caplog.at_level(logging.WARNING, "metaopt"):
        out = mo.unroll(loss, mo.optim.sgd(0.1), theta, b, num_steps=2, compile=REPLAY).params
        mo.unroll(loss, mo.optim.sgd(0.1), theta, b, num_steps=2, compile=REPLAY)
    assert out.item() == pytest.approx(0.64)
    (row,) = mo.compile_report()
    assert row.run is None
    assert "eager" in repr(row)
    assert len(caplog.records) == 1  # said once
    assert row.reason in caplog.text


def test_draws_of_torchs_generator_stay_eager() -> None:
    loss = lambda p, b: (p * torch.rand(())).square()
    theta = torch.tensor(1.0)
    mo.unroll(loss, mo.optim.sgd(0.1), theta, (), num_steps=2, compile=REPLAY)
    assert "seed" in mo.compile_report()[0].reason


def test_a_derivative_of_torch_func_around_it_is_right_and_eager() -> None:
    problem = Problem()
    task = mo.maml(problem.loss, mo.optim.sgd(0.1), 2)
    total = lambda compile: lambda p: mo.map_tasks(task, compile=compile)(p, problem.episodes).sum()
    found = torch.func.grad(total(REPLAY))(problem.params)
    expected = torch.func.grad(total(False))(problem.params)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not mo.compile_report()


def test_a_second_derivative_of_compiled_code_is_refused() -> None:
    theta = torch.tensor(1.0, requires_grad=True)
    out = mo.unroll(lambda p, b: p**4, mo.optim.sgd(0.1), theta, (), num_steps=2, compile=REPLAY).params
    twice = lambda: torch.autograd.grad(torch.autograd.grad(out, theta, create_graph=True)[0], theta)
    with pytest.raises(RuntimeError, match=r"unroll\(compile\): expected one derivative, got a second"):
        twice()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_backward_pass_may_be_taken_twice(backend: str) -> None:
    theta = torch.tensor(1.0, requires_grad=True)
    way = mo.Compile("step", backend)
    loss = lambda p, b: (p**4).exp().sin()
    for _ in range(2):  # also after one that was taken once
        out = mo.unroll(loss, mo.optim.sgd(0.1), theta, (), num_steps=2, compile=way).params
        first, second = (torch.autograd.grad(out, theta, retain_graph=keep) for keep in (True, False))
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("choice", ["all", 3, mo.Compile("none")])  # type: ignore[arg-type]
def test_other_choices_are_refused(choice: Any) -> None:
    with pytest.raises(mo.errors.ArgumentError, match=r"map_tasks\(compile\): expected 'step', 'whole'"):
        mo.map_tasks(lambda p, e: p, compile=choice)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_give_the_loops_gradient(workers: int) -> None:
    problem = Problem()
    expected = problem.gradient(map={"how": "loop"})
    found = problem.gradient(map={"how": "loop", "workers": workers})
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": True}, {"workers": 2, "compile": "step"}])
def test_bad_workers_are_refused(options: Any) -> None:
    with pytest.raises(mo.errors.ArgumentError, match=r"map_tasks\(workers\): expected"):
        mo.map_tasks(lambda p, e: p, **options)


@pytest.mark.parametrize("held", ["tensor", "module"])
def test_workers_refuse_what_would_lose_its_gradient(held: str) -> None:
    scale = torch.tensor(2.0, requires_grad=True) if held == "tensor" else nn.Linear(1, 1)
    fn = lambda p, e: (scale * p * e if isinstance(scale, Tensor) else scale(p * e)).sum()
    mapped = mo.map_tasks(fn, how="loop", workers=2)
    with pytest.raises(mo.errors.CaptureError, match=r"map_tasks\(fn\)"):
        mapped(torch.ones(1), torch.ones(4, 1))


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}])
def test_workers_draw_from_a_seed(options: Any) -> None:
    fn = lambda p, e: (p * torch.rand(3) * e).sum()
    theta = torch.ones((), requires_grad=True)

    def run(**more: Any) -> Any:
        out = mo.map_tasks(fn, how="loop", **options, **more)(theta, torch.ones(4))
        return out, torch.autograd.grad(out.sum(), theta)

    torch.testing.assert_close(run(workers=2, seed=3), run(seed=3))
    with pytest.raises(mo.errors.ArgumentError, match=r"map_tasks\(seed\): expected a seed"):
        run(workers=2)


def test_tangents_of_known_zeros_stay_eager() -> None:
    """torch takes the process down where a number times known zeros is compiled."""
    mo.forget_compiled()
    zeros = torch.zeros(3)

    def slope(w: Any, x: Any) -> Any:
        f = lambda w: torch.add(w * x, zeros, alpha=0.9).sum()
        return torch.func.jvp(f, (w,), (torch.ones_like(w),))[1]

    w, x = torch.randn(3), torch.randn(2, 3)
    whole = mo.Compile("whole", "aot_eager")
    torch.testing.assert_close(mo.map_tasks(slope, compile=whole)(w, x), x.sum(1))
    assert "known zeros" in mo.compile_report()[-1].reason
