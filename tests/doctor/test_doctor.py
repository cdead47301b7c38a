"""The doctor's verdict on every kind of the exactness table, on what is refused, and its flags."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kinds import KINDS, Fn, build
from torch import Tensor, nn
from torch.nn import functional as F

import metaopt as mo
from metaopt.doctor import Report, Row
from metaopt.doctor._modules import record, report

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

REWRITTEN = {
    name
    for name in KINDS
    if name.startswith(("layer norm", "batch norm", "instance norm", "rnn", "gru", "lstm", "attention"))
    or name.startswith(("transformer", "sdpa"))
    or name in ("bilinear", "rrelu", "embedding padding", "weight norm", "spectral norm")
    or name in ("spectral norm conv", "registered twice", "frozen")
}
SLOW = {"fractional max pool2d", "fractional max pool3d", "max unpool"}


@pytest.mark.parametrize("name", KINDS)
def test_the_verdict_on_every_kind(name: str) -> None:
    kind = KINDS[name]
    net, ((x, _), _) = build(kind)
    apply, params, _ = mo.functional(net, batch_norm=kind.batch_norm)
    with torch.no_grad(), mo.exact():
        rows = report(record(lambda: apply(params, x[0])))
    verdicts = {row.subject: row.verdict for row in rows}
    expected = "works by rewrite" if name in REWRITTEN else "works, slowly" if name in SLOW else "works"
    assert verdicts.pop("(the model)") == expected
    assert verdicts["head"] == "works"
    assert any(subject.startswith("layer") for subject in verdicts)
    assert set(verdicts.values()) <= {"works", expected}


def check(net: nn.Module, x: Tensor, loss: Any = None, **options: Any) -> Report:
    apply, _, _ = mo.functional(net)
    loss_fn = loss or (lambda params, batch: (apply(params, batch[0]) - batch[1]).square().mean())
    batch = (x, torch.randn(len(x), 1))
    return mo.doctor(net, loss_fn, mo.Episode(batch, batch), **options)


def rows(found: list[Row]) -> dict[tuple[str, str], Row]:
    return {row[:2]: row for row in found}


def test_a_healthy_model_passes_every_check_and_prints() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Dropout(), nn.Linear(3, 1))
    found = check(net, torch.randn(4, 2), compile=True)
    assert found.ok
    assert {row.verdict for row in found.checks} == {"works"}
    kinds = {row.kind for row in found.checks}
    assert kinds == {"loop", "vmap", "vmap in chunks", "finite differences", "forward mode", "compiled"}
    assert not found.flags
    text = repr(found)
    assert text.startswith("healthy")
    assert "1       LayerNorm  works by rewrite  in primitives: layer_norm" in text
    assert found._repr_html_().count("<tr>") == 2 + len(found.modules) + len(found.checks)


@pytest.mark.parametrize(
    ("net", "x", "path", "remedy"),
    [
        (
            nn.Sequential(nn.EmbeddingBag(4, 2), nn.Linear(2, 1)),
            torch.randint(4, (3, 2)),
            "0",
            "Use nn.Embedding",
        ),
        (
            nn.Sequential(nn.Linear(2, 3), Fn(lambda x: torch.cdist(x, x.flip(0))[:, :1])),
            torch.randn(3, 2),
            "1",
            "use_mm_for_euclid_dist",
        ),
    ],
    ids=["embedding bag", "cdist"],
)  # fmt: skip
def test_what_is_unsupported_is_named_with_the_way_out(net: Any, x: Tensor, path: str, remedy: str) -> None:
    found = check(net, x)
    assert not found.ok
    verdict = {row.subject: row for row in found.modules}[path]
    assert verdict.verdict == "unsupported"
    assert remedy in verdict.remark
    second = rows(found.checks)["second order", "loop"]
    assert second.verdict == "unsupported"
    assert f" at {path}. " in second.remark
    assert rows(found.checks)["first order", "loop"].verdict == "works"
    assert repr(found).startswith("not healthy")
    assert "#b00020" in found._repr_html_()


def test_running_statistics_under_vmap_are_explained() -> None:
    found = check(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), torch.randn(4, 2))
    row = rows(found.checks)["second order", "vmap"]
    assert row.verdict == "unsupported"
    assert "at 1. Pass metaopt.functional(module, batch_norm='transductive')" in row.remark
    module = {row.subject: row for row in found.modules}["1"]
    assert module.verdict == "unsupported"
    assert "Use batch_norm='transductive' or 'frozen', apply.with_buffers, or" in module.remark


def test_running_statistics_that_are_handed_back_work_by_rewrite() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    apply, _, buffers = mo.functional(net)
    loss = lambda p, b: (apply.with_buffers(p, buffers, b[0])[0] - b[1]).square().mean()
    found = check(net, torch.randn(4, 2), loss)
    assert found.ok
    assert {row.subject: row.verdict for row in found.modules}["1"] == "works by rewrite"


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.spare = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).detach()
        return self.second(hidden) * (1 + self.second.bias.sum().item())


def test_unused_parameters_cuts_and_reads_are_flagged_by_name_and_line() -> None:
    found = check(Cut(), torch.randn(4, 2))
    flags = rows(found.flags)
    for name in ("['first.weight']", "['first.bias']", "['spare.weight']", "['spare.bias']"):
        assert flags[name, "unused"].verdict == "look"
    kinds = {row.kind: row for row in found.flags}
    assert kinds[".detach()"].subject.startswith("test_doctor.py:")
    assert kinds[".item()"].subject.startswith("test_doctor.py:")
    assert "['second.weight']" not in {row.subject for row in found.flags}
    second = rows(found.checks)["second order", "vmap"]
    assert second.verdict == "unsupported"
    assert ".item()" in second.remark


def test_a_loss_that_calls_the_module_is_told_so() -> None:
    net = nn.Linear(2, 1)
    found = check(net, torch.randn(4, 2), lambda params, batch: (net(batch[0]) - batch[1]).square().mean())
    assert rows(found.flags)["params", "unused"].remark.endswith("in place of apply?")


def test_captured_tensors_are_flagged_by_name() -> None:
    net, temperature = nn.Linear(2, 1), torch.ones((), requires_grad=True)
    apply, _, _ = mo.functional(net)
    loss = lambda params, batch: ((apply(params, batch[0]) - batch[1]) * temperature).square().mean()
    found = check(net, torch.randn(4, 2), loss)
    assert rows(found.flags)["temperature", "captured"].remark.endswith("pass it through phi")


def test_mixed_dtypes_and_devices_are_flagged() -> None:
    net = nn.Linear(2, 1)
    apply, _, _ = mo.functional(net)
    loss = lambda params, batch: (apply(params, batch[0].float()) - batch[1]).square().mean()
    found = check(net, torch.randn(4, 2, dtype=torch.float64), loss)
    mixture = rows(found.flags)["dtype", "mixture"].remark
    assert "torch.float32 at params['bias']" in mixture
    assert "torch.float64 at episode.support[0] (2)" in mixture


def test_a_kernel_that_is_wrong_is_caught_where_nothing_repairs_it() -> None:
    """A norm by its aten name goes past the mode: the doctor compares, and says wrong."""
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))

    def loss(params: Any, batch: Any) -> Tensor:
        x = F.linear(batch[0], params["0.weight"], params["0.bias"])
        x = torch.ops.aten.layer_norm(x, [3], 1 + params["1.weight"], params["1.bias"]).tanh()
        return (F.linear(x, params["2.weight"], params["2.bias"]) - batch[1]).square().mean()

    found = check(net, torch.randn(4, 2), loss)
    assert rows(found.checks)["second order", "vmap"].verdict == "wrong"
    assert rows(found.checks)["second order", "finite differences"].verdict == "works"
    assert not found.ok
