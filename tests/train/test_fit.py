"""`fit`: any meta-loss, any optimizer, and all that a run is told beside them."""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy.random as numpy_random
import pytest
import rank_programs
import torch
from torch import Tensor

import metaopt as mo
from metaopt import train
from metaopt.errors import ArgumentError, DivergenceError, MissingExtraError, StructureError
from metaopt.optim import schedule

PARAMS = {"b": torch.tensor(0.5, dtype=torch.float64), "w": torch.zeros(3, dtype=torch.float64)}


def episode_loss(params: Any, batch: Tensor) -> Tensor:
    return ((params["w"] - batch) ** 2).mean() + params["b"] ** 2


meta_loss = mo.map_tasks(mo.maml(episode_loss, mo.optim.sgd(lr=0.1)))


def draw(step: int) -> mo.Episode:
    """Five tasks from torch's global generator, which `fit` seeds by the step."""
    x = torch.randn(5, 3, dtype=torch.float64)
    return mo.Episode(x, x + 1)


def fit(**options: Any) -> train.Fitted:
    return train.fit(
        **({"meta_loss": meta_loss, "meta_params": PARAMS, "tasks": draw, "num_steps": 6} | options)
    )


def same(a: Any, b: Any) -> bool:
    pairs = zip(mo.tree.leaves(a), mo.tree.leaves(b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def by_hand(opt: mo.Optimizer, steps: int, clip: float = 0.0, rates: Any = None) -> Any:
    """The loop that `fit` is, in eight lines."""
    params = mo.tree.map(lambda p: p.clone().requires_grad_(), PARAMS)
    state = opt.init(params)
    for t in range(steps):
        with train._fit.drawing(0, t + 1):
            episodes = draw(t + 1)
        leaves = list(mo.tree.leaves(params))
        grads = torch.autograd.grad(meta_loss(params, episodes).mean(), leaves)
        grads = mo.tree.unflatten(mo.tree.structure(params), grads)
        norm = mo.tree.global_norm(grads)
        grads = mo.tree.scale(grads, min(1.0, clip / float(norm)) if clip else 1.0)
        hparams = opt.hparams if rates is None else opt.hparams._replace(lr=rates(t))
        with torch.no_grad():
            params, state = opt.update(params, state, grads, hparams)
        params = mo.tree.map(lambda p: p.requires_grad_(), params)
    return params


@pytest.mark.parametrize(
    ("opt", "told", "hand"),
    [
        (mo.optim.adam(lr=0.1), {}, {}),
        (mo.optim.sgd(lr=0.1, momentum=0.9), {"clip": 0.3}, {"clip": 0.3}),
        (mo.optim.lion(lr=0.1), {"schedule": schedule.cosine(1.0, 6)}, {}),
        (
            mo.optim.scheduled(mo.optim.adamw(), lr=schedule.linear(0.1, 0.0, 6)),
            {},
            {},
        ),
        (mo.optim.chain(mo.optim.clip_by_global_norm(0.3), mo.optim.sgd(lr=0.1)), {}, {}),
        (mo.optim.accumulate(mo.optim.sgd(lr=0.1), 2), {}, {}),
    ],
    ids=["adam", "clip", "schedule", "scheduled", "chain", "accumulate"],
)
def test_it_is_the_loop_by_hand(opt: mo.Optimizer, told: Any, hand: Any) -> None:
    if "schedule" in told:
        hand = {
            "rates": lambda t: (
                0.1 * float(schedule.cosine(1.0, 6).value(torch.tensor(t), told["schedule"].hparams))
            )
        }
    expected = by_hand(opt, 6, **hand)
    found = fit(opt=opt, **told).meta_params
    for a, b in zip(mo.tree.leaves(found), mo.tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6 if "schedule" in told else 1e-12, atol=1e-12)
    assert same(PARAMS, {"b": torch.tensor(0.5).double(), "w": torch.zeros(3).double()}), "not written to"


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 9])
def test_chunks_accumulate_the_same_gradient(chunk_size: int) -> None:
    whole = fit()
    chunks = fit(chunk_size=chunk_size)
    for a, b in zip(mo.tree.leaves(whole.meta_params), mo.tree.leaves(chunks.meta_params), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_scores_tasks_and_the_files_of_a_run(tmp_path: Path) -> None:
    tasks = mo.tasks.sinusoid(shot=3, query=3, dtype=torch.float64)

    def scored(params: Any, episodes: Any) -> Any:
        (x, y), _ = episodes
        losses = ((params["w"].sum() * x - y) ** 2).mean((1, 2))
        return losses, {"double": 2 * losses}

    csv = train.CSVWriter(tmp_path / "table.csv")
    run: dict[str, Any] = {"meta_loss": scored, "tasks": tasks, "meta_batch": 4, "out": tmp_path}
    run |= {"validate": lambda params: params["w"].sum(), "validate_every": 4}
    fitted = fit(writers=[csv], **run)
    assert (fitted.step, fitted.stopped, fitted.notes) == (6, "done", ())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["double"] == pytest.approx(2 * line["loss"], rel=1e-12) for line in lines)
    assert ["val_loss" in line for line in lines] == [False, False, False, True, False, True]
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert rows[0] == "step,loss,double,val_loss"
    assert rows[1].startswith("1,")
    assert rows[1].endswith(",")
    assert len(rows) == 7
    assert float(rows[6].split(",")[1]) == lines[5]["loss"]


