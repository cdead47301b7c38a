"""Checkpoints: the one before stands in for a damaged one, old formats are read, strangers run nothing."""

from __future__ import annotations

import io
import os
import pickle
import random
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_programs import run_tiny, start, train_and_die

import metaopt as mo
from metaopt import train
from metaopt.errors import CheckpointError, MetaoptError
from metaopt.train import _checkpoint as checkpoint

OLD = Path(__file__).parent / "checkpoint_format_1.pt"
KEPT = ("checkpoint.pt", "checkpoint.previous.pt", "metrics.jsonl")


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in KEPT}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "missing", "hostile"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_tiny(whole)
    run_tiny(cut)
    path = cut / "checkpoint.pt"
    content = path.read_bytes()
    weight = checkpoint.load(path).leaves["learned.params['0.weight']"]
    at = content.index(bytes(weight.flatten().view(torch.uint8).tolist()))
    damaged = {
        "cut": content[: len(content) // 2],
        "flip": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "empty": b"",
        "hostile": pickle.dumps(Bomb(), protocol=2),
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    fitted = run_tiny(cut, resume=True)
    (note,) = fitted.notes
    assert note.startswith("load(checkpoint): expected")
    assert note.endswith("Going on from checkpoint.previous.pt, step 9.")
    assert str(path) in note
    assert files(cut) == files(whole), "the steps in between were taken again"
    assert (cut / "checkpoint.damaged.pt").exists() == (damage != "missing")
    assert not Path("exploded").exists()


def test_two_damaged_ones_are_an_error_that_names_the_newest(tmp_path: Path) -> None:
    run_tiny(tmp_path)
    for name in KEPT[:2]:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"checkpoint of metaopt, got a damaged file .*checkpoint\.pt\."
    ):
        run_tiny(tmp_path, resume=True)


def test_an_old_format_is_read_and_goes_on(tmp_path: Path) -> None:
    """A file of format 1, as the first version wrote it after 6 of 12 steps."""
    found = train.load(OLD)
    assert (found.format, found.step, found.config.width) == (1, 6, 2)
    config = found.config
    problem = train.make_problem(config)
    run = train.restore(found, train.start(config, problem))
    before = problem.train.sample(2, 0, 1)
    assert bool(torch.isfinite(problem.apply(run.learned.params, before.query[0][0])).all())
    (tmp_path / "checkpoint.pt").write_bytes(OLD.read_bytes())
    fitted = train.train(config, problem, tmp_path, resume=True, progress=False)
    assert fitted.step == config.iterations
    one = train.train(config, problem, tmp_path / "one", progress=False)
    for a, b in zip(mo.tree.leaves(fitted.run.learned), mo.tree.leaves(one.run.learned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_future_format_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(torch.load(OLD, weights_only=True) | {"format": 3}, path)
    with pytest.raises(CheckpointError, match=r"expected format 1 or 2, got format 3 at .*checkpoint\.pt"):
        train.load(path)


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def deflated(content: bytes) -> bytes:
    """The same members, compressed: what a decompression bomb is made of."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


def renamed(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x")
    return out.getvalue()


STRANGERS = {
    "a hostile pickle": pickle.dumps(Bomb()),
    "a hostile pickle in torch's zip": saved({"format": 2, "config": Bomb()}),
    "a hostile pickle in torch's old format": saved(Bomb(), _use_new_zipfile_serialization=False),
    "a hostile optimizer state": saved({"format": 2, "leaves": {"outer.step": Bomb()}}),
    "a whole module": saved(torch.nn.Linear(1, 1)),
    "a bomb": deflated(saved({"zeros": torch.zeros(1 << 20)})),
    "a parent path": renamed("../evil"),
    "an absolute path": renamed("/etc/evil"),
    "a drive": renamed("C:\\evil"),
}


@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS)
def test_strangers_run_nothing_and_are_refused(tmp_path: Path, content: bytes, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"load\(checkpoint\): expected .*, got .* at .*checkpoint\.pt"):
        train.load(path)
    with pytest.raises(MetaoptError, match=r"checkpoint\.pt"):
        run_tiny(tmp_path, resume=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt"], "nothing ran"


def test_an_optimizers_state_goes_through_the_same_door(tmp_path: Path) -> None:
    opt, params = mo.optim.adam(), {"w": torch.ones(3)}
    state = opt.init(params)
    params, state = opt.update(params, state, params, opt.hparams)
    train.save(tmp_path / "state.pt", {"optimizer": "adam"}, 1, state)
    found = train.load(tmp_path / "state.pt")
    assert found.about == {"optimizer": "adam"}
    back = train.restore(found, opt.init(params))
    for a, b in zip(mo.tree.leaves(back), mo.tree.leaves(state), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match=r"load\(checkpoint\): expected options of this version"):
        _ = found.config
    with pytest.raises(CheckpointError, match=r"restore\(checkpoint\): expected the leaves of this model"):
        train.restore(found, mo.optim.sgd().init(params))
    train.save(tmp_path / "state.pt", {}, 1, {"n": 1})
    with pytest.raises(CheckpointError, match=r"expected str, got int at \['n'\]"):
        train.restore(train.load(tmp_path / "state.pt"), {"n": "one"})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nobody killed, written by a process like the killed ones."""
    out = tmp_path_factory.mktemp("whole")
    process = start(train_and_die, out, 0, {"iterations": 40})
    process.join(120)
    assert process.exitcode == 0
    return files(out)


@pytest.mark.parametrize("moment", [1, 3, 4, 5, 6, 7, 9, 14])
def test_killed_while_a_checkpoint_is_written(
    tmp_path: Path, moment: int, uninterrupted: dict[str, bytes]
) -> None:
    """SIGKILL before a sync, a link or a rename, then the same call again."""
    process = start(train_and_die, tmp_path, moment, {"iterations": 40})
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    process = start(train_and_die, tmp_path, 0, {"iterations": 40})
    process.join(120)
    assert process.exitcode == 0
    assert files(tmp_path) == uninterrupted


def test_killed_again_and_again_at_random_moments(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    rng, kills = random.Random(0), 0
    while True:
        process = start(train_and_die, tmp_path, 0, {"iterations": 40})
        process.join(rng.uniform(0.01, 0.12) if kills < 4 else 120)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        kills += 1
    assert kills > 0
    assert files(tmp_path) == uninterrupted
