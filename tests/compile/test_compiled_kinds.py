"""Every module kind, compiled: the meta-gradient is the eager one, or the report says why it stayed eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from kinds import KINDS, build
from torch._dynamo.backends.common import aot_autograd

import metaopt as mo

# torch maps these by a slow loop, says so, and is right.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
# "aot_eager" without its assertions on every operation, which take a third of the time
REPLAY = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward))


def gradients(name: str, **how: Any) -> list[torch.Tensor]:
    kind = KINDS[name]
    net, episodes = build(kind)
    apply, params, _ = mo.functional(net, batch_norm=kind.batch_norm)
    loss = lambda p, b: (apply(p, b[0]) - b[1]).square().mean()
    task = mo.maml(loss, mo.optim.sgd(0.3), 1)
    out = mo.map_tasks(task, seed=3, **how)(params, mo.Episode(*episodes)).sum()
    return [out, *torch.autograd.grad(out, list(params.values()))]


@pytest.mark.parametrize("name", KINDS)
def test_a_compiled_step_is_the_eager_step(name: str) -> None:
    mo.forget_compiled()
    expected = gradients(name, how="vmap")
    found = gradients(name, how="vmap", compile=mo.Compile("step", REPLAY))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    rows = mo.compile_report()
    assert [row.name for row in rows] == ["unroll step", "unroll step, derivative"]
    assert all(row.run for row in rows), rows
