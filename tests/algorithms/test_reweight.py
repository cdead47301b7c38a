"""Learning to reweight: closed form 13, rectified, normalised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metaopt as mo
from metaopt.errors import StructureError

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TRUTH = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
Y = X @ TRUTH + torch.tensor([0.0, 0.0, 0.0, 5.0, -5.0, 5.0], dtype=torch.float64)
CLEAN = (X.flip(1), X.flip(1) @ TRUTH)
START = torch.tensor([0.3, 0.2, -0.1], dtype=torch.float64)


def losses_fn(w: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (x @ w - y) ** 2 / 2


def test_closed_form_13() -> None:
    """At ε = 0 θ̂ = θ: dF/dε_i = −α g_iᵀ∇F(θ), and the weights are its negative part, normalised."""
    opt = mo.optim.sgd(0.1)
    found = mo.reweight(losses_fn, opt, START, opt.init(START), (X, Y), CLEAN)
    g = X * (X @ START - Y)[:, None]
    outer = (CLEAN[0] * (CLEAN[0] @ START - CLEAN[1])[:, None]).mean(0)
    torch.testing.assert_close(found.slopes, -0.1 * g @ outer, rtol=1e-12, atol=1e-12)
    useful = (0.1 * g @ outer).clamp(min=0)
    assert 0 < (useful > 0).sum() < 6, "the case must have examples of both signs"
    torch.testing.assert_close(found.weights, useful / useful.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.params, START - 0.1 * found.weights @ g, rtol=1e-12, atol=1e-12)


def test_finite_differences_with_momentum_under_way() -> None:
    opt = mo.optim.sgd(0.1, momentum=0.9)
    state = opt.init(START)._replace(momentum_buffer=torch.full_like(START, 0.4))
    found = mo.reweight(losses_fn, opt, START, state, (X, Y), CLEAN)

    def clean(epsilon: Tensor) -> Tensor:
        weighted = lambda w, b, e: (e * losses_fn(w, b)).sum()
        ahead, _, _ = mo.inner_step(weighted, opt, START, state, (X, Y), phi=(epsilon,))
        return losses_fn(ahead, CLEAN).mean()

    h = 1e-6 * torch.eye(6, dtype=torch.float64)
    slopes = torch.stack([(clean(e) - clean(-e)) / 2e-6 for e in h])
    torch.testing.assert_close(found.slopes, slopes, rtol=1e-7, atol=1e-8)


def test_where_no_example_helps_all_weights_are_zero() -> None:
    opt = mo.optim.sgd(0.1)
    at_rest = (X, X @ TRUTH)  # every gradient is 0
    found = mo.reweight(losses_fn, opt, TRUTH, opt.init(TRUTH), at_rest, CLEAN)
    assert found.weights.tolist() == [0.0] * 6
    assert torch.equal(found.params, TRUTH)


def test_maps_over_tasks_and_ignores_bad_examples() -> None:
    opt = mo.optim.sgd(0.1)

    def train(num_steps: int) -> Any:
        def task(start: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            w, state = start, opt.init(start)
            for _ in range(num_steps):
                w, state, weights, *_ = mo.reweight(losses_fn, opt, w, state, (X, y), CLEAN)
            return w, weights

        return task

    ys = torch.stack([Y, Y.flip(0)])
    # the weights switch on and off, so that the path is chaotic: rounding grows tenfold every 8 steps
    mapped, looped = (mo.map_tasks(train(20), how=how)(START, ys) for how in ("vmap", "loop"))
    torch.testing.assert_close(mapped, looped, rtol=1e-9, atol=1e-9)
    plain = torch.linalg.lstsq(X, Y).solution
    found, _ = mo.map_tasks(train(150), how="vmap")(START, ys)
    assert (found[0] - TRUTH).norm() < 0.2 * (plain - TRUTH).norm()


def test_leaves_must_agree_on_the_examples() -> None:
    opt = mo.optim.sgd(0.1)
    with pytest.raises(StructureError, match=r"reweight\(batch\): expected 6 examples on axis 0"):
        mo.reweight(losses_fn, opt, START, opt.init(START), (X, Y[:4]), CLEAN)