def test_the_best_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, float("nan"), 2.0, 0.0])
    run: dict[str, Any] = {"out": tmp_path, "validate": lambda params: {"mse": next(values)}}
    fitted = fit(num_steps=60, validate_every=2, patience=2, **run)
    assert (fitted.stopped, fitted.step) == ("early", 8)
    assert float(fitted.run.watch.best) == 1.0
    best = train.load(tmp_path / "best.pt")
    assert best.step == 4
    four = fit(num_steps=4)
    assert torch.equal(best.leaves["learned['w']"], four.meta_params["w"].detach())
    assert train.load(tmp_path / "checkpoint.pt").step == 8


def test_a_callback_sees_each_step_and_may_end_the_run() -> None:
    seen = []

    def watch(event: train.Step) -> bool:
        seen.append((event.step, len(event.losses), event.line["loss"]))
        return event.step == 3

    fitted = fit(callbacks=[watch])
    assert (fitted.stopped, fitted.step) == ("callback", 3)
    assert [s for s, _, _ in seen] == [1, 2, 3]
    assert all(n == 5 for _, n, _ in seen)


class Counting:
    """Tasks with a position, as a loader has."""

    def __init__(self) -> None:
        self.position, self.order = 0, [4, 1, 3, 0, 2, 5]

    def __call__(self, step: int) -> mo.Episode:
        x = torch.full((2, 3), float(self.order[self.position % 6]), dtype=torch.float64)
        self.position += 1
        if self.position % 4 == 0:
            random.shuffle(self.order)
        return mo.Episode(x, x)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "order": torch.tensor(self.order)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.order = state["position"], state["order"].tolist()


def noisy(params: Any, episodes: Any) -> Tensor:
    """A loss that draws from all the global generators there are."""
    shift = random.random() + numpy_random.rand() + torch.rand((), dtype=torch.float64)  # noqa: NPY002
    return meta_loss(params, episodes) * (1 + shift)


RESUMED: dict[str, Any] = {
    "drawn episodes": {},
    "a loader's position": {"tasks": Counting},
    "noise": {"meta_loss": noisy},
    "chunks and bfloat16": {"chunk_size": 2, "autocast": torch.bfloat16},
    "a validation's watch": {"validate": lambda p: p["w"].sum(), "validate_every": 2, "patience": 100},
}


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path: Path, options: Any) -> None:
    def go(name: str, num_steps: int, resume: train.Resume = False) -> train.Fitted:
        out = tmp_path / name
        fresh = {"tasks": options["tasks"]()} if "tasks" in options else {}
        tables = [train.CSVWriter(out / "table.csv")]
        told = options | fresh | {"opt": mo.optim.adam(lr=0.1), "writers": tables, "checkpoint_every": 3}
        return fit(out=out, num_steps=num_steps, resume=resume, **told)

    state = torch.get_rng_state(), random.getstate()
    go("whole", 9)
    go("cut", 4, "auto")
    torch.rand(3), random.random()  # whatever happens in between
    go("cut", 9, "auto")
    for name in ("checkpoint.pt", "table.csv", *(["best.pt"] if "validate" in options else [])):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    random.setstate(state[1])
    torch.set_rng_state(state[0])


