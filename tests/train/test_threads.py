"""Threads: as many as one likes over one module, and the numbers of one after another."""

from __future__ import annotations

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import metaopt as mo


def net() -> nn.Module:
    layers = [nn.Linear(2, 16), nn.LayerNorm(16), nn.Tanh(), nn.BatchNorm1d(16, track_running_stats=False)]
    return nn.Sequential(*layers, nn.Linear(16, 1)).double()


def gradient(apply: Any, params: Any, seed: int, how: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    task = mo.maml(lambda p, b: (apply(p, b) ** 2).mean(), mo.optim.sgd(lr=0.1), num_steps=3)
    loss = mo.map_tasks(task, how=how)(params, mo.Episode(x, x)).mean()
    grads = torch.autograd.grad(loss, list(params.values()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("how", ["loop", "vmap"])
@pytest.mark.parametrize("shared", ["apply", "module"])
def test_eight_threads_give_the_serial_numbers(shared: str, how: str) -> None:
    module = net()
    one, params, _ = mo.functional(module)
    serial = [gradient(one, params, seed, how) for seed in range(24)]
    often, interval = 1e-5, sys.getswitchinterval()
    sys.setswitchinterval(often)  # so that threads meet in the middle of a call

    def work(seed: int) -> torch.Tensor:
        apply = one if shared == "apply" else mo.functional(module)[0]
        return gradient(apply, params, seed, how)

    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(work, range(24)))
    finally:
        sys.setswitchinterval(interval)
    for a, b in zip(found, serial, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(isinstance(p, nn.Parameter) for p in module.parameters()), "the module is as it was"


def test_a_function_that_was_called_can_be_copied_and_pickled() -> None:
    apply, params, _ = mo.functional(nn.Linear(2, 1))
    expected = apply(params, torch.ones(1, 2))
    for twin in (copy.deepcopy(apply), pickle.loads(pickle.dumps(apply))):
        assert torch.equal(twin(params, torch.ones(1, 2)), expected)
