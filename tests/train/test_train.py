"""The main job: it learns, stops and resumes bitwise, and refuses what it cannot continue."""

import dataclasses
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from metaopt import train
from metaopt.__main__ import main
from metaopt.errors import ArgumentError, CheckpointError, DivergenceError
from metaopt.train import Learned

TINY: dict[str, Any] = {
    "iterations": 60,
    "meta_batch": 4,
    "inner_steps": 2,
    "shot": 5,
    "query": 5,
    "width": 8,
}
FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def run_tiny(out: Path, **options: Any) -> tuple[train.Config, train.Problem, train.Run]:
    config = train.config_for("sinusoid", **(TINY | options))
    problem = train.make_problem(config)
    fitted = train.train(config, problem, out, progress=False, checkpoint_every=7)
    assert (fitted.step, fitted.stopped) == (config.iterations, "done")
    return config, problem, fitted.run


def test_training_lowers_the_loss_and_leaves_its_files(tmp_path: Path) -> None:
    _, _, _ = run_tiny(tmp_path, iterations=200, schedule="constant", meta_lr=1e-2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 201))
    losses = [line["loss"] for line in lines]
    assert sum(losses[-50:]) < 0.8 * sum(losses[:50])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.previous.pt",
        "checkpoint.pt",
        "metrics.jsonl",
    ]


@pytest.mark.parametrize("options", [{"learn_lr": "no"}, {"learn_lr": "leaf"}, {"first_order": True}])
def test_ways_of_mapping_train_alike(tmp_path: Path, options: dict[str, Any]) -> None:
    options |= {"dtype": "float64", "iterations": 5}
    runs = {
        way: run_tiny(tmp_path / f"{way}", how=way[0], chunk_size=way[1], **options)[2]
        for way in (("vmap", 0), ("vmap", 3), ("loop", 0))
    }
    reference, *others = (run.learned.params for run in runs.values())
    for other in others:
        for name, value in other.items():
            torch.testing.assert_close(value, reference[name], rtol=1e-10, atol=1e-10)