def test_global_generators_are_left_as_they_were() -> None:
    torch.manual_seed(3), random.seed(3), numpy_random.seed(3)  # noqa: NPY002
    expected = torch.rand(2), random.random(), numpy_random.rand()  # noqa: NPY002
    torch.manual_seed(3), random.seed(3), numpy_random.seed(3)  # noqa: NPY002
    fit(meta_loss=noisy)
    assert torch.equal(torch.rand(2), expected[0])
    assert (random.random(), numpy_random.rand()) == expected[1:]  # noqa: NPY002


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_particles_and_the_phase_of_truncation_are_saved(tmp_path: Path, steps: int) -> None:
    """PES, one window of three at each outer step, stopped in any phase."""
    torch.manual_seed(0)
    whole = train.fit(*rank_programs.pes_problem(), num_steps=6)
    torch.manual_seed(0)
    train.fit(*rank_programs.pes_problem(), num_steps=steps, out=tmp_path)
    saved = train.load(tmp_path / "checkpoint.pt").leaves
    assert saved["carry[0].start"].item() == [2, 4, 6][steps % 3]
    cut = train.fit(*rank_programs.pes_problem(), num_steps=6, out=tmp_path, resume=True)
    assert same(whole.run.carry, cut.run.carry)
    assert same(whole.run.outer, cut.run.outer)
    assert torch.equal(whole.meta_params, cut.meta_params)
    assert not torch.equal(whole.meta_params.detach(), torch.tensor(0.05, dtype=torch.float64))


def failing(kind: str) -> Any:
    def loss(params: Any, episodes: Any) -> Tensor:
        losses = meta_loss(params, episodes)
        if int(torch.rand(()) * 0) == 0 and failing.step == 3:  # type: ignore[attr-defined]
            if kind == "loss":
                return losses + torch.tensor([0.0, 0.0, torch.nan, 0.0, 0.0])
            return losses + 0 * (params["w"][0] * torch.inf).nan_to_num(0.0) + torch.sqrt(params["b"] * 0)
        return losses

    return loss


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("loss", r"fit\(step 3\): expected a finite loss, got nan at task 2\. Lower"),
        ("gradient", r"fit\(step 3\): expected a finite meta-gradient, got NaN or inf at \['b'\]\. Lower"),
    ],
)
def test_what_is_not_finite_stops_or_is_skipped_and_counted(tmp_path: Path, kind: str, text: str) -> None:
    def draw_and_tell(step: int) -> mo.Episode:
        failing.step = step  # type: ignore[attr-defined]
        return draw(step)

    run: dict[str, Any] = {"meta_loss": failing(kind), "tasks": draw_and_tell}
    with pytest.raises(DivergenceError, match=text):
        fit(**run)
    before: list[train.Run] = []
    fitted = fit(on_nan="skip", out=tmp_path, callbacks=[lambda e: before.append(e.run)], **run)
    assert fitted.step == 6
    assert int(fitted.run.watch.skipped) == 1
    assert same(before[1].learned, before[2].learned)
    assert not same(before[2].learned, before[3].learned)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped", 0) for line in lines] == [0, 0, 1, 1, 1, 1]
    assert (lines[2]["loss"] is None) == (kind == "loss"), "JSON knows no NaN"


def test_mixed_precision_runs_the_products_in_bfloat16() -> None:
    seen = []
    apply, params, _ = mo.functional(
        torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1, bias=False))
    )

    def loss(params: Any, batch: Any) -> Tensor:
        out = apply(params, batch)
        seen.append(out.dtype)
        return ((out.float() - batch.sum(-1, keepdim=True)) ** 2).mean()

    task = mo.map_tasks(mo.maml(loss, mo.optim.sgd(lr=0.05), num_steps=2))

    def episodes(step: int) -> mo.Episode:
        x = torch.randn(8, 16, 3)
        return mo.Episode(x, x)

    run: dict[str, Any] = {"num_steps": 3, "opt": mo.optim.sgd(lr=0.1)}
    low = train.fit(task, params, episodes, autocast=torch.bfloat16, **run)
    assert set(seen) == {torch.bfloat16}
    full = train.fit(task, params, episodes, **run)
    moved = mo.tree.global_norm(mo.tree.sub(full.meta_params, mo.tree.detach(params)))
    apart = mo.tree.global_norm(mo.tree.sub(full.meta_params, low.meta_params))
    assert all(p.dtype == torch.float32 for p in low.meta_params.values())
    assert 0 < float(apart) < 0.05 * float(moved)


class FakeSummary:
    made: list[Any] = []  # noqa: RUF012

    def __init__(self, folder: str, purge_step: int) -> None:
        self.calls: list[Any] = [("begin", folder, purge_step)]
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.calls.append((name, step))

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


