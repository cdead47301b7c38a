"""What is refused: numbers out of range, trees that differ, states and hyperparameters of another rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, Case
from optim_trees import make_params

import metaopt as mo
from metaopt.errors import ArgumentError, MetaoptError, StructureError

o = mo.optim
each_rule = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)

NONNEGATIVE = ("lr", "eps", "weight_decay", "momentum", "dampening", "lr_decay", "eps_root", "rho")
NONNEGATIVE += ("initial_accumulator_value", "momentum_decay", "trust_coefficient", "weight_lr_power")
BELOW_ONE = ("beta1", "beta2", "beta3", "alpha", "rho")
OUT_OF_RANGE = [
    (case, field, value)
    for case in CASES
    for field in case.make(**case.smooth).hparams._fields
    for value in ([-0.1] if field in NONNEGATIVE else [])
    + ([-0.1, 1.5] if field in BELOW_ONE and (case.name, field) != ("asgd", "alpha") else [])
]


@pytest.mark.parametrize(("case", "field", "value"), OUT_OF_RANGE, ids=lambda v: getattr(v, "name", str(v)))
def test_numbers_out_of_range(case: Case, field: str, value: float) -> None:
    opt = case.make(**case.smooth)
    params = make_params(matrices=case.matrices)
    bad = opt.hparams._replace(**{field: value})
    with pytest.raises(
        ArgumentError, match=rf"^{case.name}\({field}\): expected a number >= 0.*, got {value}"
    ):
        opt.update(params, opt.init(params), params, bad)


@each_rule
def test_a_negative_rate_at_the_factory(case: Case) -> None:
    with pytest.raises(
        ArgumentError, match=rf"^{case.name}\(lr\): expected a number >= 0, a tensor or a tree, got -1.0\."
    ):
        case.make(lr=-1.0)
    with pytest.raises(ValueError, match=r"got '0\.1'"):
        case.make(lr="0.1")


@each_rule
def test_a_gradient_tree_that_lacks_a_leaf(case: Case) -> None:
    opt, params = case.make(), make_params(matrices=case.matrices)
    key = sorted(params)[0]
    grads = {k: v for k, v in params.items() if k != key}
    with pytest.raises(
        StructureError, match=rf"{case.name}\.update\(grads\): expected .*, got none at \['{key}'\]"
    ):
        opt.update(params, opt.init(params), grads, opt.hparams)


@each_rule
def test_a_gradient_of_another_shape(case: Case) -> None:
    opt, params = case.make(), make_params(matrices=case.matrices)
    key = "tall" if case.matrices else "w"
    text = rf"{case.name}\.update\(grads\): expected shape \[\d, 3\], got \[7\] at \['{key}'\]"
    with pytest.raises(StructureError, match=text):
        opt.update(params, opt.init(params), params | {key: torch.ones(7)}, opt.hparams)


@each_rule
def test_the_state_of_another_optimizer(case: Case) -> None:
    opt, params = case.make(), make_params(matrices=case.matrices)
    other = o.sgd() if case.name != "sgd" else o.asgd()
    kind = type(opt.init(params)).__name__
    with pytest.raises(
        StructureError, match=rf"{case.name}.*update\(state\): expected {kind}, got \w+State\. Start"
    ):
        opt.update(params, other.init(params), params, opt.hparams)


@each_rule
def test_the_hparams_of_another_optimizer(case: Case) -> None:
    opt, params = case.make(), make_params(matrices=case.matrices)
    other = o.sgd() if case.name != "sgd" else o.asgd()
    kind = type(opt.hparams).__name__
    with pytest.raises(
        StructureError, match=rf"{case.name}.*update\(hparams\): expected {kind}, got \w+HParams\."
    ):
        opt.update(params, opt.init(params), params, other.hparams)


@each_rule
def test_the_state_of_other_params(case: Case) -> None:
    opt, params = case.make(**case.smooth), make_params(matrices=case.matrices)
    key = "tall" if case.matrices else "w"
    state = opt.init(params | {key: torch.ones(9, 9, dtype=torch.float64)})
    moments = [f for f in state._fields if isinstance(getattr(state, f), dict)]
    shaped = [f for f in moments if getattr(getattr(state, f)[key], "shape", ()) == (9, 9)]
    if not shaped:
        assert case.name in (
            "sign_sgd",
            "proximal_sgd",
            "mirror_descent",
            "preconditioned_sgd",
            "adafactor",
            "lbfgs",
        )
        return
    text = rf"update\(state\.{shaped[0]}\): expected shape \[\d, 3\], got \[9, 9\] at \['{key}'\]\. This is"
    with pytest.raises(StructureError, match=text):
        opt.update(params, state, params, opt.hparams)


@each_rule
def test_rates_of_the_wrong_shape(case: Case) -> None:
    opt, params = case.make(**case.smooth), make_params(matrices=case.matrices)
    key = "tall" if case.matrices else "w"
    rates = {k: 0.1 if not isinstance(v, list) else mo.tree.map(lambda _: 0.1, v) for k, v in params.items()}
    state = opt.init(params)
    with pytest.raises(MetaoptError, match=rf"{case.name}\.update\(hparams\.lr\): expected"):
        opt.update(params, state, params, opt.hparams._replace(lr=torch.ones(5)))
    if case.couples_leaves:
        return
    text = rf"hparams\.lr\): expected a number or .* broadcasts to \[\d, 3\], got \[2\] at \['{key}'\]"
    with pytest.raises(StructureError, match=text):
        opt.update(params, state, params, opt.hparams._replace(lr=rates | {key: torch.ones(2)}))


@each_rule
@pytest.mark.parametrize(
    ("leaf", "got"), [(torch.ones(2, 2).long(), "torch.int64"), (None, "None"), (1.0, "float")]
)
def test_what_is_no_parameter(case: Case, leaf: Any, got: str) -> None:
    opt = case.make()
    text = rf"{case.name}\.init\(params\): expected a (real )?floating-point tensor, got {got} at \['x'\]"
    with pytest.raises(StructureError, match=text):
        opt.init({"a": torch.ones(2, 2), "x": leaf})


SINGLE: list[tuple[Any, str]] = [
    (lambda: o.sgd(nesterov=True), r"sgd\(nesterov\): expected momentum > 0 and dampening = 0"),
    (lambda: o.sgd(momentum=0.9, dampening=0.1, nesterov=True), r"sgd\(nesterov\)"),
    (
        lambda: o.rprop(etas=(1.2, 0.5)),
        r"rprop\(etas\): expected 0 < etas\[0\] < 1 < etas\[1\], got \(1.2, 0.5\)",
    ),
    (lambda: o.adafactor(beta2_decay=0.5), r"adafactor\(beta2_decay\): expected a number <= 0"),
    (lambda: o.adafactor(d=0.5), r"adafactor\(d\): expected a number >= 1"),
    (
        lambda: o.muon(adjust_lr_fn="x"),
        r"muon\(adjust_lr_fn\): expected 'original', 'match_rms_adamw' or None",
    ),
    (lambda: o.muon(ns_steps=100), r"muon\(ns_steps\): expected an integer >= 0 and < 100, got 100"),
    (lambda: o.muon(ns_coefficients=(1.0, 2.0)), r"muon\(ns_coefficients\): expected three numbers"),
    (
        lambda: o.muon().init({"b": torch.ones(3)}),
        r"muon\.init\(params\): expected a real matrix, got shape \[3\].* at \['b'\]",
    ),
    (
        lambda: o.mirror_descent(geometry="x"),
        r"mirror_descent\(geometry\): expected 'entropy' or 'simplex', got 'x'",
    ),
    (lambda: o.lbfgs(history_size=0), r"lbfgs\(history_size\): expected an integer >= 1, got 0"),
    (lambda: o.adam(lr=True), r"adam\(lr\): expected a number >= 0, a tensor or a tree, got True"),
    (lambda: o.adam(lr=float("nan")), r"adam\(lr\): expected a number >= 0, a tensor or a tree, got nan"),
    (lambda: o.sm3(beta2=1.5), r"sm3\(beta2\): expected a number >= 0 and"),
]


@pytest.mark.parametrize(("call", "text"), SINGLE)
def test_single_arguments(call: Any, text: str) -> None:
    with pytest.raises(MetaoptError, match=text):
        call()


@pytest.mark.parametrize("value", [0.9, torch.tensor(0.9)])
def test_momentum_that_was_switched_off(value: Any) -> None:
    for opt in (o.sgd(), o.rmsprop()):
        p = torch.ones(1)
        with pytest.raises(
            ArgumentError, match=r"update\(hparams.momentum\): expected 0, since .* keeps no momentum_buffer"
        ):
            opt.update(p, opt.init(p), p, opt.hparams._replace(momentum=value))


@pytest.mark.parametrize("rows", [[(2, 2)], [(2, 2), (4, 4)], [(2, 3), (3, 3)]])
def test_preconditioners_that_do_not_fit(rows: list[tuple[int, int]]) -> None:
    matrices = {"w": tuple(torch.ones(r) for r in rows)}
    opt = o.preconditioned_sgd(0.1, matrices)
    p = {"w": torch.ones(2, 3)}
    with pytest.raises(
        StructureError,
        match=r"preconditioner\): expected matrices of shapes \[\[2, 2\], \[3, 3\]\].* at \['w'\]",
    ):
        opt.update(p, opt.init(p), p, opt.hparams)


def test_there_are_at_least_as_many_as_torch_has() -> None:
    assert len(OUT_OF_RANGE) + 11 * len(CASES) >= 124 * 2
