"""Norms by torch's kernels on a loop: four orders of derivatives beside primitives, and what they refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metaopt as mo
from metaopt.exact import _norms

F64 = torch.float64
Norm = Callable[[Tensor, Any, Any], Tensor]
# name -> torch's function, the primitives, and the shape of weight and bias, for x of shape [5, 3, 4]
NORMS: dict[str, tuple[Norm, Norm, tuple[int, ...]]] = {
    "layer norm": (
        lambda x, w, b: F.layer_norm(x, (4,), w, b),
        lambda x, w, b: _norms.layer_norm(x, (4,), w, b),
        (4,),
    ),
    "layer norm of 2 axes": (
        lambda x, w, b: torch.layer_norm(x, (3, 4), w, b),
        lambda x, w, b: _norms.layer_norm(x, (3, 4), w, b),
        (3, 4),
    ),
    "layer norm of all axes": (
        lambda x, w, b: F.layer_norm(x, (5, 3, 4), w, b),
        lambda x, w, b: _norms.layer_norm(x, (5, 3, 4), w, b),
        (5, 3, 4),
    ),
    "batch norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        lambda x, w, b: _norms.batch_norm(x, None, None, w, b, True),
        (3,),
    ),
    "instance norm": (
        lambda x, w, b: F.instance_norm(x, None, None, w, b),
        lambda x, w, b: _norms.instance_norm(x, None, None, w, b),
        (3,),
    ),
}
AFFINE = {
    "weight and bias": (True, True),
    "weight": (True, False),
    "bias": (False, True),
    "bare": (False, False),
}


def inputs(shape: tuple[int, ...], affine: tuple[bool, bool]) -> list[Tensor | None]:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, dtype=F64, requires_grad=True)
    return [x, *(torch.randn(shape, dtype=F64).requires_grad_() if on else None for on in affine)]


def derivatives(f: Norm, given: list[Tensor | None], orders: int) -> list[Tensor]:
    """A number that hangs on every entry, differentiated again and again."""
    moving = [z for z in given if z is not None]
    value, found = f(*given).sin().sum(), []  # type: ignore[arg-type]
    for _ in range(orders):
        grads = torch.autograd.grad(value, moving, create_graph=True, allow_unused=True)
        grads = [torch.zeros_like(z) if g is None else g for g, z in zip(grads, moving, strict=True)]
        found += [g.detach() for g in grads]
        value = sum(
            (g.cos() * torch.arange(1.0, g.numel() + 1, dtype=F64).view(g.shape)).sum() for g in grads
        )
    return found


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("name", NORMS)
def test_four_orders_equal_those_of_primitives(name: str, affine: str) -> None:
    fn, primitive, shape = NORMS[name]
    given = inputs(shape, AFFINE[affine])
    with mo.exact():
        found = derivatives(fn, given, 4)
    for a, e in zip(found, derivatives(primitive, given, 4), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8 * e.abs().max().item())


@pytest.mark.parametrize("name", NORMS)
def test_torchs_kernels_are_still_wrong(name: str) -> None:
    """The day this fails torch is mended, pytorch/pytorch#175754 and #186256: drop ``_kernels``."""
    fn, primitive, shape = NORMS[name]
    given = inputs(shape, (True, True))
    wrong, right = derivatives(fn, given, 3)[6], derivatives(primitive, given, 3)[6]
    assert (wrong - right).abs().max() > 1e-3 * right.abs().max()


@pytest.mark.parametrize("name", NORMS)
def test_frozen_weights_and_constant_inputs(name: str) -> None:
    fn, primitive, shape = NORMS[name]
    for moving in range(3):
        given = [z.detach().requires_grad_(i == moving) for i, z in enumerate(inputs(shape, (True, True)))]  # type: ignore[union-attr]
        with mo.exact():
            value = fn(*given).sin().sum()
        at = lambda f, z=given[moving]: torch.autograd.grad(f, z, create_graph=True)[0].cos().sum()
        a, e = (torch.autograd.grad(at(f), given[moving])[0] for f in (value, primitive(*given).sin().sum()))
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NORMS)
def test_batches_of_cotangents(name: str) -> None:
    """A Hessian by ``is_grads_batched``, which maps the backward pass."""
    fn, primitive, shape = NORMS[name]
    x, w, b = inputs(shape, (True, True))

    def hessian(f: Norm) -> Tensor:
        (g,) = torch.autograd.grad(f(x, w, b).sin().sum(), x, create_graph=True)
        eye = torch.eye(g.numel(), dtype=F64).view(-1, *g.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's slow batching rules
            return torch.autograd.grad(g, x, eye, is_grads_batched=True)[0]

    def mapped_jacobian(f: Norm) -> Tensor:
        y = f(x, w, b)
        some = torch.randn(3, *y.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
        (g,) = torch.autograd.grad(y, x, some, is_grads_batched=True, create_graph=True)
        return torch.autograd.grad(g.sin().sum(), x)[0]

    for way in (hessian, mapped_jacobian):
        with mo.exact():
            found = way(fn)
        torch.testing.assert_close(found, way(primitive), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NORMS)
def test_forward_mode(name: str) -> None:
    """∂/∂t of a second derivative by dual numbers, which no requires_grad shows."""
    fn, primitive, shape = NORMS[name]
    x, w, b = inputs(shape, (True, True))

    def third(f: Norm, s: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(f(s, w, b).sin().sum(), s, create_graph=True)
        return torch.autograd.grad(g.cos().sum(), s)[0]

    def dual(f: Norm) -> Tensor:
        with torch.autograd.forward_ad.dual_level():
            out = third(f, torch.autograd.forward_ad.make_dual(x, torch.ones_like(x).cumsum(0)))
            return torch.autograd.forward_ad.unpack_dual(out).tangent

    with mo.exact():
        found = dual(fn)
    torch.testing.assert_close(found, dual(primitive), rtol=1e-8, atol=1e-8)


def test_values_and_running_statistics_are_torchs() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4)
    for module in (nn.BatchNorm1d(3), nn.InstanceNorm1d(3, affine=True, track_running_stats=True)):
        for train in (True, False):
            module.train(train)
            ours, theirs = (
                type(module)(3, affine=True, track_running_stats=True).train(train) for _ in range(2)
            )
            with mo.exact():
                found = ours(x)
            torch.testing.assert_close(found, theirs(x))
            torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()))


def test_one_value_a_channel_is_refused() -> None:
    net = nn.BatchNorm1d(2)
    with mo.exact(), pytest.raises(mo.errors.ArgumentError, match="more than one value per channel"):
        net(torch.ones(1, 2))
