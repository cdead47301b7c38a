"""README's table of gotchas starts from error texts: each of them is what is really said."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metaopt as mo
from metaopt.errors import MetaoptError

README = (Path(__file__).parents[1] / "README.md").read_text()
ROWS = [text for text in re.findall(r"^\| `(.+?)` \|", README, re.MULTILINE) if re.match(r"\w+Error: ", text)]


def mistakes() -> Iterator[Callable[[], Any]]:
    """What users do, one call each."""
    apply, params, _ = mo.functional(nn.Linear(1, 1))
    loss_fn = lambda p, b: ((apply(p, b[0]) - b[1]) ** 2).mean()
    errors_fn = lambda p, b: (apply(p, b[0]) - b[1]) ** 2
    opt = mo.optim.sgd(lr=0.1)
    episodes = mo.tasks.sinusoid().sample(num_tasks=4, seed=0)
    batch, temperature = mo.tree.index(episodes.support, 0), torch.tensor(1.0, requires_grad=True)
    heavy = opt.hparams._replace(momentum=torch.tensor(0.9))
    ragged = mo.Episode(episodes.support, mo.tree.index(episodes.query, slice(3)))
    tracking, tracked, _ = mo.functional(nn.BatchNorm1d(2))
    wrapped = type("DistributedDataParallel", (nn.Module,), {})()
    rates = mo.optim.sgd(lr=torch.ones(3))
    problem = mo.hypergrad.Problem(
        lambda p, b, t: (p - t) ** 2, opt, (), 4, lambda p, b, t: p**2, params=torch.tensor(1.0)
    )
    phi = mo.Meta(None, None, (torch.tensor(1.0),))
    steep = mo.hypergrad.Problem(lambda p, b: p**4, mo.optim.sgd(lr=1.0), (), 40)
    yield lambda: mo.unroll(lambda p, b: temperature * loss_fn(p, b), opt, params, batch, 4, memory="sqrt")
    yield lambda: mo.map_tasks(lambda p, x: tracking(p, x).sum(), how="vmap")(tracked, torch.randn(3, 4, 2))
    yield lambda: mo.inner_step(errors_fn, opt, params, opt.init(params), batch)
    yield lambda: opt.update(params, opt.init(params), params, heavy)
    yield lambda: opt.update(params, opt.init(params), params, mo.optim.adam().hparams)
    yield lambda: mo.map_tasks(lambda p, e: loss_fn(p, e.query))(params, ragged)
    yield lambda: mo.map_tasks(lambda p, e: 3.0)(params, episodes)
    yield lambda: mo.unroll(loss_fn, opt, {"w": torch.ones(2).long()}, batch, 1)
    yield lambda: mo.unroll(loss_fn, rates, params, batch, 5, per_step_hparams=True)
    yield lambda: mo.hypergrad.first_order(problem, phi)
    yield lambda: mo.hypergrad.unrolled(steep, torch.tensor(9.0))
    yield lambda: mo.functional(wrapped)
    yield mo.plot.figure


def said() -> list[str]:
    messages = []
    for mistake in mistakes():
        with pytest.raises(MetaoptError) as caught:
            mistake()
        messages.append(f"{caught.type.__name__}: {caught.value}")
    return messages


def test_every_row_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    messages = said()
    assert len(set(messages)) == len(messages)
    assert len(ROWS) >= 3
    for row in ROWS:
        pattern = ".*".join(re.escape(part.strip()) for part in row.split("..."))
        assert any(re.match(pattern, message) for message in messages), f"nothing says: {row}"


def test_every_message_says_where_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for message in said():
        assert re.match(r"\w+Error: [\w.]+(\([\w.]+\))?: expected .+, got .+\.", message), message
