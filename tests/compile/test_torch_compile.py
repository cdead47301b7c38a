"""torch.compile around our functions: what a user's own compiled code may call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo


def test_running_statistics_compile_on_a_plain_loop() -> None:
    torch.manual_seed(0)
    apply, params, _ = mo.functional(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double())
    x = torch.randn(5, 2, dtype=torch.float64)
    compiled = torch.compile(lambda p, x: apply(p, x), backend="eager")
    torch.testing.assert_close(compiled(params, x), apply(params, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(3, 3), (3, 4)])
def test_axis_size_compiles_with_dynamic_shapes(sizes: tuple[int, int]) -> None:
    def size(trees: Any) -> Tensor:
        return torch.ones(()) * mo.tree.axis_size("f(x)", trees)

    compiled = torch.compile(size, backend="eager", dynamic=True)
    trees = [torch.zeros(n, 2) for n in sizes]
    if sizes[0] == sizes[1]:
        assert compiled(trees).item() == 3
    else:
        with pytest.raises(mo.errors.StructureError, match="expected 3 entries on axis 0"):
            compiled(trees)
