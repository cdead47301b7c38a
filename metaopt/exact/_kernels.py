"""layer_norm, batch_norm and instance_norm by torch's kernels, with right derivatives of every order.

torch's double backward of these norms takes the mean μ and r = 1/√(Var + ε) for constants, so that what
is differentiated once more is wrong (pytorch/pytorch#175754, #186256). Here value and first derivative
are torch's kernels, and the second derivative is written out: where it is to be differentiated again, μ
and r are computed from x once more, and primitives do the rest.

::

    n = (x − μ) r,    P z = z − E[z] − n E[n z],    y = w n + b         (E over a group)
    x̄ = r P(w g),     w̄ = Σ g n,     b̄ = Σ g                           (cotangent g of y)
    S = ⟨a, x̄⟩ + ⟨u, w̄⟩ + ⟨v, b̄⟩                                        (their cotangents a, u, v)
    ∂S/∂g = w r P a + u n + v,    ∂S/∂w = Σ g r P a,    ∂S/∂x = r P h − r² n c
    h = u g − r (a E[n w g] + w g E[n a]),    c = E[a w g] − E[a] E[w g] − E[n a] E[n w g]

Under torch.func, where an autograd.Function costs more than a millisecond, the primitives of
``_norms`` stand in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from metaopt.exact import _norms
from metaopt.exact._levels import transformed

__all__ = ["batch_norm", "instance_norm", "layer_norm"]

_aten = torch.ops.aten
# of torch's own older map, in which Functions lose their graph
_BATCHED = torch._C._dispatch_key_parse("Batched")


class _Norm(NamedTuple):
    """Which axes of x are a group, which of them share w and b, how w lies beside x, and the kernels."""

    group: tuple[int, ...]
    shared: tuple[int, ...]
    column: tuple[int, ...]
    eps: float
    value: Any  # (x, w, b) -> y, μ, r
    derivative: Any  # (g, x, w, b, μ, r, wanted) -> x̄, w̄, b̄


def _fits(x: Tensor, *statistics: Any) -> bool:
    """Whether a call can go by the kernels."""
    return (
        x.dtype in (torch.float32, torch.float64)
        and not transformed()
        and not torch._C._is_any_autocast_enabled()
        and forward_ad._current_level < 0
        and _norms.collecting() is None
        and not any(s is not None and s.requires_grad for s in statistics)
    )


class _Value(torch.autograd.Function):
    """y."""

    @staticmethod
    def forward(ctx: Any, norm: _Norm, x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        y, ctx.mean, ctx.scale = norm.value(x, w, b)
        ctx.norm = norm
        ctx.save_for_backward(x, w, b)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w, b = ctx.saved_tensors
        norm, wanted = ctx.norm, ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *norm.derivative(g, x, w, b, ctx.mean, ctx.scale, wanted)
        if transformed() or torch._C._dispatch_keys(g).has(_BATCHED):  # is_grads_batched
            return None, *_first(norm, g, x, w, *_statistics(norm, x), wanted)
        return None, *_Derivative.apply(norm, ctx.mean, ctx.scale, wanted, g, x, w, b)


class _Derivative(torch.autograd.Function):
    """x̄, w̄, b̄."""

    @staticmethod
    def forward(
        ctx: Any, norm: _Norm, mean: Tensor, scale: Tensor, wanted: Any, g: Tensor, x: Tensor, w: Any, b: Any
    ) -> Any:
        ctx.norm, ctx.mean, ctx.scale = norm, mean, scale
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)
        return norm.derivative(g, x, w, b, mean, scale, wanted)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, u: Tensor | None, v: Tensor | None) -> Any:
        g, x, w = ctx.saved_tensors
        norm, mean, scale = ctx.norm, ctx.mean, ctx.scale
        if torch.is_grad_enabled():
            mean, scale = _statistics(norm, x)
        wanted = ctx.needs_input_grad[4:7]
        return None, None, None, None, *_second(norm, g, x, w, mean, scale, a, u, v, wanted), None


def _statistics(norm: _Norm, x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, norm.group, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + norm.eps)


def _first(norm: _Norm, g: Tensor, x: Tensor, w: Any, mean: Tensor, r: Tensor, wanted: Any) -> Any:
    """x̄, w̄, b̄ in primitives."""
    average = lambda z: z.mean(norm.group, keepdim=True)
    n = (x - mean) * r
    wg = g if w is None else g * w.view(norm.column)
    dx = (wg - average(wg) - n * average(n * wg)) * r if wanted[0] else None
    total = lambda z: z.sum(norm.shared) if norm.shared else z
    return dx, total(g * n) if wanted[1] else None, total(g) if wanted[2] else None


def _second(
    norm: _Norm, g: Tensor, x: Tensor, w: Any, mean: Tensor, r: Tensor, a: Any, u: Any, v: Any, wanted: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """∂S/∂g, ∂S/∂x, ∂S/∂w, each None where it is zero or not wanted."""
    average = lambda z: z.mean(norm.group, keepdim=True)
    n = (x - mean) * r
    dg = dx = dw = h = None
    if u is not None:
        u = u.view(norm.column)
        h = g * u
    if a is not None:
        wg = g if w is None else g * w.view(norm.column)
        ea, ena = average(a), average(n * a)
        rpa = (a - ea - n * ena) * r
        dg = rpa if w is None else rpa * w.view(norm.column)
        if w is not None and wanted[2]:
            dw = (g * rpa).sum(norm.shared) if norm.shared else g * rpa
        if wanted[1]:
            enwg = average(n * wg)
            c = average(a * wg) - ea * average(wg) - ena * enwg
            k = (a * enwg + wg * ena) * r
            h = -k if h is None else h - k
    if u is not None:
        dg = n * u if dg is None else dg + n * u
    if v is not None:
        dg = v.view(norm.column).expand_as(x) if dg is None else dg + v.view(norm.column)
    if wanted[1] and h is not None:
        dx = (h - average(h) - n * average(n * h)) * r
        if a is not None:
            dx = dx - n * (r * r * c)
    return dg if wanted[0] else None, dx, dw


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``F.layer_norm``."""
    if not _fits(input):
        return _norms.layer_norm(input, normalized_shape, weight, bias, eps)
    shape = tuple(normalized_shape)
    lead = input.ndim - len(shape)
    norm = _Norm(
        tuple(range(lead, input.ndim)),
        tuple(range(lead)),
        shape,
        eps,
        lambda x, w, b: _aten.native_layer_norm(x, shape, w, b, eps),
        lambda g, x, w, b, mean, r, wanted: _aten.native_layer_norm_backward(
            g, x, shape, mean, r, w, b, wanted
        ),
    )
    return _Value.apply(norm, input, weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``."""
    if not _fits(input, running_mean, running_var):
        return _norms.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if not training:  # nothing but constants beside x, w and b
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    _norms.check_count(input)
    return _batch_norm(input, running_mean, running_var, weight, bias, momentum, eps)


def _batch_norm(
    input: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, momentum: float, eps: float
) -> Tensor:
    axes = (0, *range(2, input.ndim))
    column = (1, input.shape[1]) + (1,) * (input.ndim - 2)

    def value(x: Tensor, w: Any, b: Any) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, r = _aten.native_batch_norm(x, w, b, running_mean, running_var, True, momentum, eps)
        return y, mean.view(column), r.view(column)

    def derivative(g: Tensor, x: Tensor, w: Any, b: Any, mean: Tensor, r: Tensor, wanted: Any) -> Any:
        return _aten.native_batch_norm_backward(
            g, x, w, None, None, mean.flatten(), r.flatten(), True, eps, wanted
        )

    return _Value.apply(_Norm(axes, axes, column, eps, value, derivative), input, weight, bias)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.instance_norm``: batch_norm of one example whose channels are all examples'."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None or not _fits(input):
        return _norms.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    size = input.shape[0]
    flat = input.reshape(1, -1, *input.shape[2:])
    weight, bias = (z if z is None else z.repeat(size) for z in (weight, bias))
    return _batch_norm(flat, None, None, weight, bias, momentum, eps).view(input.shape)
