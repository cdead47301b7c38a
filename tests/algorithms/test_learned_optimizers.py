"""The learned rules: their equations by hand, torch's own cells, and the laws of every optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import metaopt as mo
from metaopt import hypergrad as hg
from metaopt.algorithms._learned_lstm import log_and_sign
from metaopt.errors import ArgumentError, StructureError

DOUBLE = torch.float64
RULES = {
    "mlp": mo.learned_mlp((6, 5), decays=(0.5, 0.9), dtype=DOUBLE),
    "lstm": mo.learned_lstm((4, 3), dtype=DOUBLE),
    "linear": mo.learned_lstm((), dtype=DOUBLE),
}
ROWS = pytest.mark.parametrize("opt", RULES.values(), ids=RULES.keys())


def params_and_batch() -> tuple[Any, Any]:
    draw = torch.Generator().manual_seed(1)
    rand = lambda *shape: torch.randn(shape, generator=draw, dtype=DOUBLE)
    return {"w": rand(3, 2), "b": rand(2), "s": rand()}, (rand(5, 3), rand(5, 2))


def loss_fn(params: Any, batch: Any) -> Tensor:
    x, y = batch
    return ((torch.tanh(x @ params["w"] + params["b"]) * params["s"] - y) ** 2).mean()


def test_lstm_equals_torch_cells() -> None:
    """Two steps of two nn.LSTMCells with the same weights."""
    opt = RULES["lstm"]
    cells, rows = [], []
    for (weight, bias), fan_in, width in zip(opt.hparams.cells, (2, 4), (4, 3), strict=True):
        cell = torch.nn.LSTMCell(fan_in, width, dtype=DOUBLE)
        i, f, o, u = range(0, 4 * width, width)
        order = torch.cat([torch.arange(a, a + width) for a in (i, f, u, o)])  # torch: i, f, g, o
        with torch.no_grad():
            cell.weight_ih.copy_(weight[:fan_in, order].T)
            cell.weight_hh.copy_(weight[fan_in:, order].T)
            cell.bias_ih.copy_(bias[order])
            cell.bias_hh.zero_()
        cells.append(cell)
        rows.append(None)
    p = q = torch.linspace(-1, 1, 5, dtype=DOUBLE)
    state = opt.init(p)
    for g in (torch.linspace(-2, 3, 5, dtype=DOUBLE), torch.linspace(1e-6, -1e-5, 5, dtype=DOUBLE)):
        p, state = opt.update(p, state, g, opt.hparams)
        x = log_and_sign(g, 10.0)
        for layer, cell in enumerate(cells):
            rows[layer] = cell(x, rows[layer])
            x = rows[layer][0]
        weight, bias = opt.hparams.output
        q = q + 0.1 * (x @ weight + bias).squeeze(-1)
    torch.testing.assert_close(p, q.detach(), rtol=0, atol=1e-14)


def test_log_and_sign() -> None:
    """(log|g|/k, sign g) above e⁻ᵏ, (−1, eᵏg) below: continuous, and its slope finite at 0."""
    k = 2.0
    g = torch.tensor([math.e, -1.0, math.exp(-2), -math.exp(-3), 0.0], dtype=DOUBLE, requires_grad=True)
    seen = log_and_sign(g, k)
    want = [[0.5, 1.0], [0.0, -1.0], [-1.0, 1.0], [-1.0, -math.exp(-1)], [-1.0, 0.0]]
    torch.testing.assert_close(seen, torch.tensor(want, dtype=DOUBLE), rtol=0, atol=1e-14)
    (slope,) = torch.autograd.grad(seen.sum(), g)
    assert bool(slope.isfinite().all())


def test_mlp_features_see_directions_and_not_scales() -> None:
    """The loss and the parameters in other units: the directed features stay."""
    from metaopt.algorithms._learned_mlp import features

    draw = torch.Generator().manual_seed(2)
    p, g, m = torch.randn(3, 6, generator=draw, dtype=DOUBLE)
    t, v = torch.tensor(1.0), g * g + m * m
    x = features(p, g, m[:, None], v, t)
    y = features(7 * p, 300 * g, 300 * m[:, None], 9e4 * v, t)
    same = ((x - y).abs() < 1e-9).all(0)
    assert int(same.sum()) >= 4 + 9
    squares = (x**2).mean(0)
    assert bool((squares < 30).all())


@ROWS
def test_laws(opt: mo.Optimizer) -> None:
    """Inputs unchanged, structure and dtype kept, a missing gradient moves nothing, vmap equals loop."""
    params, batch = params_and_batch()
    state, grads = opt.init(params), torch.func.grad(loss_fn)(params, batch)
    before = mo.tree.map(torch.clone, (params, state, grads))
    moved, after = opt.update(params, state, grads, opt.hparams)
    torch.testing.assert_close((params, state, grads), before, rtol=0, atol=0)
    mo.tree.check_same("moved", moved, params, shapes=True)
    mo.tree.check_same("after", after, state, shapes=True)
    assert all(x.dtype == DOUBLE for x in mo.tree.leaves(moved))
    assert all(bool((moved[k] != params[k]).all()) for k in params)
    held, kept = opt.update(params, state, {**grads, "b": None}, opt.hparams)
    assert torch.equal(held["b"], params["b"])
    torch.testing.assert_close((held["w"], held["s"]), (moved["w"], moved["s"]), rtol=0, atol=0)
    torch.testing.assert_close(kept.memory["b"], state.memory["b"], rtol=0, atol=0)
    tasks = mo.tree.stack([batch, mo.tree.scale(batch, 2.0), mo.tree.scale(batch, -0.5)])
    run = lambda p, b: mo.unroll(loss_fn, opt, p, b, 4)[0::2]
    mapped, looped = (mo.map_tasks(run, how=how)(params, tasks) for how in ("vmap", "loop"))
    torch.testing.assert_close(mapped, looped, rtol=0, atol=1e-12)


@ROWS
def test_coordinates_are_treated_alike(opt: mo.Optimizer) -> None:
    """A permutation of the coordinates permutes the moves."""
    p, g = torch.linspace(-1, 2, 6, dtype=DOUBLE), torch.linspace(3, -1, 6, dtype=DOUBLE)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved, _ = opt.update(p, opt.init(p), g, opt.hparams)
    permuted, _ = opt.update(p[order], opt.init(p), g[order], opt.hparams)
    torch.testing.assert_close(permuted, moved[order], rtol=0, atol=1e-14)


@ROWS
def test_every_estimator_takes_them(opt: mo.Optimizer) -> None:
    """The hypergradient for φ by reverse mode against central differences along a direction, and others."""
    params, batch = params_and_batch()
    problem = hg.Problem(loss_fn, opt, batch, 4, params=params, outer_every=1)
    phi = mo.Meta(None, opt.hparams)  # moved off its zero biases, at which a dead layer sits on a kink
    phi = mo.tree.add(phi, mo.tree.scale(mo.tree.index(hg.noise(phi, 1, seed=4), 0), 0.1))
    exact = hg.unrolled(problem, phi)
    eps = mo.tree.index(hg.noise(phi, 1, seed=5), 0)
    values = [hg.unrolled(problem, mo.tree.add(phi, mo.tree.scale(eps, h))).value for h in (1e-6, -1e-6)]
    slope = (values[0] - values[1]) / 2e-6
    along = mo.tree.vdot(exact.grad, eps)
    assert abs(slope - along) < 1e-7 * max(1.0, float(along.abs()))
    assert float(along.abs()) > 1e-6
    again = hg.unrolled(problem, phi, memory=2)
    torch.testing.assert_close(again.grad, exact.grad, rtol=1e-9, atol=1e-12)
    last = hg.truncated(problem, phi, last=4)
    torch.testing.assert_close(last.grad, exact.grad, rtol=1e-9, atol=1e-12)
    rows = mo.tree.map(lambda x: x[None, None], eps)
    single = hg.pes(problem, phi, window=4, sigma=1e-5, noise=rows)  # 1/2σ (F⁺ − F⁻) ε
    assert abs(mo.tree.vdot(single.grad, eps) / mo.tree.vdot(eps, eps) - along) < 1e-5


@ROWS
def test_finite_at_a_zero_gradient(opt: mo.Optimizer) -> None:
    loss = lambda p, b: (p[:2] ** 2).sum() + 0 * p.sum()
    start = torch.tensor([1.0, 0.0, 2.0], dtype=DOUBLE)
    problem = hg.Problem(loss, opt, (), 3, params=start, outer_every=1)
    grad = hg.unrolled(problem, mo.Meta(None, opt.hparams)).grad
    assert all(bool(g.isfinite().all()) for g in mo.tree.leaves(grad))


def test_float32_and_half() -> None:
    for make in (mo.learned_mlp, mo.learned_lstm):
        opt = make((4,))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            p = torch.ones(3, dtype=dtype)
            moved, state = opt.update(p, opt.init(p), p, opt.hparams)
            assert moved.dtype == dtype
            assert all(x.dtype == torch.float32 for x in mo.tree.leaves(state.memory))


def test_bad_input_is_told() -> None:
    with pytest.raises(ArgumentError, match=r"learned_mlp\(decays\): expected numbers in \[0, 1\), got 1.0"):
        mo.learned_mlp(decays=(0.9, 1.0))
    with pytest.raises(ArgumentError, match=r"learned_lstm\(clip\): expected a number > 0, got 0"):
        mo.learned_lstm(clip=0)
    opt, p = mo.learned_mlp((4,)), torch.ones(2)
    with pytest.raises(StructureError, match="expected CoordinatewiseState, got SGDState"):
        opt.update(p, mo.optim.sgd().init(p), p, opt.hparams)
    with pytest.raises(StructureError, match="expected LearnedMLPHParams, got LearnedLSTMHParams"):
        opt.update(p, opt.init(p), p, mo.learned_lstm().hparams)
    with pytest.raises(StructureError, match="expected a tree like params, got another"):
        opt.update([p], opt.init([p, p]), [p], opt.hparams)
    with pytest.raises(StructureError, match=r"learned_mlp.update\(grads\): expected shape \[2\]"):
        opt.update(p, opt.init(p), torch.ones(3), opt.hparams)
    with pytest.raises(
        StructureError, match=r"learned_mlp.init\(params\): expected a real floating-point tensor"
    ):
        opt.init(torch.arange(3))