def test_tensorboard_takes_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = FakeSummary  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    fit(num_steps=2, writers=[train.TensorBoardWriter(tmp_path)])
    (made,) = FakeSummary.made
    assert made.calls == [("begin", str(tmp_path), 1), ("loss", 1), ("loss", 2), "flush", "close"]


def test_a_missing_tensorboard_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"TensorBoardWriter: .*metaopt-torch\[tensorboard\]"):
        train.TensorBoardWriter("runs")


def test_a_shorter_table_forgets_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    for writer in (train.CSVWriter(tmp_path / "t.csv"), train.JSONLWriter(tmp_path / "t.jsonl")):
        writer.begin(0)
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)} | ({"val": 1.0} if step == 3 else {}))
        writer.flush()
        writer.close()
        with writer.path.open("ab") as file:
            file.write(b'{"step": 4, "lo' if writer.path.suffix == ".jsonl" else b"4")  # a torn line
        writer = type(writer)(writer.path)
        writer.begin(2)
        writer.write(3, {"loss": 9.0})
        writer.close()
    assert (tmp_path / "t.csv").read_text().split() == ["step,loss,val", "1,1.0,", "2,2.0,", "3,9.0,"]
    assert [json.loads(x)["loss"] for x in (tmp_path / "t.jsonl").read_text().splitlines()] == [1.0, 2.0, 9.0]


