"""Ten steps of every torch optimizer × options × dtype, against torch.optim."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import CASES, Case, Options
from optim_trees import grads_at, make_params, run

from metaopt import tree

NUM_STEPS = 10
ROWS = [
    pytest.param(case, options, id=f"{case.name}-{'-'.join(f'{k}={v}' for k, v in options.items())}")
    for case in CASES
    if case.peer is not None
    for options in case.options
]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch.optim keeps its 0-d state in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def torch_run(case: Case, options: Options, params: Any, half: bool) -> list[torch.Tensor]:
    """The same ten steps in torch. Half precision: float32 arithmetic, rounded once a step."""
    leaves, structure = tree.flatten(params)
    wide = [torch.nn.Parameter(p.float() if half else p.clone()) for p in leaves]
    with default_dtype(wide[0].dtype):
        opt = case.peer(wide, **options)
        for step in range(NUM_STEPS):
            now = tree.unflatten(structure, [p.detach().to(leaves[0].dtype) for p in wide])
            for p, g in zip(wide, tree.leaves(grads_at(now, step)), strict=True):
                p.grad = g.to(p.dtype)
            opt.step()
            for p in wide:
                p.data = p.data.to(leaves[0].dtype).to(p.dtype)
    return [p.detach().to(leaves[0].dtype) for p in wide]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"])
@pytest.mark.parametrize(("case", "options"), ROWS)
def test_equals_torch_optim(case: Case, options: Options, dtype: torch.dtype) -> None:
    params = make_params(dtype, case.matrices)
    ours, _ = run(case.make(**options), params, NUM_STEPS)
    theirs = torch_run(case, options, params, half=dtype == torch.bfloat16)
    rtol, atol = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-5, 2e-6), torch.bfloat16: (8e-3, 1e-5)}[
        dtype
    ]
    for p, q in zip(tree.leaves(ours), theirs, strict=True):
        assert p.dtype == q.dtype == dtype
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


def test_there_are_a_thousand_cases() -> None:
    assert 3 * len(ROWS) >= 1000, 3 * len(ROWS)
