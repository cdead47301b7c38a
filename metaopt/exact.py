"""Right derivatives where torch.func has wrong ones.

Under ``vmap`` the second derivative of layer_norm, batch_norm and instance_norm with affine weights
is wrong without a word whenever the outer derivative is taken outside the map (pytorch/functorch#534,
pytorch/pytorch#196699, #196700). Written in primitives the same norms differentiate correctly to
every order. `exact` swaps them, by a `TorchFunctionMode`, for the calls that are being mapped; what is
not mapped keeps torch's kernels, whose second derivative is right and which are faster.

Third derivatives of torch's kernels are wrong even without a map: ``exact(always=True)`` there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from metaopt.errors import ArgumentError, VmapError

__all__ = ["exact", "mapped"]


def mapped() -> bool:
    """Tell whether the caller stands inside a ``torch.vmap``."""
    stack = get_interpreter_stack()
    return stack is not None and any(level.key() == TransformType.Vmap for level in stack)


def _normalise(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    """(x − E[x]) / √(Var[x] + ε), over ``dims``; in float32 for half precision, as torch's kernels."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    variance, mean = torch.var_mean(wide, tuple(dims), correction=0, keepdim=True)
    return ((wide - mean) * torch.rsqrt(variance + eps)).to(x.dtype)


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
    """`torch.nn.functional.layer_norm` in primitives."""
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine(_normalise(input, dims, eps), weight, bias, channel=False)


def _refuse_statistics(kind: str) -> None:
    raise VmapError(
        f"vmap({kind})",
        "batch statistics or frozen ones",
        "training with running statistics, which every task would write to",
        remedy="Pass metaopt.functional(module, batch_norm='transductive') or 'frozen', "
        "or map_tasks(how='loop').",
    )


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
    """`torch.nn.functional.batch_norm` in primitives."""
    if training:
        if running_mean is not None:
            _refuse_statistics("batch_norm")
        dims = (0, *range(2, input.ndim))
        if input.numel() == input.shape[1]:
            raise ArgumentError(
                "batch_norm(input)",
                "more than one value per channel when training",
                f"shape {list(input.shape)}",
                remedy="Use a larger batch, or batch_norm='frozen'.",
            )
        return _affine(_normalise(input, dims, eps), weight, bias, channel=True)
    assert running_mean is not None
    assert running_var is not None
    scale = torch.rsqrt(running_var + eps)
    centred = _affine(input, scale, -running_mean * scale, channel=True)
    return _affine(centred, weight, bias, channel=True)


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
    """`torch.nn.functional.instance_norm` in primitives."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        _refuse_statistics("instance_norm")
    return _affine(_normalise(input, tuple(range(2, input.ndim)), eps), weight, bias, channel=True)


# The functional forms pass their arguments by name and the C++ ones by position, with one more each
# at the end (cudnn_enabled), so that both reach the same signature after `_positional`.
_PRIMITIVE: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
}
_FROM_ATEN: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch.layer_norm: layer_norm,
    torch.batch_norm: lambda x, w, b, m, v, *rest: batch_norm(x, m, v, w, b, *rest[:3]),
    torch.instance_norm: lambda x, w, b, m, v, *rest: instance_norm(x, m, v, w, b, *rest[:3]),
}
_REPAIRED = {**_PRIMITIVE, **_FROM_ATEN}
_local = threading.local()


class exact(TorchFunctionMode):
    """A context in which mapped norms have the right derivatives of every order.

    Args: always: rewrite calls outside ``vmap`` too; needed for third derivatives.
    Cost: about a microsecond a torch call; a rewritten norm is two to three kernels more.
    Entering it twice is free: the inner one does nothing.

    >>> with exact():
    ...     torch.vmap(lambda x: F.layer_norm(x, (2,)))(torch.tensor([[1.0, 3.0]]))
    tensor([[-1.0000,  1.0000]])
    """

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.always = always

    def __enter__(self) -> exact:
        active: list[exact] = _local.__dict__.setdefault("active", [])
        self.idle = any(mode.always or not self.always for mode in active)
        if not self.idle:
            active.append(self)
            super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if not self.idle:
            _local.active.remove(self)
            super().__exit__(*exc)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _REPAIRED and (self.always or mapped() or torch.compiler.is_compiling()):
            return _REPAIRED[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
