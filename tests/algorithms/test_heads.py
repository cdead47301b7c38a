"""Heads without an inner loop: what prototypes, ridge and the support vector machine solve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenarios import assert_close, vector
from torch import Tensor
from torch.nn import functional as F

import metaopt as mo
from metaopt import Episode
from metaopt import algorithms as alg
from metaopt.errors import ArgumentError

DOUBLE = torch.float64
X = vector(6 * 4, 1).reshape(6, 4)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
QUERY = vector(5 * 4, 2).reshape(5, 4)
TARGET = F.one_hot(Y, 3).to(DOUBLE)


def embed(scale: Tensor, x: Tensor) -> Tensor:
    return scale * x


def logits_of(task: Any, meta_params: Any) -> Tensor:
    found: Tensor = task(meta_params, Episode((X, Y), (QUERY, torch.zeros(5, dtype=torch.int64))))
    return found


def test_prototypes_are_class_means_and_the_network_is_linear_in_them() -> None:
    """Snell et al. 2017, equation 8: −‖f − c‖² = 2cᵀf − cᵀc + a term that no class sees."""
    centres = alg.prototypes(X, Y, 3)
    assert_close(centres, torch.stack([X[k == Y].mean(0) for k in range(3)]))
    task = mo.protonet(embed, 3, query_loss_fn=lambda logits, y: logits)
    got = logits_of(task, torch.tensor(1.0, dtype=DOUBLE))
    linear = 2 * QUERY @ centres.T - (centres**2).sum(1)
    assert_close(got.log_softmax(1), linear.log_softmax(1))


def test_a_class_without_examples_is_an_error_that_names_it_and_the_task() -> None:
    """Its mean would be 0/0, and the loss NaN."""
    task, scale = mo.protonet(embed, 3), torch.tensor(1.0, dtype=DOUBLE)
    gone = Episode((X, Y.clamp_max(1)), (QUERY, torch.zeros(5, dtype=torch.int64)))
    with pytest.raises(ArgumentError, match=r"protonet\(support\): .* of 3 classes, got none of class 2\."):
        task(scale, gone)
    two = mo.tree.stack([gone._replace(support=(X, Y)), gone])
    with pytest.raises(ArgumentError, match=r"none of class 2 of task 1\."):
        torch.func.grad(lambda s: mo.map_tasks(task)(s, two).sum())(scale)


@pytest.mark.parametrize("decay", [1e-3, 1.0, 50.0])
def test_ridge_by_woodbury_is_the_normal_equations_solution(decay: float) -> None:
    """Bertinetto et al. 2019, equations 3 and 4: Xᵀ(XXᵀ+λI)⁻¹Y = (XᵀX+λI)⁻¹XᵀY."""
    eye = torch.eye(4, dtype=DOUBLE)
    want = torch.linalg.solve(X.T @ X + decay * eye, X.T @ TARGET)
    assert_close(alg.ridge(X, TARGET, decay), want, 1e-10)


def test_the_ridge_head_scales_and_shifts() -> None:
    head = alg.RidgeHead(*(torch.tensor(v, dtype=DOUBLE) for v in (-0.5, 3.0, 0.2)))
    task = mo.r2d2(embed, 3, query_loss_fn=lambda logits, y: logits)
    weight = alg.ridge(X, TARGET, head.log_decay.exp())
    assert_close(logits_of(task, (torch.tensor(1.0, dtype=DOUBLE), head)), 3.0 * QUERY @ weight + 0.2)


def dual_value(a: Tensor, x: Tensor, target: Tensor) -> Tensor:
    return -((x.T @ a) ** 2).sum() / 2 - (a**2).sum() / 2 + (a * target).sum()


@pytest.mark.parametrize("reg", [0.02, 0.1, 1.0])
def test_svm_dual_is_feasible_and_no_feasible_direction_climbs(reg: float) -> None:
    """a ≤ C·Y, Σ_k a = 0, and ⟨∇, b − a⟩ ≤ 0 for every vertex b: optimal, the problem being concave."""
    a = alg.svm_dual(X, TARGET, reg, num_iters=4000)
    assert bool((a <= reg * TARGET + 1e-12).all())
    assert_close(a.sum(1), torch.zeros(6, dtype=DOUBLE))
    slope = TARGET - X @ (X.T @ a) - a
    vertices = reg * (torch.eye(3, dtype=DOUBLE)[Y][:, None] - torch.eye(3, dtype=DOUBLE))
    gain = ((vertices - a[:, None]) * slope[:, None]).sum(-1).amax(1)
    assert float(gain.max()) < 1e-8


def test_thirty_iterations_come_near_the_optimum() -> None:
    far, near, best = (dual_value(alg.svm_dual(X, TARGET, 0.1, n), X, TARGET) for n in (1, 30, 4000))
    assert float(best - near) < 1e-2 * float(best - far)


def test_svm_of_two_points_is_known_by_hand() -> None:
    """x = ±1, two classes, a = t(1,−1; −1,1): −2t²·2 − 2t² + 2t, so t = 1/6 where C does not bind."""
    x = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    a = alg.svm_dual(x, torch.eye(2, dtype=DOUBLE), 1.0, 2000)
    assert_close(a, torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=DOUBLE) / 6, 1e-10)


def test_the_machine_classifies_by_its_dual() -> None:
    scale = torch.tensor(2.0, dtype=DOUBLE)
    task = mo.metaoptnet(embed, 3, query_loss_fn=lambda logits, y: logits)
    want = 2.0 * QUERY @ X.T @ alg.svm_dual(X, TARGET)
    assert_close(logits_of(task, (torch.tensor(1.0, dtype=DOUBLE), scale)), want)
