"""What is no function, flag, device, path or sequence is named by the call that takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo
from metaopt.errors import ArgumentError, CheckpointError, MetaoptError, StructureError

SGD = mo.optim.sgd(0.1)
PARAMS = {"w": torch.ones(3)}
BATCH = torch.ones(3)
REMEDY = " Pass the function itself, not its result."


def loss_fn(params: Any, batch: Tensor, *phi: Any) -> Tensor:
    return ((params["w"] - batch) ** 2).sum()


def unroll(**given: Any) -> Any:
    return mo.unroll(
        **{"loss_fn": loss_fn, "opt": SGD, "params": PARAMS, "batch": BATCH, "num_steps": 2} | given
    )


def fit(**given: Any) -> Any:
    return mo.train.fit(lambda p, e: loss_fn(p, e[0]), PARAMS, mo.tasks.sinusoid(), SGD, num_steps=1, **given)


def problem(**given: Any) -> Any:
    return mo.hypergrad.Problem(loss_fn, SGD, BATCH, 2)._replace(**given)


CALLS: dict[str, tuple[Any, type[MetaoptError], str]] = {
    "a loss that is a number": (
        lambda: unroll(loss_fn=3),
        ArgumentError,
        "unroll(loss_fn): expected a function, got int." + REMEDY,
    ),
    "a step of a result": (
        lambda: mo.inner_step(BATCH, SGD, PARAMS, (), BATCH),  # type: ignore[arg-type]
        ArgumentError,
        "inner_step(loss_fn): expected a function, got Tensor." + REMEDY,
    ),
    "φ that is a tensor": (
        lambda: unroll(phi=BATCH),
        ArgumentError,
        "unroll(phi): expected a tuple, (phi,) say",
    ),
    "True for an order": (
        lambda: unroll(order=True),
        ArgumentError,
        "unroll(order): expected 1 or 2, got True",
    ),
    "a number a step": (
        lambda: unroll(per_step_hparams=1),
        ArgumentError,
        "unroll(per_step_hparams): expected True or False, got int",
    ),
    "a map of a number": (
        lambda: mo.map_tasks(3),  # type: ignore[arg-type]
        ArgumentError,
        "map_tasks(fn): expected a function, got int." + REMEDY,
    ),
    "a task without a return": (
        lambda: mo.map_tasks(lambda p, e: None)(torch.ones(1), torch.ones(2)),
        StructureError,
        "map_tasks(fn): expected a tensor as result, got NoneType. Return what the task computed",
    ),
    "a doctor without a loss": (
        lambda: mo.doctor(nn.Linear(1, 1), 3, mo.Episode(BATCH, BATCH)),  # type: ignore[arg-type]
        ArgumentError,
        "doctor(loss_fn): expected a function, got int.",
    ),
    "a doctor of a batch": (
        lambda: mo.doctor(nn.Linear(1, 1), lambda p, b: b.sum(), BATCH),
        ArgumentError,
        "doctor(episode): expected an Episode (support, query), got Tensor.",
    ),
    "one callback": (lambda: fit(callbacks=3), ArgumentError, "fit(callbacks): expected a sequence, got 3."),
    "one writer": (lambda: fit(writers=3), ArgumentError, "fit(writers): expected a sequence, got 3."),
    "a bar of text": (
        lambda: fit(progress="yes"),
        ArgumentError,
        "fit(progress): expected True or False, got 'yes'.",
    ),
    "a folder that is a number": (
        lambda: fit(out=3),
        ArgumentError,
        "fit(out): expected a path or None, got 3.",
    ),
    "a checkpoint that is not there": (
        lambda: mo.train.load("nowhere.pt"),
        CheckpointError,
        "load(checkpoint): expected a checkpoint file, got none at nowhere.pt.",
    ),
    "sinusoids on no device": (
        lambda: mo.tasks.sinusoid(device="text"),
        ArgumentError,
        "sinusoid(device): expected a device of this machine, got 'text'. Take 'cpu'.",
    ),
    "sinusoids of no dtype": (
        lambda: mo.tasks.sinusoid(dtype="float32"),  # type: ignore[arg-type]
        ArgumentError,
        "sinusoid(dtype): expected ",
    ),
    "glyphs on no device": (
        lambda: mo.tasks.glyphs(num_classes=5, device="text"),
        ArgumentError,
        "glyphs(device): expected a device of this machine, got 'text'.",
    ),
    "a problem without a loss": (
        lambda: mo.hypergrad.unrolled(problem(loss_fn=3), PARAMS),
        ArgumentError,
        "Problem(loss_fn): expected a function, got int.",
    ),
    "a problem judged by text": (
        lambda: mo.hypergrad.unrolled(problem(outer_loss="mse"), PARAMS),
        ArgumentError,
        "Problem(outer_loss): expected a function, got str.",
    ),
    "a problem of minus one step": (
        lambda: mo.hypergrad.unrolled(problem(num_steps=-1), PARAMS),
        ArgumentError,
        "Problem(num_steps): expected an integer >= 0, got -1.",
    ),
    "exact of text": (
        lambda: mo.exact("yes"),  # type: ignore[arg-type]
        ArgumentError,
        "exact(always): expected True or False, got str",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_has_a_type_and_a_text(name: str) -> None:
    call, kind, text = CALLS[name]
    with pytest.raises(MetaoptError) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value).startswith(text)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    mo.train.save(str(tmp_path / "c.pt"), {}, 1, PARAMS)
    assert mo.train.load(str(tmp_path / "c.pt")).step == 1
