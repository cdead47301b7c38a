"""Every named algorithm: trained, checkpointed, resumed, evaluated, or refused where it does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import metaopt as mo
from metaopt import train
from metaopt.__main__ import main
from metaopt.errors import ArgumentError, CheckpointError
from metaopt.train import _problem

CLASSES_ONLY = {"protonet", "r2d2", "metaoptnet"}
TINY: dict[str, Any] = {"iterations": 6, "meta_batch": 2, "inner_steps": 2, "width": 4, "query": 2}
SINUSOID = [name for name in train.ALGORITHMS if name not in CLASSES_ONLY]


@pytest.fixture(autouse=True)
def _glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invented characters in the place of Omniglot's: no data is needed."""

    def omniglot(root: Any, split: str, part: str, way: int, shot: int, query: int, **on: Any) -> Any:
        on.pop("download")
        return mo.tasks.glyphs(way, shot, query, part=part, num_classes=24, **on)

    monkeypatch.setattr(_problem.tasks, "omniglot", omniglot)


def make(problem: str, name: str, **options: Any) -> tuple[train.Config, train.Problem]:
    given = TINY | {"data": "-", "test_steps": 0, "train_way": 0} | options
    config = train.config_for(problem, name, **given)
    return config, train.make_problem(config)


@pytest.mark.parametrize("name", train.ALGORITHMS)
def test_stopped_and_resumed_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    problem_name = "omniglot" if name in CLASSES_ONLY else "sinusoid"
    config, problem = make(problem_name, name)
    train.train(config, problem, tmp_path / "whole", progress=False, checkpoint_every=2)

    class Stops:
        def __init__(self, tasks: Any) -> None:
            self.tasks = tasks

        def __getattr__(self, name: str) -> Any:
            return getattr(self.tasks, name)

        def sample(self, num_tasks: int, seed: int, step: int = 0) -> Any:
            if step == 6:
                raise InterruptedError
            return self.tasks.sample(num_tasks, seed, step)

    stopping = problem._replace(train=Stops(problem.train))
    with pytest.raises(InterruptedError):
        train.train(config, stopping, tmp_path / "cut", progress=False, checkpoint_every=2)
    assert train.load(tmp_path / "cut" / "checkpoint.pt").step == 4
    train.train(config, problem, tmp_path / "cut", progress=False, checkpoint_every=2, resume=True)
    for file in ("checkpoint.pt", "metrics.jsonl"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("name", SINUSOID)
def test_command_line_trains_and_evaluates_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    command = ["train", "sinusoid", f"--algorithm={name}", "--no-pictures", "--eval-tasks=20", *flags]
    assert main([*command, f"--out={tmp_path}"]) == 0
    trained = capsys.readouterr().out
    assert train.load(tmp_path / "checkpoint.pt").config.algorithm == name
    assert main(["evaluate", str(tmp_path / "checkpoint.pt"), "--tasks=20"]) == 0
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].startswith("steps  mse over 20 test tasks")
    assert "\n".join(table) in trained


@pytest.mark.parametrize("name", train.ALGORITHMS)
def test_learning_on_images_lowers_the_loss_and_beats_chance(name: str, tmp_path: Path) -> None:
    """Two classes of glyphs, so that a minute's work is done in a second."""
    config, problem = make("omniglot", name, way=2, width=8, iterations=30, meta_lr=1e-2)
    if name == "reptile":
        config = dataclasses.replace(config, meta_lr=1.0)
    if name == "imaml":
        config = dataclasses.replace(config, iterations=12)
    run = train.train(config, problem, tmp_path, progress=False).run
    found = train.evaluate(config, problem, run.learned, num_tasks=60, num_steps=config.inner_steps)
    chance = 0.5
    assert float(found.mean[-1] - found.half_width[-1]) > chance
    steps = 0 if name in CLASSES_ONLY else config.inner_steps
    assert found.mean.shape == (steps + 1,)


@pytest.mark.parametrize("name", train.ALGORITHMS)
def test_the_outer_gradient_is_a_tree_like_what_is_learned(name: str) -> None:
    """And the same for vmap, chunks and the loop, in float64."""
    grads = []
    for how, chunk_size in (("vmap", 0), ("vmap", 2), ("loop", 0)):
        options = {"how": how, "chunk_size": chunk_size, "meta_batch": 3, "dtype": "float64"}
        config, problem = make("omniglot", name, **options)
        method = train.make_method(config, problem)
        losses, scores, found = method.gradient(method.learned, problem.train.sample(3, 0, 1), 0)
        assert losses.shape == scores.shape == (3,)
        assert not any(x.requires_grad for x in (losses, scores, *mo.tree.leaves(found)))
        mo.tree.check_same("test", found, method.learned, shapes=True)
        grads.append(mo.tree.leaves(found))
    for a, b, c in zip(*grads, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(b, c, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", sorted(CLASSES_ONLY))
def test_heads_for_classes_refuse_regression(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sinusoid", f"--algorithm={name}", "--no-pictures"]) == 1
    error = capsys.readouterr().err
    assert f"train(algorithm): expected an algorithm that fits regression, got '{name}'" in error


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(ArgumentError, match=r"train\(algorithm\): expected 'maml' or .*, got 'mamba'"):
        train.config_for("sinusoid", "mamba")


def test_a_head_of_five_classes_cannot_be_trained_on_twenty() -> None:
    config, problem = make("omniglot", "anil", train_way=20)
    with pytest.raises(ArgumentError, match=r"train\(train_way\): expected 0 or 5, the classes"):
        train.make_method(config, problem)


@pytest.mark.parametrize(("name", "kind"), [("meta_sgd", "leaf"), ("warpgrad", "step"), ("imaml", "leaf")])
def test_step_sizes_that_an_algorithm_cannot_learn_are_refused(name: str, kind: str) -> None:
    config, problem = make("sinusoid", name, learn_lr=kind)
    with pytest.raises(ArgumentError, match=rf"train\(learn_lr\): expected .* for {name}, got '{kind}'"):
        train.make_method(config, problem)


def test_a_checkpoint_of_another_algorithm_is_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, problem = make("sinusoid", "meta_sgd")
    train.train(config, problem, tmp_path, progress=False)
    flags = ["train", "sinusoid", f"--out={tmp_path}", "--resume", "--no-pictures"]
    assert main([*flags, "--algorithm=anil"]) == 1
    assert (
        "train(algorithm): expected 'meta_sgd', as in the checkpoint, got 'anil'" in capsys.readouterr().err
    )
    other, problem = make("sinusoid", "warpgrad")
    with pytest.raises(CheckpointError, match=r"restore\(checkpoint\)"):
        train.restore(train.load(tmp_path / "checkpoint.pt"), train.start(other, problem))


def test_list_names_everything_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for name in (*train.ALGORITHMS, "gimli", "pes", "implicit", "unrolled", "adam", "lion", "muon"):
        (line,) = [line for line in said.splitlines() if line.strip(" *").split(" ")[0] == name]
        assert len(line.split()) > 2, line
    assert all(len(line) <= 140 for line in said.splitlines())


@pytest.mark.parametrize(("last_width", "widths"), [(0, [4, 4, 4, 4]), (6, [4, 4, 4, 6])])
def test_the_last_block_can_have_a_width_of_its_own(last_width: int, widths: list[int]) -> None:
    _, problem = make("omniglot", "cavia", last_width=last_width)
    kernels = [p for p in problem.params.values() if p.ndim == 4]
    assert [len(k) for k in kernels] == widths
    assert list(problem.params.values())[-2].shape == (5, widths[-1])
