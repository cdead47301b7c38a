"""from_torch and to_torch: the live optimizer goes on as if nothing had happened."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASES, Case, Options
from test_parity import default_dtype
from torch import Tensor, nn

import metaopt as mo
from metaopt import tree
from metaopt.errors import ArgumentError, StructureError

LIVE = [case for case in CASES if case.peer is not None]
ROWS = [
    pytest.param(case, options, id=f"{case.name}-{i}")
    for case in LIVE
    for i, options in enumerate((case.options[0], case.options[len(case.options) // 2], case.options[-1]))
]


def build(case: Case, options: Options) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model, and an optimizer with two groups that differ in their rates."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=not case.matrices))
    model.double()
    first, *rest = model.parameters()
    groups = [{"params": rest}, {"params": [first], "lr": 0.07}]
    return model, case.peer(groups, **{"lr": 0.03} | options)


def give_gradients(model: nn.Module, step: int, skip: tuple[str, ...] = ()) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(100 + step)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = None if name in skip else noise.to(p.dtype) + 0.2 * p.detach()
    return {name: p.grad for name, p in model.named_parameters()}


def torch_steps(model: nn.Module, opt: Any, steps: range, skip: tuple[str, ...] = ()) -> None:
    with default_dtype(torch.float64):
        for step in steps:
            give_gradients(model, step, skip)
            opt.step()


def our_steps(model: nn.Module, out: Any, steps: range) -> tuple[Any, Any]:
    """The same steps from what `from_torch` returned; the gradients depend on the parameters."""
    shadow = copy.deepcopy(model)
    params, state = tree.detach(out.params), out.state
    for step in steps:
        for name, p in shadow.named_parameters():
            p.data = params[name].clone()
        params, state = out.optimizer.update(
            params, state, give_gradients(shadow, step), out.optimizer.hparams
        )
    return params, state


@pytest.mark.parametrize("warm", [0, 1, 4])
@pytest.mark.parametrize(("case", "options"), ROWS)
def test_goes_on_as_torch_would(case: Case, options: Options, warm: int) -> None:
    model, live = build(case, options)
    torch_steps(model, live, range(warm))
    params, _ = our_steps(model, mo.optim.from_torch(live, model), range(warm, warm + 4))
    torch_steps(model, live, range(warm, warm + 4))
    for name, p in model.named_parameters():
        torch.testing.assert_close(params[name], p.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize(("case", "options"), ROWS)
def test_round_trip_loses_nothing(case: Case, options: Options, warm: int) -> None:
    model, live = build(case, options)
    torch_steps(model, live, range(warm))
    before = copy.deepcopy(live.state_dict())
    out = mo.optim.from_torch(live, model)
    mo.optim.to_torch(live, out.params, out.state, out.optimizer.hparams, model)
    after = live.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for key, saved in before["state"].items():
        assert saved.keys() == after["state"][key].keys()
        for name, value in saved.items():
            now = after["state"][key][name]
            assert type(value) is type(now)
            if isinstance(value, Tensor):
                torch.testing.assert_close(now, value, rtol=0, atol=0)


@pytest.mark.parametrize(("case", "options"), ROWS)
def test_torch_goes_on_as_ours_would(case: Case, options: Options) -> None:
    model, live = build(case, options)
    torch_steps(model, live, range(2))
    twin_model, twin = copy.deepcopy((model, live))
    out = mo.optim.from_torch(live, model)
    with default_dtype(torch.float64):
        params, state = our_steps(model, out, range(2, 5))
        mo.optim.to_torch(live, params, state, out.optimizer.hparams, model)
    torch_steps(model, live, range(5, 8))
    torch_steps(twin_model, twin, range(2, 8))
    for p, q in zip(model.parameters(), twin_model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", LIVE, ids=lambda c: c.name)
def test_a_parameter_without_gradient_keeps_its_own_count(case: Case) -> None:
    model, live = build(case, case.options[0])
    torch_steps(model, live, range(2), skip=("2.weight",))
    torch_steps(model, live, range(2, 3))
    params, _ = our_steps(model, mo.optim.from_torch(live, model), range(3, 6))
    torch_steps(model, live, range(3, 6))
    for name, p in model.named_parameters():
        torch.testing.assert_close(params[name], p.detach(), rtol=1e-12, atol=1e-12)


def test_without_a_model_params_are_a_list() -> None:
    ps = [
        nn.Parameter(torch.ones(2)),
        nn.Parameter(torch.ones(3), requires_grad=False),
        nn.Parameter(torch.ones(1)),
    ]
    live = torch.optim.Adam([{"params": ps[:2]}, {"params": ps[2:], "lr": 1.0}])
    opt, params, state = mo.optim.from_torch(live)
    assert [p.shape for p in params] == [ps[0].shape, ps[2].shape]
    new, state = opt.update(params, state, [torch.ones(2), torch.ones(1)], opt.hparams)
    torch.testing.assert_close(new, [torch.full((2,), 1 - 1e-3), torch.zeros(1)])
    mo.optim.to_torch(live, new, state)
    assert float(live.state[ps[2]]["step"]) == 1
    assert ps[1] not in live.state


def test_names_are_those_of_functional() -> None:
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Linear(2, 2), "frozen": nn.Linear(2, 1)})
    model["c"].weight = layer.weight
    model["frozen"].requires_grad_(False)
    _, expected, _ = mo.functional(model)
    out = mo.optim.from_torch(torch.optim.SGD(model.parameters()), model)
    assert list(out.params) == list(expected)
    assert all(out.params[k] is expected[k] for k in expected)


def test_parameters_in_no_group_stay() -> None:
    model = nn.Linear(2, 2)
    opt, params, state = mo.optim.from_torch(torch.optim.SGD([model.weight], lr=1.0), model)
    new, _ = opt.update(params, state, tree.map(torch.ones_like, params), opt.hparams)
    assert new["bias"] is model.bias
    torch.testing.assert_close(new["weight"], model.weight - 1)


def test_learned_hparams_get_gradients_and_are_written_back() -> None:
    model = nn.Linear(2, 1).double()
    live = torch.optim.Adam(model.parameters(), lr=0.1)
    opt, params, state = mo.optim.from_torch(live, model)
    lr = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    hparams = (opt.hparams[0]._replace(lr=lr),)
    new, state = opt.update(params, state, tree.map(torch.ones_like, params), hparams)
    (slope,) = torch.autograd.grad(sum(p.sum() for p in new.values()), lr)
    torch.testing.assert_close(slope, torch.tensor(-3.0, dtype=torch.float64), rtol=1e-6, atol=0)
    mo.optim.to_torch(live, new, state, hparams, model)
    assert live.param_groups[0]["lr"] == pytest.approx(0.2)
    assert isinstance(live.param_groups[0]["lr"], float)


def test_a_subclass_is_taken_for_its_class() -> None:
    class MyAdamW(torch.optim.AdamW):
        pass

    p = nn.Parameter(torch.ones(1))
    opt, _, _ = mo.optim.from_torch(MyAdamW([p]))
    assert opt.hparams[0].weight_decay == 1e-2


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_an_unknown_class_is_named(make: Any) -> None:
    live = make([nn.Parameter(torch.ones(1))])
    with pytest.raises(
        ArgumentError, match=rf"from_torch\(optimizer\): expected one of .* got {make.__name__}\."
    ):
        mo.optim.from_torch(live)


def test_an_optimizer_of_another_model_is_refused() -> None:
    live = torch.optim.SGD(nn.Linear(2, 3).parameters())
    with pytest.raises(ArgumentError, match=r"from_torch\(model\).*param_groups\[0\]\['params'\]\[0\]"):
        mo.optim.from_torch(live, nn.Linear(2, 3))


def test_to_torch_refuses_what_does_not_fit() -> None:
    model = nn.Linear(2, 3)
    live = torch.optim.SGD(model.parameters())
    opt, params, state = mo.optim.from_torch(live, model)
    with pytest.raises(StructureError, match=r"to_torch\(params\): .* none at \['weight'\]"):
        mo.optim.to_torch(live, {"bias": params["bias"]}, state, model=model)
    with pytest.raises(StructureError, match=r"to_torch\(state\): expected a state for each of 1 groups"):
        mo.optim.to_torch(live, params, state[0]._asdict(), model=model)
    rates = (opt.hparams[0]._replace(lr=params),)
    with pytest.raises(ArgumentError, match=r"to_torch\(hparams.lr\): expected a number or a 0-d tensor"):
        mo.optim.to_torch(live, params, state, rates, model)
