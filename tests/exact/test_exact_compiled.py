"""The batched meta-loss compiles whole, mode and draws included, and its gradient is eager's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kinds import KINDS, build

import metaopt as mo

COMPILED = ["layer norm", "batch norm2d transductive", "attention no weights", "dropout"]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_eager(name: str) -> None:
    kind = KINDS[name]
    net, episodes = build(kind)
    apply, params, _ = mo.functional(net, batch_norm=kind.batch_norm)
    loss = lambda p, b: (apply(p, b[0]) - b[1]).square().mean()
    task = mo.maml(loss, mo.optim.sgd(0.3), 1)

    def meta_loss(params: Any, episodes: Any) -> Any:
        return mo.map_tasks(task, how="vmap", seed=3)(params, mo.Episode(*episodes)).sum()

    leaves = list(params.values())
    expected = torch.autograd.grad(meta_loss(params, episodes), leaves)
    compiled = torch.compile(meta_loss, backend="aot_eager", fullgraph=True, dynamic=False)
    found = torch.autograd.grad(compiled(params, episodes), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
