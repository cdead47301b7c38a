"""layer_norm, batch_norm and instance_norm in primitives, with running statistics handed back.

Under ``vmap`` the second derivative of torch's kernels with affine weights is wrong without a word
whenever the outer derivative is taken outside the map (pytorch/functorch#534, pytorch/pytorch#196699,
#196700), and the third is wrong even without a map. Var, mean and rsqrt differentiate correctly to
every order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, VmapError
from metaopt.exact._levels import calling_module, mapped

__all__ = [
    "Statistics",
    "batch_norm",
    "check_count",
    "collecting",
    "instance_norm",
    "layer_norm",
    "normalize",
]

_local = threading.local()


class Statistics:
    """A context that collects running statistics as values, in place of writing them into buffers.

    ``new(buffer)`` is what a buffer has become. The new value is differentiable in the activations.
    """

    def __enter__(self) -> Statistics:
        self.values: dict[int, Tensor] = {}
        self.before = getattr(_local, "statistics", None)
        _local.statistics = self
        return self

    def __exit__(self, *exc: Any) -> None:
        _local.statistics = self.before

    def new(self, buffer: Tensor) -> Tensor:
        return self.values.get(id(buffer), buffer)

    def move(self, buffer: Tensor, observed: Tensor, momentum: float) -> None:
        """r ← (1 − m) r + m · observed; a layer that is called twice moves twice."""
        self.values[id(buffer)] = (1 - momentum) * self.new(buffer) + momentum * observed.to(buffer.dtype)


def collecting() -> Statistics | None:
    """The innermost `Statistics` of this thread, or None."""
    return getattr(_local, "statistics", None)


def _moments(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """x, Var[x] and E[x] over ``dims``, in float32 for half precision, as torch's kernels."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    variance, mean = torch.var_mean(wide, tuple(dims), correction=0, keepdim=True)
    return wide, variance, mean


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, channel: bool) -> Tensor:
    """x · weight + bias, along axis 1 for channel norms and along the last axes otherwise."""
    if channel:
        column = (-1,) + (1,) * (x.ndim - 2)
        weight = None if weight is None else weight.view(column)
        bias = None if bias is None else bias.view(column)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``F.layer_norm``: (x − E[x]) / √(Var[x] + ε) · w + b over the last axes."""
    wide, variance, mean = _moments(input, tuple(range(-len(normalized_shape), 0)))
    normal = ((wide - mean) * torch.rsqrt(variance + eps)).to(input.dtype)
    return _affine(normal, weight, bias, channel=False)


def _move(kind: str, buffer: Tensor, observed: Tensor, momentum: float) -> None:
    """r ← (1 − m) r + m · observed: as a value where values are collected, else in place, as torch."""
    statistics = collecting()
    if statistics is not None:
        statistics.move(buffer, observed, momentum)
        return
    if mapped():
        raise VmapError(
            f"vmap({kind})",
            "batch statistics, frozen ones, or a place to put running ones",
            "training with running statistics, which every task would write to,",
            at=calling_module() or "a functional call",
            remedy="Pass metaopt.functional(module, batch_norm='transductive') or 'frozen', call "
            "apply.with_buffers, or map_tasks(how='loop').",
        )
    with torch.no_grad():
        buffer.lerp_(observed.to(buffer.dtype), momentum)


def check_count(input: Tensor) -> int:
    """How many values a channel has; raises ArgumentError where there is one."""
    count = input.numel() // input.shape[1]
    if count == 1:
        raise ArgumentError(
            "batch_norm(input)",
            "more than one value per channel when training",
            f"shape {list(input.shape)}",
            remedy="Use a larger batch, or batch_norm='frozen'.",
        )
    return count


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
    """``F.batch_norm``: (x − E[x]) / √(Var[x] + ε) · w + b over all axes but the channels'."""
    if not training:
        assert running_mean is not None
        assert running_var is not None
        scale = torch.rsqrt(running_var + eps)
        centred = _affine(input, scale, -running_mean * scale, channel=True)
        return _affine(centred.to(input.dtype), weight, bias, channel=True)
    count = check_count(input)
    wide, variance, mean = _moments(input, (0, *range(2, input.ndim)))
    if running_mean is not None and running_var is not None:
        _move("batch_norm", running_mean, mean.flatten(), momentum)
        _move("batch_norm", running_var, variance.flatten() * count / (count - 1), momentum)
    normal = ((wide - mean) * torch.rsqrt(variance + eps)).to(input.dtype)
    return _affine(normal, weight, bias, channel=True)


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
    """``F.instance_norm``: as batch_norm, over the spatial axes of every example."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    wide, variance, mean = _moments(input, tuple(range(2, input.ndim)))
    if running_mean is not None and running_var is not None:
        count = input[0, 0].numel()
        unbiased = variance.flatten(1).mean(0) * count / max(count - 1, 1)
        _move("instance_norm", running_mean, mean.flatten(1).mean(0), momentum)
        _move("instance_norm", running_var, unbiased, momentum)
    normal = ((wide - mean) * torch.rsqrt(variance + eps)).to(input.dtype)
    return _affine(normal, weight, bias, channel=True)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    """``F.normalize``, whose ``out`` is returned as a new tensor: spectral_norm assigns what it gets.

    ``out=`` has no batching rule, and would write to the caller's buffers.
    """
    return input / input.norm(p, dim, keepdim=True).clamp_min(eps)
