"""A meta-gradient that is differentiated once more: right without being asked, wrong with torch's kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kinds import KINDS, build
from torch import Tensor, nn
from torch.nn import functional as F

import metaopt as mo

NORMS = [name for name in KINDS if "norm" in name and name not in ("spectral norm", "spectral norm conv")]
NORMS += ["tied", "registered twice", "sdpa", "attention no weights", "gru", "embedding", "conv2d"]
HOW: dict[str, dict[str, Any]] = {
    "loop": {"how": "loop"},
    "vmap": {"how": "vmap"},
    "chunks": {"how": "vmap", "chunk_size": 2},
    "loop chunks": {"how": "loop", "chunk_size": 2},
    "vmap sqrt": {"how": "vmap", "memory": "sqrt"},
    "loop sqrt": {"how": "loop", "memory": "sqrt"},
    "loop binomial": {"how": "loop", "memory": mo.Binomial(1)},
    "loop offload": {"how": "loop", "memory": mo.Offload()},
}


class Third:
    """D(θ) = ⟨∇M(θ), v⟩ of the meta-loss M of one inner step, and its slope along w."""

    def __init__(self, name: str, memory: Any = "all", **how: Any):
        kind = KINDS[name]
        net, episodes = build(kind)
        apply, self.params, _ = mo.functional(net, batch_norm=kind.batch_norm)
        loss = lambda p, b: (apply(p, b[0]) - b[1]).square().mean()
        task_loss = mo.maml(loss, mo.optim.sgd(0.3), 1, memory=memory)
        self.meta_loss = lambda p: mo.map_tasks(task_loss, **how)(p, mo.Episode(*episodes)).sum()
        generator = torch.Generator().manual_seed(3)
        draw = lambda p: torch.randn(p.shape, dtype=p.dtype, generator=generator)
        self.v, self.w = mo.tree.map(draw, self.params), mo.tree.map(draw, self.params)

    def slope_of(self, params: Any, create_graph: bool = False) -> Tensor:
        names, leaves = list(params), list(params.values())
        grads = torch.autograd.grad(self.meta_loss(params), leaves, create_graph=create_graph)
        return sum((g * self.v[k]).sum() for g, k in zip(grads, names, strict=True))

    def third(self) -> Tensor:
        leaves = list(self.params.values())
        grads = torch.autograd.grad(self.slope_of(self.params, create_graph=True), leaves, allow_unused=True)
        pairs = zip(grads, self.params, strict=True)
        return sum((g * self.w[k]).sum() for g, k in pairs if g is not None)

    def numeric(self, eps: float = 1e-5) -> Tensor:
        at = lambda e: self.slope_of(
            {k: (p + e * self.w[k]).detach().requires_grad_() for k, p in self.params.items()}
        )
        return (at(eps) - at(-eps)) / (2 * eps)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NORMS)
def test_third_derivatives_agree_with_finite_differences(name: str, how: str) -> None:
    problem = Third(name, **HOW[how])
    torch.testing.assert_close(problem.third(), problem.numeric(), rtol=2e-6, atol=1e-7)


def test_always_is_kept_in_the_backward_pass_of_what_is_computed_again() -> None:
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    f = lambda x, w: F.layer_norm(x, (4,), w).sin().sum()

    def third(g: Any) -> Tensor:
        y = g(x, w)
        for _ in range(2):
            y = torch.autograd.grad(y, x, create_graph=True)[0].square().sum()
        return torch.autograd.grad(y, x)[0]

    with mo.exact(always=True):
        expected = third(f)
        outer = mo.exact.always_on()
        found = third(lambda *a: mo.recompute(f, *a))
    assert outer
    assert not mo.exact.always_on()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def affine_norm() -> tuple[Any, Any, Any]:
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 1)).double()
    apply, params, _ = mo.functional(net)
    x, y = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    return mo.tree.detach(params), x, lambda p, x, s: (apply(p, x * s) - y).square().mean()


def slope(f: Any, s: float, order: int) -> Tensor:
    """The first or second derivative of f at s."""
    leaf = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    return g if order == 1 else torch.autograd.grad(g, leaf)[0]


@pytest.mark.parametrize("estimator", ["unrolled", "mixed", "truncated"])
def test_a_nested_hypergradient_is_right_without_being_asked(estimator: str) -> None:
    params, x, loss = affine_norm()
    problem = mo.hypergrad.Problem(loss, mo.optim.sgd(0.3), x, 2, params=params)
    options = {"last": 1} if estimator == "truncated" else {}
    nested = mo.hypergrad.nested(problem, getattr(mo.hypergrad, estimator), **options)
    value = lambda s: nested(mo.Meta(None, None, (s,)))
    numeric = (slope(value, 0.5 + 1e-5, 1) - slope(value, 0.5 - 1e-5, 1)) / 2e-5
    torch.testing.assert_close(slope(value, 0.5, 2), numeric.detach(), rtol=2e-6, atol=1e-7)


def test_a_loop_inside_a_loop_is_right_without_being_asked() -> None:
    """The inner loss of one unroll holds another: its norms are differentiated at three levels."""
    params, x, loss = affine_norm()

    def meta_loss(s: Any, batch: Any) -> Tensor:
        return loss(mo.unroll(loss, mo.optim.sgd(0.3), params, batch, 1, phi=(s,)).params, batch, s)

    top = lambda s: meta_loss(mo.unroll(meta_loss, mo.optim.sgd(0.3), s, x, 1).params, x)
    with torch.no_grad():
        at = lambda e: top(torch.tensor(0.5 + e, dtype=torch.float64))
        numeric = (at(1e-5) - at(-1e-5)) / 2e-5
    torch.testing.assert_close(slope(top, 0.5, 1).detach(), numeric, rtol=2e-6, atol=1e-7)
