"""What a newcomer gets wrong at the door: one error that names its argument, and nothing ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import metaopt as mo
from metaopt import stateful
from metaopt.errors import MetaoptError

MODEL = nn.Linear(3, 1)
SGD = torch.optim.SGD(MODEL.parameters(), lr=0.1)
ADAM = torch.optim.Adam(MODEL.parameters(), lr=0.1)
CHAIN = mo.optim.chain(mo.optim.clip_by_global_norm(1.0), mo.optim.sgd(0.1))
X = torch.ones(5, 3)


def door(opt: Any = SGD, step: dict[str, Any] | None = None, **settings: Any) -> Any:
    with stateful.innerloop_ctx(MODEL, opt, **settings) as (fmodel, diffopt):
        return diffopt.step(fmodel(X).square().mean(), **(step or {}))


def put(rule: Any) -> None:
    stateful.register_optim("SGD", rule)  # type: ignore[arg-type]


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a function": (lambda: door(mo.optim.sgd), r"get_diff_optim\(opt\): .* got function"),
    "nothing": (lambda: door(None), r"get_diff_optim\(opt\): .* got NoneType"),
    "no optimizers": (lambda: door([]), r"innerloop_ctx\(opt\)"),
    "override without names": (
        lambda: door(CHAIN, override={"lr": 0.9}),
        r"step\(override\): .*whose hparams",
    ),
    "override list": (lambda: door(override=[0.1]), r"step\(override\): expected a dict"),
    "override None": (lambda: door(override={"lr": None}), r"step\(override\): .* got NoneType at 'lr'"),
    "one beta": (lambda: door(ADAM, override={"betas": (0.9,)}), r"step\(override\): expected a tuple of 2"),
    "a beta": (
        lambda: door(ADAM, override={"betas": 0.9}),
        r"step\(override\): expected a tuple of 2, got 0\.9",
    ),
    "callback None": (lambda: door(grad_callback=lambda g: None), r"step\(grad_callback\): .* got NoneType"),
    "callback short": (lambda: door(grad_callback=lambda g: g[:1]), r"step\(grad_callback\): expected 2"),
    "params short": (lambda: door(step={"params": [MODEL.weight]}), r"step\(params\): expected 2 tensors"),
    "params dict": (
        lambda: door(step={"params": dict(MODEL.named_parameters())}),
        r"step\(params\): expected 2 tensors, got 2 entries of \['str'\]",
    ),
    "an instance": (
        lambda: stateful.create_diff_optim(SGD, {"lr": 0.1}, [X]),
        r"create_diff_optim\(opt_type\)",
    ),  # type: ignore[arg-type]
    "no params": (
        lambda: stateful.create_diff_optim(torch.optim.SGD, {}, []),
        r"create_diff_optim\(params\)",
    ),
    "a name": (lambda: put(mo.optim.sgd), r"register_optim\(opt_type\)"),
    "trainable of a model": (
        lambda: stateful.get_trainable_opt_params(MODEL),  # type: ignore[arg-type]
        r"get_trainable_opt_params\(opt\)",
    ),
    "no list": (
        lambda: stateful.apply_trainable_opt_params(SGD, {"lr": torch.tensor(1.0)}),
        r"apply_trainable_opt_params\(override\): .* got Tensor at 'lr'",
    ),
    "MAML live": (lambda: stateful.MAML(MODEL, opt=SGD), r"MAML\(opt\)"),  # type: ignore[arg-type]
    "torchopt of a model": (lambda: stateful.torchopt.MetaSGD(MODEL, lr=0.1), r"MetaOptimizer\(net\)"),
    "apply swapped": (lambda: mo.functional(MODEL)[0](X, X), r"apply\(params\): .* got Tensor"),  # type: ignore[arg-type]
    "masked live": (lambda: mo.optim.masked(SGD, True), r"masked\(opt\)"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_call_is_one_error_that_names_its_argument(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(MetaoptError, match=message):
        call()


def test_parameters_of_the_module_alone_where_asked_for() -> None:
    """``recurse=False`` was ignored."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.ones(())), nn.Linear(3, 1)

    model = Scaled()
    fmodel = stateful.monkeypatch(model)
    assert [p.shape for p in fmodel.parameters(recurse=False)] == [
        p.shape for p in model.parameters(recurse=False)
    ]
    assert [name for name, _ in fmodel.named_parameters(recurse=False)] == ["scale"]
    assert len(list(fmodel.parameters())) == 3
