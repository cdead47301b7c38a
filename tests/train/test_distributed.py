"""Ranks: the same numbers as one process, uneven shares, shards, and refusals. Over loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rank_programs
import torch
from rank_programs import on_ranks

import metaopt as mo
from metaopt import train
from metaopt.errors import ArgumentError, CheckpointError, StructureError, VmapError


def assert_close(found: Any, expected: Any) -> None:
    for a, b in zip(mo.tree.leaves(found), mo.tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_one_two_and_four_ranks_learn_the_same(tmp_path: Path) -> None:
    one = rank_programs.trained_with_noise(tmp_path / "one")
    for size in (2, 4):
        out = tmp_path / f"out{size}"
        found = on_ranks(size, tmp_path / f"{size}", rank_programs.trained_with_noise, out)
        for params in found:
            same = zip(mo.tree.leaves(params), mo.tree.leaves(found[0]), strict=True)
            assert all(torch.equal(a, b) for a, b in same), "ranks differ among themselves"
            assert_close(params, one)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 12, "one process writes"


def test_dropout_is_the_same_for_every_chunk_size() -> None:
    whole = rank_programs.noisy()
    for size in (1, 2):
        assert_close(rank_programs.noisy(chunk_size=size), whole)


def test_the_number_of_ranks_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    one, out = rank_programs.trained(tmp_path / "one"), tmp_path / "out"
    rank_programs.run_tiny(out)
    (out / "checkpoint.pt").write_bytes((out / "checkpoint.previous.pt").read_bytes())
    assert train.load(out / "checkpoint.pt").step == 9
    for params in on_ranks(2, tmp_path / "2", rank_programs.trained_on, out):
        assert_close(params, one)


def test_batches_that_do_not_divide_and_ranks_without_a_task(tmp_path: Path) -> None:
    one = rank_programs.uneven(tmp_path / "1")
    for found in on_ranks(3, tmp_path / "3", rank_programs.uneven, tmp_path / "3"):
        assert_close(found["params"], one["params"])
        assert_close([torch.tensor(x) for x in found["losses"]], [torch.tensor(x) for x in one["losses"]])


@pytest.mark.parametrize("tasks", [5, 1])
def test_the_functions_in_a_loop_of_ones_own(tmp_path: Path, tasks: int) -> None:
    batch = torch.randn(tasks, 3, dtype=torch.float64)
    expected = rank_programs.by_hand(batch)
    for found in on_ranks(2, tmp_path / "2", rank_programs.by_hand, batch):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_shards_of_meta_parameters_and_of_the_optimizers_state(tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path / "2", rank_programs.sharded, tmp_path)
    assert (first["rows"], second["rows"]) == (3, 2)
    assert (first["moment rows"], second["moment rows"]) == (3, 2)
    for found in (first, second):
        assert_close(found["whole"], found["plain"])
    saved = train.load(tmp_path / "s" / "checkpoint.pt").leaves
    assert saved["learned['w']"].shape == (5, 2), "a checkpoint holds whole tensors"


def test_what_every_rank_carries_is_saved_and_resumed(tmp_path: Path) -> None:
    whole = on_ranks(2, tmp_path / "a", rank_programs.carried, tmp_path / "a", 7, False)
    on_ranks(2, tmp_path / "b", rank_programs.carried, tmp_path / "b", 4, False)
    (tmp_path / "b" / "meet").unlink(missing_ok=True)
    resumed = on_ranks(2, tmp_path / "b", rank_programs.carried, tmp_path / "b", 7, True)
    for a, b in zip(whole, resumed, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(*whole, strict=True)), "ranks perturb independently"
    with pytest.raises(
        CheckpointError, match=r"expected what each of 1 ranks carries, got that of 2 .*Resume on 2"
    ):
        rank_programs.carried(tmp_path / "b", 8, True)


def test_shares_cover_every_task_once() -> None:
    for total in range(9):
        for size in range(1, 6):
            parts = [train.shard_tasks(torch.arange(total), rank=r, world_size=size) for r in range(size)]
            assert torch.cat(parts).tolist() == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_wrapped_modules_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (texts,) = on_ranks(1, tmp_path / "1", rank_programs.refusals)
    wrapped = ["DistributedDataParallel", "FSDPLinear", "DataParallel"]
    for name, text in zip(wrapped, texts, strict=True):
        assert text.startswith(f"functional(module): expected a bare module, got {name}. Pass its .module")
        assert "or the module before fully_shard" in text
        assert "metaopt.train.reduce_gradients once after the outer backward" in text


def test_collectives_inside_torch_func_are_refused() -> None:
    with pytest.raises(
        VmapError, match=r"reduce_gradients\(grads\): expected plain tensors, got .* at \['w'\]"
    ):
        torch.vmap(lambda w: train.reduce_gradients({"w": w}, 1)["w"])(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: train.shard_tasks(torch.ones(3), rank=2, world_size=2),
            ArgumentError,
            r"shard_tasks\(rank\): expected an integer from 0 to 1, got 2\.",
        ),
        (lambda: train.shard_tasks(torch.ones(3), world_size=0), ArgumentError, r"shard_tasks\(world_size\)"),
        (
            lambda: train.shard_tasks({"x": torch.ones(3), "y": torch.ones(2)}),
            StructureError,
            r"shard_tasks\(episodes\): expected 3 tasks on axis 0 of every leaf, got 2 at \['y'\]\. Stack",
        ),
        (lambda: train.shard_tasks(torch.ones(())), StructureError, r"an axis 0, got shape \[\]"),
        (lambda: train.reduce_gradients(torch.ones(1), -1), ArgumentError, r"reduce_gradients\(num_tasks\)"),
        (lambda: train.reduce_gradients(torch.ones(1), 0), ArgumentError, r"at least one task on some rank"),
        (
            lambda: train.reduce_gradients({"a": None}, 1),
            StructureError,
            r"reduce_gradients\(grads\): expected a floating-point tensor, got None at \['a'\]",
        ),
        (lambda: train.shard_params(torch.ones(1)), ArgumentError, r"shard_params\(params\): .*torchrun"),
    ],
)
def test_bad_input_at_the_distributed_doors(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()
