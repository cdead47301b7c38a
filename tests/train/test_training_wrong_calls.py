"""What a newcomer gets wrong at the doors of training is named, and a run is not continued as another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import metaopt as mo
from metaopt import train
from metaopt.errors import ArgumentError, CheckpointError

MEAN = mo.map_tasks(lambda p, e: (p - e) ** 2)


def fit(**options: Any) -> Any:
    return train.fit(MEAN, torch.tensor(0.0), lambda step: torch.ones(2), num_steps=1, **options)


def evaluate(**options: Any) -> Any:
    config = train.config_for("sinusoid")
    problem = train.make_problem(config)
    return train.evaluate(config, problem, train.start(config, problem).learned, **options)


def line(**numbers: Any) -> dict[str, Any]:
    return {"step": 1, "loss": 1.0} | numbers


CALLS: dict[str, tuple[Any, str]] = {
    "validation without a return": (
        lambda path: fit(validate=lambda m: None, validate_every=1),
        r"fit\(validate\): expected a number",
    ),
    "validation of a vector": (
        lambda path: fit(validate=lambda m: {"a": torch.ones(2)}, validate_every=1),
        r"fit\(validate\): expected a number.* at a",
    ),
    "a file for a folder": (
        lambda path: ((path / "f").touch(), fit(out=path / "f")),
        r"train\(out\): expected a folder",
    ),
    "one test task": (lambda path: evaluate(num_tasks=1), r"evaluate\(num_tasks\): expected an integer >= 2"),
    "steps below zero": (lambda path: evaluate(num_steps=-1), r"evaluate\(num_steps\): expected"),
    "a number as text": (
        lambda path: train.config_for("sinusoid", shot="5"),
        r"train\(shot\): expected a val",
    ),
    "half a shot": (lambda path: train.config_for("sinusoid", shot=2.5), r"train\(shot\): .*int, got 2.5"),
    "no lines": (lambda path: mo.plot.learning_curve([]), r"learning_curve\(lines\): .* got none"),
    "another score": (
        lambda path: mo.plot.learning_curve([line()]),
        r"lines with 'accuracy', got one without",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_named(name: str, tmp_path: Path) -> None:
    call, text = CALLS[name]
    with pytest.raises(ArgumentError, match=text):
        call(tmp_path)


def test_the_curve_of_a_run_that_skipped_a_step_has_a_gap() -> None:
    lines = [line(step=k, loss=None if k == 2 else float(k)) for k in range(1, 5)]
    drawn = mo.plot.learning_curve(lines, "mse").axes[0].lines[0].get_ydata()
    assert torch.as_tensor(drawn).isnan().tolist() == [False, True, False, False]


def test_a_run_is_not_continued_under_other_options(tmp_path: Path) -> None:
    config = train.config_for("sinusoid", iterations=1, meta_batch=2)
    problem = train.make_problem(config)
    train.train(config, problem, tmp_path, progress=False)
    other = dataclasses.replace(config, inner_lr=0.5)
    with pytest.raises(CheckpointError, match=r"train\(inner_lr\): expected 0.03, as in the checkpoint"):
        train.train(other, problem, tmp_path, resume=True, progress=False)
