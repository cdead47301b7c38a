"""Hypergradient descent: the paper's formulas, and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metaopt as mo
from metaopt.errors import ArgumentError, StructureError

DOUBLE = torch.float64
BETA = 1e-3


def loss_fn(params: Any, batch: Tensor) -> Tensor:
    return torch.cosh(params["w"] * batch).sum() + (params["b"] ** 2).sum() * params["w"].sum()


def start() -> tuple[Any, Tensor]:
    draw = torch.Generator().manual_seed(0)
    params = {
        "w": torch.rand(3, generator=draw, dtype=DOUBLE),
        "b": torch.rand(2, generator=draw, dtype=DOUBLE),
    }
    return params, torch.rand(3, generator=draw, dtype=DOUBLE)


def flat(tree: Any) -> Tensor:
    return torch.cat([x.flatten() for x in mo.tree.leaves(tree)])


def run(opt: Any, steps: int) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Parameters, gradients and step sizes of a run."""
    params, batch = start()
    state, thetas, grads, rates = opt.init(params), [flat(params)], [], []
    for _ in range(steps):
        g = torch.func.grad(loss_fn)(params, batch)
        params, state = opt.update(params, state, g, opt.hparams)
        thetas.append(flat(params))
        grads.append(flat(g))
        rates.append(float(opt.hparams.inner.lr + state.drift))
    return thetas, grads, rates


def test_sgd_hd() -> None:
    """α_t = α_{t−1} + β g_t·g_{t−1}, θ_t = θ_{t−1} − α_t g_t (Algorithm 4)."""
    _, g, rates = run(mo.hypergradient_descent(mo.optim.sgd(lr=0.05), BETA), 5)
    alpha = [0.05]
    for now, before in zip(g[1:], g[:-1], strict=True):
        alpha.append(alpha[-1] + BETA * float(now @ before))
    torch.testing.assert_close(rates, alpha, rtol=0, atol=1e-14)
    assert abs(rates[-1] - 0.05) > 1e-4


def test_sgdn_hd() -> None:
    """−∂u/∂α = g + μv with Nesterov's momentum (Algorithm 5)."""
    mu = 0.9
    opt = mo.hypergradient_descent(mo.optim.sgd(lr=0.05, momentum=mu, nesterov=True), BETA)
    _, g, rates = run(opt, 5)
    alpha, v = [0.05], g[0]
    for now, before in zip(g[1:], g[:-1], strict=True):
        alpha.append(alpha[-1] + BETA * float(now @ (before + mu * v)))
        v = mu * v + now
    torch.testing.assert_close(rates, alpha, rtol=0, atol=1e-14)


def test_adam_hd() -> None:
    """−∂u/∂α = m̂ / (√v̂ + ε) (Algorithm 6)."""
    _, g, rates = run(mo.hypergradient_descent(mo.optim.adam(lr=0.05), BETA), 5)
    alpha, direction = [], torch.zeros_like(g[0])
    m, v, rate = torch.zeros_like(g[0]), torch.zeros_like(g[0]), 0.05
    for t, now in enumerate(g, 1):
        rate += BETA * float(now @ direction)
        alpha.append(rate)
        m, v = 0.9 * m + 0.1 * now, 0.999 * v + 0.001 * now**2
        direction = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(rates, alpha, rtol=0, atol=1e-13)


def test_multiplicative() -> None:
    """α_t = α_{t−1}(1 + β cos(g_t, g_{t−1})) with SGD (equation 8)."""
    opt = mo.hypergradient_descent(mo.optim.sgd(lr=0.05), 0.1, multiplicative=True)
    _, g, rates = run(opt, 5)
    alpha = [0.05]
    for now, before in zip(g[1:], g[:-1], strict=True):
        alpha.append(alpha[-1] * (1 + 0.1 * float(torch.cosine_similarity(now, before, 0))))
    torch.testing.assert_close(rates, alpha, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "inner",
    [
        mo.optim.sgd(lr=0.05),
        mo.optim.sgd(lr=0.05, momentum=0.9, nesterov=True),
        mo.optim.adam(lr=0.05),
        mo.optim.rmsprop(lr=0.01),
        mo.optim.adamw(lr=0.05),
    ],
    ids=["sgd", "nesterov", "adam", "rmsprop", "adamw"],
)
def test_the_step_size_follows_its_gradient(inner: mo.Optimizer) -> None:
    """α_2 − α_1 = −β d ℓ(θ_1(α)) / dα by reverse mode through the step before."""
    params, batch = start()
    opt = mo.hypergradient_descent(inner, BETA)
    _, _, rates = run(opt, 2)
    alpha = torch.tensor(rates[0], dtype=DOUBLE, requires_grad=True)
    g = torch.func.grad(loss_fn)(params, batch)
    moved, _ = inner.update(params, inner.init(params), g, inner.hparams._replace(lr=alpha))
    (slope,) = torch.autograd.grad(loss_fn(moved, batch), alpha)
    assert abs(rates[1] - rates[0] + BETA * float(slope)) < 1e-14
    assert rates[1] != rates[0]


def test_it_is_an_optimizer_like_any_other() -> None:
    """Mapped, unrolled and differentiated: the slope for α_0 and β against finite differences."""
    params, batch = start()
    opt = mo.hypergradient_descent(mo.optim.adam(lr=0.05, eps_root=1e-8), BETA)

    def final(alpha: Tensor, beta: Tensor) -> Tensor:
        hparams = opt.hparams._replace(inner=opt.hparams.inner._replace(lr=alpha), meta_lr=beta)
        return loss_fn(mo.unroll(loss_fn, opt, params, batch, 4, hparams).params, batch)

    at = [torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (0.05, 1e-3)]
    assert torch.autograd.gradcheck(final, at, atol=1e-6)
    tasks = torch.stack([batch, 2 * batch])
    task = lambda p, b: mo.unroll(loss_fn, opt, p, b, 3).params
    mapped, looped = (mo.map_tasks(task, how=how)(params, tasks) for how in ("vmap", "loop"))
    torch.testing.assert_close(mapped, looped, rtol=0, atol=1e-13)


def test_a_rate_far_too_small_grows() -> None:
    """On a quadratic, from α_0 = 1e-4: hypergradient descent arrives where SGD has hardly moved."""
    q = torch.linspace(0.5, 2.0, 5, dtype=DOUBLE)
    loss = lambda p, b: (q * p * p).sum() / 2
    theta = torch.ones(5, dtype=DOUBLE)
    plain = mo.unroll(loss, mo.optim.sgd(lr=1e-4), theta, (), 100).losses[-1]
    opt = mo.hypergradient_descent(mo.optim.sgd(lr=1e-4), 1e-2)
    assert mo.unroll(loss, opt, theta, (), 100).losses[-1] < 1e-3 < 3 < plain + 1


def test_bad_input_is_told() -> None:
    with pytest.raises(
        ArgumentError, match=r"hypergradient_descent\(opt\): expected an optimizer with one lr"
    ):
        mo.hypergradient_descent(mo.optim.sgd(lr=[0.1, 0.2]))
    opt = mo.hypergradient_descent(mo.optim.sgd())
    with pytest.raises(StructureError, match="expected HypergradientDescentState, got SGDState"):
        opt.update(torch.ones(1), mo.optim.sgd().init(torch.ones(1)), torch.ones(1), opt.hparams)
