"""Cleaning finds the flipped labels, whatever the estimator; the projection is the nearest point."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import metaopt as mo
from metaopt import linsolve
from metaopt.errors import ArgumentError


def losses_fn(w: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(batch[0] @ w, batch[1], reduction="none")


def blobs(n: int, seed: int, flipped: int = 0) -> Any:
    """Three classes in the plane, the first labels of them replaced by another class."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=g)
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], dtype=torch.float64)
    x = centres[y] + 0.6 * torch.randn(n, 2, generator=g, dtype=torch.float64)
    y[:flipped] = (y[:flipped] + torch.randint(1, 3, (flipped,), generator=g)) % 3
    return torch.cat([x, torch.ones(n, 1, dtype=torch.float64)], 1), y


START = torch.zeros(3, 3, dtype=torch.float64)


def problem(num_steps: int = 30, params: Tensor = START) -> mo.hypergrad.Problem:
    opt = mo.optim.sgd(1.0)
    return mo.hyper_cleaning(losses_fn, opt, params, blobs(40, 1, 20), blobs(30, 2), num_steps)


def phi(n: int = 40) -> mo.Meta:
    return mo.Meta(None, None, (torch.full((n,), 0.5, dtype=torch.float64),))


@pytest.mark.parametrize("name", ["unrolled", "mixed", "forward"])
def test_one_step_is_the_alignment_of_gradients(name: str) -> None:
    """Closed form 13 with the mean of the loss: dF/dλ_i = −α/N g_iᵀ ∇F(θ_1)."""
    some = problem(1, params=0.1 * torch.arange(9.0, dtype=torch.float64).reshape(3, 3))
    found = getattr(mo.hypergrad, name)(some, phi())
    g = torch.func.jacrev(losses_fn)(some.params, some.batch)
    after = torch.func.grad(lambda w: losses_fn(w, some.outer_batch).mean())(found.aux.params)
    expected = -torch.einsum("nij,ij->n", g, after) / 40
    torch.testing.assert_close(found.grad.phi[0], expected, rtol=1e-12, atol=1e-12)


def f1(kept: Tensor, flipped: int) -> float:
    right = (~kept[:flipped]).sum().item()
    return 2 * right / ((~kept).sum().item() + flipped)


@pytest.mark.parametrize("name", ["unrolled", "forward"])
def test_finds_the_flipped_labels(name: str) -> None:
    found = mo.bilevel(
        problem(),
        phi(),
        mo.optim.adam(0.1),
        25,
        estimator=getattr(mo.hypergrad, name),
        project=mo.project_weights,
    )
    assert f1(found.phi.phi[0] >= 0.5, 20) >= 0.9
    assert found.values[-1] < 0.5 * found.values[0]


def test_finds_them_by_implicit_differentiation() -> None:
    """The loss is made strongly convex, and the solution kept from one outer step to the next."""
    opt = mo.optim.sgd(1.0)
    penalty = lambda w: 0.05 * w.square().sum()
    some = mo.hyper_cleaning(losses_fn, opt, START, blobs(40, 1, 20), blobs(30, 2), 30, penalty=penalty)
    estimator = functools.partial(mo.hypergrad.implicit, solve=linsolve.cg(20, 1e-6))
    found = mo.bilevel(
        some,
        phi(),
        mo.optim.adam(0.1),
        25,
        estimator=estimator,
        project=mo.project_weights,
        warm_start=True,
    )
    assert f1(found.phi.phi[0] >= 0.5, 20) >= 0.9


def test_cleaning_maps_over_tasks() -> None:
    batches, cleans = (mo.tree.stack([blobs(12, s, k) for s in (1, 3)]) for k in (6, 0))

    def cleaned(_: Tensor, both: Any) -> Tensor:
        some = mo.hyper_cleaning(losses_fn, mo.optim.sgd(1.0), START, *both, 5)
        return mo.bilevel(some, phi(12), mo.optim.sgd(20.0), 4, project=mo.project_weights).phi.phi[0]

    mapped = mo.map_tasks(cleaned, how="vmap")(START, (batches, cleans))
    looped = mo.map_tasks(cleaned, how="loop")(START, (batches, cleans))
    torch.testing.assert_close(mapped, looped, rtol=1e-10, atol=1e-10)
    assert ((mapped > 0) & (mapped < 1)).any(), "weights must have moved, and not all to the corners"


def test_the_projection_is_the_nearest_point() -> None:
    """⟨λ − Πλ, z − Πλ⟩ ≤ 0 for every z of the set, and Πλ is in it: the definition of the nearest point."""
    g = torch.Generator().manual_seed(0)
    points = 3 * torch.randn(40, 7, generator=g, dtype=torch.float64)
    found = torch.vmap(lambda x: mo.project_weights(x, 2.5))(points)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found.sum(1) <= 2.5 + 1e-12).all()
    z = torch.rand(500, 7, generator=g, dtype=torch.float64)
    z = z * (2.5 / z.sum(1, keepdim=True)).clamp(max=1)
    corners = torch.eye(7, dtype=torch.float64)
    z = torch.cat([z, corners, 0 * corners[:1], corners[:6] + corners[1:]])
    products = torch.einsum("ij,ikj->ik", points - found, z - found[:, None])
    assert (products <= 1e-9).all()


def test_a_budget_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match=r"project_weights\(budget\): expected a number > 0 or None"):
        mo.project_weights(torch.ones(2), budget=0.0)


def test_digits_half_of_the_labels_flipped() -> None:
    """scikit-learn's digits: F1 of the flipped labels ≥ 0.9, and most of the way back to the oracle."""
    pytest.importorskip("sklearn", reason="scikit-learn (extra [test]) is not installed")
    from benchmarks import hyper_cleaning as bench

    data = bench.split(bench.digits(), 0, 0.5)
    kept = bench.clean(data, "unrolled", 50, 40).phi.phi[0] >= 0.5
    assert bench.f1(~kept, data.flipped) >= 0.9
    every = torch.ones_like(kept)
    noisy, cleaned, oracle = (
        bench.accuracy(bench.fit(bench.joined(data, k)), data.test) for k in (every, kept, ~data.flipped)
    )
    assert cleaned - noisy >= 0.6 * (oracle - noisy) > 0
