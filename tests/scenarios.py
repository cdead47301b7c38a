"""Inner problems whose hypergradient is known in closed form (float64).

A Scenario is a Problem, a φ, and the truth: the exact hypergradient as a tree like φ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import metaopt as mo
from metaopt import Meta
from metaopt.hypergrad import Problem

DOUBLE = torch.float64


class Scenario(NamedTuple):
    name: str
    problem: Problem
    phi: Any
    truth: Any  # a tree like φ; 0.0 where φ has a number


def f64(*values: Any) -> Tensor:
    return torch.tensor(*values, dtype=DOUBLE)


def positive(n: int, seed: int) -> Tensor:
    """A symmetric positive definite matrix with eigenvalues in [1/2, 2]."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=DOUBLE))
    return q @ torch.diag(torch.linspace(0.5, 2.0, n, dtype=DOUBLE)) @ q.T


def vector(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def _power(matrix: Tensor, k: int) -> Tensor:
    return torch.linalg.matrix_power(matrix, k)


def itself(params: Tensor, batch: Any, *phi: Any) -> Tensor:
    """F(θ) = θ, or the sum of its entries: the hypergradient is then dθ_T/dφ."""
    return params.sum()


def scalar_quadratic(params: Tensor, batch: Any) -> Tensor:
    a, b = batch
    return a * (params - b) ** 2 / 2


def quadratic(params: Tensor, batch: Any) -> Tensor:
    matrix, centre = batch
    return (params - centre) @ matrix @ (params - centre) / 2


def sgd_of(**hparams: Any) -> Any:
    """SGD's hyperparameters: tensors are meta-learned, numbers are not."""
    return mo.optim.sgd(**hparams)


def only(hparams: Any, **truth: Tensor) -> Any:
    """The truth for hyperparameters of which the rest are constants."""
    return type(hparams)(*(truth.get(field, 0.0) for field in hparams._fields))


def lr_of_scalar(steps: int = 5) -> Scenario:
    """1. dθ_T/dα = −T·a·r^{T−1}(θ0−b)."""
    a, b, theta, alpha = f64(1.5), f64(0.3), f64(2.0), f64(0.4)
    opt = sgd_of(lr=alpha)
    r = 1 - alpha * a
    problem = Problem(scalar_quadratic, opt, (a, b), steps, itself, params=theta)
    truth = only(opt.hparams, lr=-steps * a * r ** (steps - 1) * (theta - b))
    return Scenario("1 lr of a scalar", problem, Meta(None, opt.hparams), Meta(None, truth))


def init_of_scalar(steps: int = 5) -> Scenario:
    """2. dθ_T/dθ0 = r^T."""
    a, b, alpha = f64(1.5), f64(0.3), 0.4
    problem = Problem(scalar_quadratic, sgd_of(lr=alpha), (a, b), steps, itself)
    return Scenario("2 init of a scalar", problem, f64(2.0), (1 - alpha * a) ** steps)


def lr_of_matrix(steps: int = 4, n: int = 5) -> Scenario:
    """3. dx_T/dα = −T·A(I−αA)^{T−1}(x0−x*)."""
    matrix, centre, start, alpha = positive(n, 1), vector(n, 2), vector(n, 3), f64(0.3)
    opt = sgd_of(lr=alpha)
    problem = Problem(quadratic, opt, (matrix, centre), steps, itself, params=start)
    inner = torch.eye(n, dtype=DOUBLE) - alpha * matrix
    slope = -steps * matrix @ _power(inner, steps - 1) @ (start - centre)
    truth = Meta(None, only(opt.hparams, lr=slope.sum()))
    return Scenario("3 lr of a matrix", problem, Meta(None, opt.hparams), truth)


def momentum_of_scalar(steps: int = 6) -> Scenario:
    """4. s = (v, θ): ds_T/dμ = Σ_k B^{T−1−k} dB B^k s0."""
    h, alpha, mu, theta = f64(1.2), 0.3, f64(0.7), f64(2.0)
    opt = sgd_of(lr=alpha, momentum=mu)
    problem = Problem(scalar_quadratic, opt, (h, f64(0.0)), steps, itself, params=theta)
    b = torch.stack([torch.stack([mu, h]), torch.stack([-alpha * mu, 1 - alpha * h])])
    db, s0 = f64([[1.0, 0.0], [-alpha, 0.0]]), torch.stack([f64(0.0), theta])
    terms = [_power(b, steps - 1 - k) @ db @ _power(b, k) @ s0 for k in range(steps)]
    slope = torch.stack(terms).sum(0)[1]
    truth = Meta(None, only(opt.hparams, momentum=slope))
    return Scenario("4 momentum", problem, Meta(None, opt.hparams), truth)


def decay_of_scalar(steps: int = 5) -> Scenario:
    """5. dθ_T/dλ = −(ab/k²)(1−r^T) − Tα r^{T−1}(θ0−θ*), k = a+λ, θ* = ab/k, r = 1−αk."""
    a, b, alpha, decay, theta = f64(1.5), f64(0.8), 0.3, f64(0.2), f64(2.0)
    opt = sgd_of(lr=alpha, weight_decay=decay)
    problem = Problem(scalar_quadratic, opt, (a, b), steps, itself, params=theta)
    k = a + decay
    r, centre = 1 - alpha * k, a * b / k
    slope = -(a * b / k**2) * (1 - r**steps) - steps * alpha * r ** (steps - 1) * (theta - centre)
    truth = Meta(None, only(opt.hparams, weight_decay=slope))
    return Scenario("5 L2 decay", problem, Meta(None, opt.hparams), truth)


def decoupled_decay(steps: int = 5) -> Scenario:
    """6. Decoupled decay with zero gradient: −Tα(1−αλ)^{T−1}θ0."""
    alpha, decay, theta = f64(0.3), f64(0.2), f64(2.0)

    class Decay(NamedTuple):
        lr: Any
        weight_decay: Any

    def update(params: Any, state: Any, grads: Any, h: Any) -> Any:
        return mo.tree.map(lambda p, g: p * (1 - h.lr * h.weight_decay) - h.lr * g, params, grads), state

    opt = mo.Optimizer(lambda params: (), update, Decay(0.3, decay))
    problem = Problem(lambda p, b: 0.0 * p, opt, (), steps, itself, params=theta)
    slope = -steps * alpha * (1 - alpha * decay) ** (steps - 1) * theta
    return Scenario("6 decoupled decay", problem, Meta(None, opt.hparams), Meta(None, Decay(0.0, slope)))


def one_step_maml(n: int = 4) -> Scenario:
    """9. (I−αQ)Q(I−αQ)(θ−c)."""
    q, centre, theta, alpha = positive(n, 4), vector(n, 5), vector(n, 6), 0.3
    problem = Problem(quadratic, sgd_of(lr=alpha), (q, centre), 1)
    inner = torch.eye(n, dtype=DOUBLE) - alpha * q
    return Scenario("9 one-step MAML", problem, theta, inner @ q @ inner @ (theta - centre))


def fomaml(n: int = 4) -> Scenario:
    """10. Q(I−αQ)(θ−c): what first_order must give on the problem of 9."""
    scenario = one_step_maml(n)
    q, centre = scenario.problem.batch
    inner = torch.eye(n, dtype=DOUBLE) - 0.3 * q
    return scenario._replace(name="10 FOMAML", truth=q @ inner @ (scenario.phi - centre))


def example_weights(n: int = 6, width: int = 3) -> Scenario:
    """13. One step: dF/dw_i = −α g_iᵀ∇F(θ1)."""
    x, y, theta, target, alpha = (
        vector(n * width, 7).reshape(n, width),
        vector(n, 8),
        vector(width, 9),
        0.4,
        0.1,
    )
    weights = torch.linspace(0.5, 1.5, n, dtype=DOUBLE)

    def weighted(params: Tensor, batch: Any, w: Tensor) -> Tensor:
        return (w * (batch[0] @ params - batch[1]) ** 2 / 2).sum()

    def judge(params: Tensor, batch: Any, w: Tensor) -> Tensor:
        return ((params - target) ** 2).sum() / 2

    problem = Problem(weighted, sgd_of(lr=alpha), (x, y), 1, judge, params=theta)
    grads = (x @ theta - y)[:, None] * x
    end = theta - alpha * (weights[:, None] * grads).sum(0)
    return Scenario(
        "13 example weights",
        problem,
        Meta(None, None, (weights,)),
        Meta(None, None, (-alpha * grads @ (end - target),)),
    )


def cauchy_step(n: int = 4) -> Scenario:
    """17. At α = gᵀg/gᵀAg the hypergradient for T = 1 is zero."""
    matrix, theta = positive(n, 10), vector(n, 11)
    g = matrix @ theta
    opt = sgd_of(lr=(g @ g) / (g @ matrix @ g))
    problem = Problem(quadratic, opt, (matrix, torch.zeros(n, dtype=DOUBLE)), 1, params=theta)
    return Scenario(
        "17 Cauchy step", problem, Meta(None, opt.hparams), Meta(None, only(opt.hparams, lr=f64(0.0)))
    )


def ridge(n: int = 8, width: int = 3) -> Scenario:
    """7. dF/dλ = −∇F(w)ᵀ(XᵀX+λI)⁻¹w, w the solution in closed form."""
    x, y, decay = vector(n * width, 16).reshape(n, width), vector(n, 17), f64(0.7)
    gram = x.T @ x + decay * torch.eye(width, dtype=DOUBLE)
    w, target = torch.linalg.solve(gram, x.T @ y), vector(width, 18)

    def inner(p: Tensor, batch: Any, decay: Tensor) -> Tensor:
        return ((batch[0] @ p - batch[1]) ** 2).sum() / 2 + decay * (p @ p) / 2

    def judge(p: Tensor, batch: Any, decay: Tensor) -> Tensor:
        return ((p - target) ** 2).sum() / 2

    problem = Problem(inner, sgd_of(lr=0.05), (x, y), 0, judge, params=w)
    truth = Meta(None, None, (-(w - target) @ torch.linalg.solve(gram, w),))
    return Scenario("7 ridge", problem, Meta(None, None, (decay,)), truth)


def imaml(n: int = 4, decay: float = 0.6) -> Scenario:
    """12. At the exact proximal point: (I+Q/λ)⁻¹ Q(φ−c), Q(φ−c) the outer gradient there.

    The inner loss is ½(θ−c)ᵀQ(θ−c) + λ/2‖θ−φ‖², the outer one its first part: ∇F(θ*) = Q(θ*−c).
    """
    q, centre, prior = positive(n, 19), vector(n, 20), vector(n, 21)
    eye = torch.eye(n, dtype=DOUBLE)
    point = torch.linalg.solve(q + decay * eye, q @ centre + decay * prior)

    def inner(p: Tensor, batch: Any, prior: Tensor) -> Tensor:
        return quadratic(p, batch) + decay * ((p - prior) ** 2).sum() / 2

    def judge(p: Tensor, batch: Any, prior: Tensor) -> Tensor:
        return quadratic(p, batch)

    problem = Problem(inner, sgd_of(lr=0.1), (q, centre), 0, judge, params=point)
    truth = torch.linalg.solve(eye + q / decay, q @ (point - centre))
    return Scenario("12 iMAML", problem, Meta(None, None, (prior,)), Meta(None, None, (truth,)))


def everything(steps: int = 6, n: int = 4) -> Scenario:
    """No closed form, all kinds of φ at once: estimators are compared with one another. Truth is None."""
    matrix, centre = positive(n, 12), vector(n, 13)
    opt = sgd_of(lr=f64(0.2), momentum=f64(0.5), weight_decay=f64(0.01))
    params = {"w": vector(n, 14), "b": f64(0.1)}
    phi = Meta(params, opt.hparams, (vector(n, 15),))

    def inner(p: Any, batch: Any, tilt: Tensor) -> Tensor:
        d = p["w"] - batch[1]
        return d @ batch[0] @ d / 2 + torch.sin(p["w"] * tilt).sum() * p["b"] + p["b"] ** 2

    def judge(p: Any, batch: Any, tilt: Tensor) -> Tensor:
        return (p["w"] ** 2).sum() + p["b"] * (p["w"] * tilt).sum()

    return Scenario("everything", Problem(inner, opt, (matrix, centre), steps, judge), phi, None)


EXACT: list[Callable[[], Scenario]] = [
    lr_of_scalar,
    init_of_scalar,
    lr_of_matrix,
    momentum_of_scalar,
    decay_of_scalar,
    decoupled_decay,
    one_step_maml,
    example_weights,
    cauchy_step,
]


def assert_close(got: Any, want: Any, tol: float = 1e-12) -> None:
    """Assert that two trees agree entry by entry, relative to the larger of 1 and the truth."""
    mo.tree.check_same("assert_close(got)", got, want)
    for path, x, y in zip(mo.tree.paths(want), mo.tree.leaves(got), mo.tree.leaves(want), strict=True):
        y = torch.as_tensor(y, dtype=DOUBLE)
        error = (x.to(DOUBLE) - y).abs().max() / y.abs().max().clamp_min(1.0)
        assert error < tol, f"{path}: {x} against {y}, error {error:.1e}"
