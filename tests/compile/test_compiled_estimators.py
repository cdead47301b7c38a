"""compile="whole" around an estimate: checks that read numbers step aside, and the numbers are the same."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import metaopt as mo
from metaopt import hypergrad as hg

ESTIMATORS: dict[str, Any] = {
    "unrolled": hg.unrolled,
    "truncated": partial(hg.truncated, last=2),
    "mixed": hg.mixed,
    "one_step": hg.one_step,
    "fixed_point": partial(hg.fixed_point, solve=mo.linsolve.neumann(3)),
}


def inner(w: Tensor, batch: Any, decay: Tensor) -> Tensor:
    return ((w * batch[0] - batch[1]) ** 2).mean() + decay * w**2


def outer(w: Tensor, batch: Any, decay: Tensor) -> Tensor:
    return ((w * batch[0] - batch[1]) ** 2).mean()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimate_a_task_compiles_whole(name: str) -> None:
    mo.forget_compiled()
    torch.manual_seed(0)
    part = lambda: (torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64))

    def estimate(decay: Tensor, episode: Any) -> tuple[Tensor, Tensor]:
        start = torch.zeros((), dtype=torch.float64)
        problem = hg.Problem(inner, mo.optim.sgd(0.1), *episode[:1], 3, outer, episode[1], start)
        found = ESTIMATORS[name](problem, mo.Meta(None, None, (decay,)))
        return found.grad.phi[0], found.value

    run = lambda compile: mo.map_tasks(estimate, compile=compile)(decay, episodes)
    decay, episodes = torch.tensor(0.1, dtype=torch.float64), mo.Episode(part(), part())
    torch.testing.assert_close(run(mo.Compile("whole", "aot_eager")), run(False), rtol=1e-12, atol=1e-12)
    (row,) = mo.compile_report()
    assert row.run is not None, row.reason