KILLED = ["train", "sinusoid", "--no-pictures", "--eval-tasks=2", *FLAGS, "--iterations=250"]
KILLED += ["--checkpoint-every=7"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody killed: one for all trials."""
    whole = tmp_path_factory.mktemp("whole")
    assert main([*KILLED, f"--out={whole}"]) == 0
    return whole


@pytest.mark.parametrize("trial", range(3))
def test_killed_and_resumed_ends_in_the_same_bytes(tmp_path: Path, trial: int, uninterrupted: Path) -> None:
    """SIGKILL at a random moment of the training, then --resume."""
    process = subprocess.Popen(
        [sys.executable, "-m", "metaopt", *KILLED, f"--out={tmp_path}"],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.Random(trial).uniform(0.0, 1.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main([*KILLED, f"--out={tmp_path}", "--resume"]) == 0
    for name in ("checkpoint.pt", "metrics.jsonl"):
        assert (tmp_path / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_ctrl_c_saves_and_stops(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaopt", "train", "sinusoid", "--no-pictures", *FLAGS]
    command += ["--iterations=100000", f"--out={tmp_path}"]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    step = train.load(tmp_path / "checkpoint.pt").step
    assert f"Stopped at step {step} and saved." in said
    assert "--resume" in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step


def test_evaluate_reads_what_train_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sinusoid", *FLAGS, f"--out={tmp_path}", "--eval-tasks=20"]) == 0
    trained = capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "checkpoint.pt"), "--tasks=20"]) == 0
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].startswith("steps  mse over 20 test tasks")
    assert [line.split()[0] for line in table[1:]] == ["0", "1", "2"]
    assert "\n".join(table) in trained
    for name in ("curve.png", "tasks.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_another_run_is_not_overwritten_or_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_flags = ["train", "sinusoid", "--no-pictures", "--eval-tasks=2", *FLAGS, f"--out={tmp_path}"]
    assert main(train_flags) == 0
    before = (tmp_path / "checkpoint.pt").read_bytes()
    assert main(train_flags) == 1
    assert "expected a folder without a checkpoint" in capsys.readouterr().err
    assert main([*train_flags, "--resume", "--seed=3"]) == 1
    assert "train(seed): expected 0, as in the checkpoint, got 3" in capsys.readouterr().err
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "missing", "foreign", "format", "hostile"])
def test_a_damaged_checkpoint_is_refused_and_runs_nothing(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    _, _, run = run_tiny(tmp_path, iterations=7)
    content = path.read_bytes()
    loaded = torch.load(path, weights_only=True)
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        weight = run.learned.params["0.weight"].detach().numpy().tobytes()
        at = content.index(weight)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    elif damage == "foreign":
        torch.save({"weight": torch.ones(1)}, path)
    elif damage == "format":
        torch.save(loaded | {"format": 99}, path)
    elif damage == "hostile":
        path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        train.load(path)
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_of_another_model_names_the_leaf(tmp_path: Path) -> None:
    config, _, _ = run_tiny(tmp_path, iterations=7)
    found = train.load(tmp_path / "checkpoint.pt")
    wider = dataclasses.replace(config, width=9)
    with pytest.raises(CheckpointError, match=r"expected \[9\] torch.float32, got \[8\] .* at learned"):
        train.restore(found, train.start(wider, train.make_problem(wider)))
    plain = dataclasses.replace(config, learn_lr="no")
    with pytest.raises(CheckpointError, match=r"got one more at learned\.inner_lr"):
        train.restore(found, train.start(plain, train.make_problem(plain)))


def test_divergence_names_step_and_task_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        DivergenceError, match=r"fit\(step \d+\): expected a finite loss, got (nan|inf) at task"
    ):
        run_tiny(tmp_path, inner_lr=1e8, inner_steps=8)
    learned = train.load(tmp_path / "checkpoint.pt").leaves
    assert learned.pop("watch.best") == torch.inf  # nothing was validated
    assert all(bool(torch.isfinite(x).all()) for x in learned.values())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shot": 0}, r"train\(shot\): expected an integer >= 1, got 0"),
        ({"iterations": 0}, r"train\(iterations\)"),
        ({"meta_lr": -1.0}, r"train\(meta_lr\): expected a number >= 0, got -1.0"),
        (
            {"learn_lr": "maybe"},
            r"train\(learn_lr\): expected 'no' or .* or 'element', got 'maybe'",
        ),
        ({"device": "cuda:77"}, r"train\(device\): expected a device of this machine, got 'cuda:77'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        train.make_problem(train.config_for("sinusoid", **options))


def test_omniglot_without_data_says_how_to_get_it() -> None:
    with pytest.raises(ArgumentError, match=r"train\(data\): .*--download"):
        train.make_problem(train.config_for("omniglot"))


def test_a_missing_picture_extra_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", "sinusoid", f"--out={tmp_path / 'run'}"]) == 1
    assert "metaopt-torch[vision]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluation_is_the_mean_over_tasks_of_the_adapted_score(tmp_path: Path) -> None:
    config, problem, run = run_tiny(tmp_path, iterations=7, dtype="float64")
    assert isinstance(run.learned, Learned)
    table = train.evaluate(config, problem, run.learned, num_tasks=6, num_steps=0)
    episodes = problem.test.sample(6, 2**31 - 1, 0)
    x, y = episodes.query
    by_hand = (problem.apply(run.learned.params, x) - y).pow(2).mean((1, 2))
    assert table.mean[0].item() == pytest.approx(by_hand.mean().item(), rel=1e-12)
    assert table.half_width[0].item() == pytest.approx(1.96 * by_hand.std().item() / 6**0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ["train", "sinusoid", "--checkpoint-every=0"],
            "train(checkpoint_every): expected an integer >= 1, got 0",
        ),
        (["train", "sinusoid", "--eval-tasks=1"], "train(eval_tasks): expected an integer >= 2, got 1"),
        (["evaluate", "none.pt", "--tasks=1"], "evaluate(tasks): expected an integer >= 2, got 1"),
        (["evaluate", "none.pt", "--steps=-1"], "evaluate(steps): expected an integer >= 0, got -1"),
    ],
)
def test_bad_counts_are_told_before_the_work(
    flags: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 1
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
