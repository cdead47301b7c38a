"""The outer loop, and two problems for it: weight decay per parameter, learned augmentation."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import metaopt as mo
from metaopt import hypergrad as hg
from metaopt import linsolve
from metaopt.errors import ArgumentError, StructureError

G = torch.Generator().manual_seed(4)
X = torch.randn(8, 4, generator=G, dtype=torch.float64)
W = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)  # the last two features tell nothing
Y = X @ W + 0.8 * torch.randn(8, generator=G, dtype=torch.float64)
XV = torch.randn(40, 4, generator=G, dtype=torch.float64)
HELD_OUT = (XV, XV @ W)
ZERO = torch.zeros(4, dtype=torch.float64)


def squares(w: Tensor, batch: Any) -> Tensor:
    x, y = batch
    return (x @ w - y).square().sum() / 2


def solution(decay: Tensor) -> tuple[Tensor, Tensor]:
    """(w*, H) of ½‖Xw − y‖² + ½ Σ λ_i w_i²."""
    h = X.T @ X + torch.diag(decay)
    return torch.linalg.solve(h, X.T @ Y), h


@pytest.mark.parametrize(
    "solve", [linsolve.cg(20, 1e-14), linsolve.neumann(4000, 0.04)], ids=["cg", "neumann"]
)
def test_closed_form_7_for_each_parameter(solve: Any) -> None:
    """dF/dλ_i = −(H⁻¹∇F)_i w_i, and d/d log λ_i is λ_i times that."""
    log_decay = torch.tensor([-1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    w, h = solution(log_decay.exp())
    problem = mo.learned_decay(squares, mo.optim.sgd(0.01), w, (X, Y), HELD_OUT, 0)
    found = hg.implicit(problem, mo.Meta(None, None, (log_decay,)), solve=solve)
    outer = torch.func.grad(squares)(w, HELD_OUT)
    expected = -log_decay.exp() * torch.linalg.solve(h, outer) * w
    torch.testing.assert_close(found.grad.phi[0], expected, rtol=1e-9, atol=1e-11)


def test_one_decay_for_a_tensor_is_the_sum() -> None:
    w, h = solution(torch.full((4,), 2.0, dtype=torch.float64))
    problem = mo.learned_decay(squares, mo.optim.sgd(0.01), w, (X, Y), HELD_OUT, 0)
    log_decay = torch.tensor(2.0, dtype=torch.float64).log()
    found = hg.implicit(problem, mo.Meta(None, None, (log_decay,)), solve=linsolve.cg(20, 1e-14))
    outer = torch.func.grad(squares)(w, HELD_OUT)
    torch.testing.assert_close(found.grad.phi[0], -2 * outer @ torch.linalg.solve(h, w))  # closed form 7


def test_what_tells_nothing_is_decayed_and_the_rest_is_not() -> None:
    """With orthonormal features w*_i = (xᵀy)_i/(1 + λ_i): each weight has its own best decay."""
    q = torch.linalg.qr(X).Q
    y = q @ (W + torch.tensor([0.0, 0.0, 0.3, -0.3], dtype=torch.float64))
    eye = torch.eye(4, dtype=torch.float64)
    problem = mo.learned_decay(squares, mo.optim.sgd(0.1), ZERO, (q, y), (eye, W), 20)
    estimator = functools.partial(hg.implicit, solve=linsolve.neumann(20, 0.1))
    phi = mo.Meta(None, None, (torch.zeros(4, dtype=torch.float64),))
    found = mo.bilevel(problem, phi, mo.optim.adam(0.1), 25, estimator=estimator, warm_start=True)
    assert found.values[-1] < 0.5 * squares(q.T @ y, (eye, W)), "better than no decay"
    assert found.phi.phi[0][2:].min() > 1 > -1 > found.phi.phi[0][:2].max()


def test_decay_needs_the_structure_of_params() -> None:
    problem = mo.learned_decay(lambda p, b: p["w"].sum(), mo.optim.sgd(), {"w": ZERO}, (), (), 1)
    with pytest.raises(StructureError, match=r"learned_decay\(phi\)"):
        hg.unrolled(problem, mo.Meta(None, None, ({"v": ZERO},)))


def axes_noise() -> Tensor:
    """Noise whose mean is 0 and whose covariance is I, exactly: ±√d e_k for each axis, [2d, 1, d]."""
    d = 4
    noise = d**0.5 * torch.cat([torch.eye(d), -torch.eye(d)]).double()
    return noise[:, None]


def mean_squares(w: Tensor, batch: Any) -> Tensor:
    x, y = batch  # [draw, example, feature] or [example, feature]
    residuals = x @ w - y
    return residuals.square().sum(-1).mean() / 2


@pytest.mark.parametrize("estimator", ["implicit", "fixed_point"])
def test_input_noise_is_ridge(estimator: str) -> None:
    """E ½‖(X+σE)w − y‖² = ½‖Xw − y‖² + ½ N σ² ‖w‖²: closed form 7 at λ = Nσ², and dλ/d log σ = 2λ."""
    sigma = torch.tensor(0.4, dtype=torch.float64)
    ridge = 8 * sigma**2
    w, h = solution(ridge.expand(4))
    problem = mo.learned_augmentation(
        mean_squares, mo.jitter, mo.optim.sgd(0.01), w, (X, Y), axes_noise(), HELD_OUT, 0
    )
    solve = linsolve.dense()
    found = getattr(hg, estimator)(problem, mo.Meta(None, None, (sigma.log(),)), solve=solve)
    outer = torch.func.grad(squares)(w, HELD_OUT)
    torch.testing.assert_close(found.grad.phi[0], -2 * ridge * outer @ torch.linalg.solve(h, w))


def test_the_range_of_a_rotation_is_found() -> None:
    """Held-out points are turned by up to a radian, training points are not: the augmentation learns to."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(60, 2, generator=g, dtype=torch.float64) * torch.tensor([2.0, 0.3])
    spread = torch.linspace(-1, 1, 60, dtype=torch.float64)[torch.randperm(60, generator=g)]
    nothing = torch.zeros(60, dtype=torch.float64)
    true = torch.tensor(1.0, dtype=torch.float64)
    held_out = mo.turn((base, nothing), spread, true)

    def spread_loss(p: Tensor, batch: Any) -> Tensor:
        """A centred Gaussian with precision p pᵀ + I/10."""
        x, _ = batch
        precision = p @ p.T + torch.eye(2, dtype=torch.float64) / 10
        return ((x @ precision) * x).sum(-1).mean() / 2 - precision.logdet() / 2

    problem = mo.learned_augmentation(
        spread_loss,
        mo.turn,
        mo.optim.sgd(0.3),
        torch.eye(2, dtype=torch.float64),
        (base, nothing),
        spread,
        held_out,
        100,
    )
    at = lambda r: hg.unrolled(problem, mo.Meta(None, None, (torch.tensor(r, dtype=torch.float64),)))
    assert at(0.6).grad.phi[0] < -1e-3
    assert at(1.4).grad.phi[0] > 1e-3
    # the augmented set is then the held-out one, and θ* the best for both
    assert at(1.0).grad.phi[0].abs() < 1e-6


