"""Inductor makes an addmm of a + α (b @ c), and forgets α: compiled steps must not be caught by it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import metaopt as mo


def test_a_compiled_step_with_a_bare_product_for_a_gradient() -> None:
    """∇ℓ = xᵀ(…) is a product, and sgd adds −lr times it: the step once went by +1 times it."""
    torch.manual_seed(0)
    batch = torch.randn(5, 4), torch.randn(5, 3)
    params = torch.randn(4, 3, requires_grad=True)

    def loss_fn(p: Tensor, b: Any) -> Tensor:
        return ((b[0] @ p).tanh() - b[1]).square().mean()

    def gradient(compile: Any) -> Tensor:
        out = mo.unroll(loss_fn, mo.optim.sgd(lr=0.3), params, batch, 3, compile=compile)
        return torch.autograd.grad(loss_fn(out.params, batch), params)[0]

    mo.forget_compiled()
    torch.testing.assert_close(gradient("step"), gradient(False))
    assert mo.compile_report()[-1].run is not None


def test_torch_still_forgets_alpha() -> None:
    """The day this fails torch is mended: drop ``Scaled``, and the branch in ``plus``."""
    a, b, c = torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2)
    found = torch.compile(lambda a, b, c: torch.add(a, b @ c, alpha=-0.5))(a, b, c)
    torch.testing.assert_close(found, a + b @ c)