ESTIMATOR = train.Estimator(lambda p, e, s, c: train.Estimate(torch.zeros(1), PARAMS, {}, c))
GROWING = train.Estimator(
    lambda p, e, s, c: train.Estimate(torch.zeros(1), PARAMS, {}, {"x": torch.zeros(3)}),
    {"x": torch.zeros(2)},
)
OTHER = train.Estimator(
    lambda p, e, s, c: train.Estimate(torch.zeros(1), PARAMS, {}, {}), {"x": torch.zeros(2)}
)
NUMBER = train.Estimator(
    lambda p, e, s, c: train.Estimate(torch.zeros(1), PARAMS, {}, {"x": 1}), {"x": torch.ones(1)}
)

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_steps": 0}, ArgumentError, r"fit\(num_steps\): expected an integer >= 1, got 0\."),
    ({"num_steps": 2.0}, ArgumentError, r"fit\(num_steps\): expected an integer >= 1, got 2\.0\."),
    ({"num_steps": True}, ArgumentError, r"fit\(num_steps\): .*got True"),
    ({"seed": -1}, ArgumentError, r"fit\(seed\): expected an integer >= 0, got -1"),
    ({"seed": "0"}, ArgumentError, r"fit\(seed\): expected an integer >= 0, got '0'"),
    ({"checkpoint_every": 0}, ArgumentError, r"fit\(checkpoint_every\): expected an integer >= 1, got 0"),
    ({"patience": -1}, ArgumentError, r"fit\(patience\): expected an integer >= 0, got -1"),
    ({"patience": 2}, ArgumentError, r"fit\(patience\): expected 0, since nothing is validated, got 2"),
    ({"validate_every": 2}, ArgumentError, r"fit\(validate_every\): expected .*, and 0 without, got 2"),
    ({"validate": float}, ArgumentError, r"fit\(validate_every\): expected a number of steps with validate"),
    ({"validate": 3, "validate_every": 1}, ArgumentError, r"fit\(validate\): expected a function, got int"),
    (
        {"validate": lambda p: {}, "validate_every": 1},
        ArgumentError,
        r"fit\(validate\): expected a number, or",
    ),
    ({"clip": -1.0}, ArgumentError, r"fit\(clip\): expected a number >= 0, got -1\.0"),
    ({"clip": float("nan")}, ArgumentError, r"fit\(clip\): expected a number >= 0, got nan"),
    ({"clip": "1"}, ArgumentError, r"fit\(clip\): expected a number >= 0, got '1'"),
    ({"on_nan": "ignore"}, ArgumentError, r"fit\(on_nan\): expected 'stop' or 'skip', got 'ignore'"),
    ({"resume": "yes"}, ArgumentError, r"fit\(resume\): expected True or False or 'auto', got 'yes'"),
    ({"resume": 1}, ArgumentError, r"fit\(resume\): expected True or False or 'auto', got 1"),
    ({"resume": True}, ArgumentError, r"fit\(resume\): expected a folder out to resume from, got none"),
    ({"opt": torch.optim.Adam}, ArgumentError, r"fit\(opt\): expected a metaopt Optimizer, .*from_torch"),
    ({"meta_loss": 3}, ArgumentError, r"fit\(meta_loss\): expected a function or an Estimator, got int"),
    ({"meta_params": {}}, StructureError, r"fit\(meta_params\): expected at least one tensor"),
    ({"meta_params": {"w": 1.0}}, StructureError, r"fit\(meta_params\): .*, got float at \['w'\]"),
    ({"meta_params": {"w": None}}, StructureError, r"fit\(meta_params\): .*, got None at \['w'\]"),
    (
        {"meta_params": {"w": torch.ones(2).long()}},
        StructureError,
        r"fit\(meta_params\): expected a floating-point tensor, got torch\.int64 at \['w'\]",
    ),
    ({"tasks": None}, ArgumentError, r"fit\(tasks\): expected tasks, or a function of the step, got None"),
    ({"tasks": 3}, ArgumentError, r"fit\(tasks\): expected something with sample.*, got int"),
    ({"tasks": mo.tasks.sinusoid()}, ArgumentError, r"fit\(meta_batch\): expected an integer >= 1, got None"),
    ({"meta_batch": 3}, ArgumentError, r"fit\(meta_batch\): expected None for tasks without sample, got 3"),
    (
        {"tasks": lambda step: 3.0},
        StructureError,
        r"fit\(tasks\): expected a tensor with an axis 0, got float",
    ),
    (
        {"tasks": lambda step: mo.Episode(torch.ones(2, 3), {"y": torch.ones(3, 3)})},
        StructureError,
        r"fit\(tasks\): expected 2 tasks on axis 0 of every leaf, got 3 at query\['y'\]\. Stack",
    ),
    ({"chunk_size": 0}, ArgumentError, r"fit\(chunk_size\): expected an integer >= 1 or None, got 0"),
    ({"chunk_size": 1.5}, ArgumentError, r"fit\(chunk_size\): .*got 1\.5"),
    (
        {"autocast": torch.float16},
        ArgumentError,
        r"fit\(autocast\): expected torch\.bfloat16 or None, got .*float16",
    ),
    ({"autocast": "bf16"}, ArgumentError, r"fit\(autocast\): .*got bf16"),
    ({"schedule": 0.1}, ArgumentError, r"fit\(schedule\): expected a metaopt\.optim\.schedule, got float"),
    (
        {"schedule": schedule.constant(1.0), "opt": mo.optim.scheduled(mo.optim.sgd())},
        ArgumentError,
        r"fit\(schedule\): expected an optimizer with hparams\.lr, got ScheduledHParams without",
    ),
    ({"callbacks": [3]}, ArgumentError, r"fit\(callbacks\): expected a function, got int"),
    ({"writers": [3]}, ArgumentError, r"fit\(writers\): expected a Writer, which has begin, got int"),
    (
        {"meta_loss": lambda p, e: 1.0},
        StructureError,
        r"fit\(meta_loss\): expected a tensor \[task\] as losses, got float",
    ),
    (
        {"meta_loss": lambda p, e: p["w"]},
        StructureError,
        r"fit\(meta_loss\): expected losses of shape \[5\], one a task, got \[3\]\. Return map_tasks",
    ),
    (
        {"meta_loss": lambda p, e: (p["b"], {"acc": torch.ones(2)})},
        StructureError,
        r"fit\(meta_loss\): expected acc of shape \[5\], one a task, got \[2\]",
    ),
    (
        {"meta_loss": lambda p, e: p["b"].detach()},
        ArgumentError,
        r"fit\(meta_loss\): expected a loss that depends on meta_params, got a constant\. Compute it",
    ),
    (
        {"meta_loss": ESTIMATOR, "chunk_size": 2},
        ArgumentError,
        r"fit\(chunk_size\): expected None with an Estimator",
    ),
    (
        {"meta_loss": ESTIMATOR, "autocast": torch.bfloat16},
        ArgumentError,
        r"fit\(autocast\): expected None with an",
    ),
    (
        {"meta_loss": GROWING},
        StructureError,
        r"fit\(estimate's carry\): expected \[2\] .*, got \[3\] .* at \['x'\]",
    ),
    ({"meta_loss": OTHER}, StructureError, r"fit\(estimate's carry\): expected .* got none at \['x'\]"),
    ({"meta_loss": NUMBER}, StructureError, r"fit\(estimate's carry\): expected tensors, got int at \['x'\]"),
]


@pytest.mark.parametrize(("options", "kind", "text"), BAD)
def test_bad_input_at_the_door_of_fit(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        fit(**options)