def test_new_noise_in_every_step_and_finite_differences() -> None:
    noise = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    batch = (X.expand(3, 8, 4), Y.expand(3, 8))
    problem = mo.learned_augmentation(
        mean_squares, mo.jitter, mo.optim.sgd(0.02), ZERO, batch, noise, HELD_OUT
    )
    at = lambda s: hg.unrolled(problem, mo.Meta(None, None, (torch.tensor(s, dtype=torch.float64),)))
    slope = (at(-1 + 1e-6).value - at(-1 - 1e-6).value) / 2e-6
    torch.testing.assert_close(at(-1.0).grad.phi[0], slope, rtol=1e-7, atol=1e-8)


def test_numbers_of_phi_stay_and_its_tensors_move() -> None:
    """Learned rate by the same loop: d/dα of ½θ² after 1 step from 2 is −2(2−2α); α* = 1."""
    opt = mo.optim.sgd(0.5)
    problem = hg.Problem(lambda p, b: p.square() / 2, opt, num_steps=1, params=torch.tensor(2.0))
    phi = mo.Meta(None, opt.hparams._replace(lr=torch.tensor(0.5)))
    found = mo.bilevel(problem, phi, mo.optim.sgd(0.1), 60)
    assert found.phi.hparams.lr.item() == pytest.approx(1.0, abs=1e-4)
    assert found.phi.hparams.momentum == 0.0
    assert found.values.shape == (60,)


def test_no_history_remains() -> None:
    phi = torch.tensor(1.0, requires_grad=True)
    problem = hg.Problem(lambda p, b: p.square() / 2, mo.optim.sgd(0.5), num_steps=1)
    found = mo.bilevel(problem, phi, mo.optim.sgd(0.1), 2)
    assert not found.phi.requires_grad
    assert not found.values.requires_grad


def test_updates_are_counted() -> None:
    problem = hg.Problem(lambda p, b: p.square() / 2, mo.optim.sgd(0.5), num_steps=1)
    with pytest.raises(ArgumentError, match=r"bilevel\(num_updates\): expected an integer >= 0, got -1"):
        mo.bilevel(problem, torch.tensor(1.0), mo.optim.sgd(0.1), -1)
    assert mo.bilevel(problem, torch.tensor(1.0), mo.optim.sgd(0.1), 0).values.shape == (0,)
