"""The table of what is called in the place of what, and the mode that looks it up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch._C import (
    _get_function_stack_at,
    _len_torch_function_stack,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
)
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from metaopt.errors import ArgumentError
from metaopt.exact import _attention, _dropout, _kernels, _losses, _norms, _recurrent
from metaopt.exact._embedding import embedding
from metaopt.exact._levels import calling_module, mapped, once_more, plain_levels, transformed
from metaopt.exact._noise import NOISE
from metaopt.exact._random import current_draws
from metaopt.exact._refused import NO_DOUBLE_BACKWARD, NO_KEYED_FORM, refuse, refuse_draw
from metaopt.exact._weights import bilinear, weight_norm

__all__ = ["exact", "paused", "rewrites"]


class _Local(threading.local):
    """How many of the contexts of this thread say always, and twice; and where rewrites are written down."""

    always = 0
    twice = 0
    log: list[tuple[str, str, str]] | None = None


_local = _Local()


class Rewrite(NamedTuple):
    """What is called in the place of torch's function, and when."""

    fn: Callable[..., Any]
    when: Callable[[bool, Any, Any], bool]  # (always, args, kwargs)
    why: str  # empty where nothing changes but the source of the draws


def _norm(always: bool, args: Any, kwargs: Any) -> bool:
    if always or _norms.collecting() is not None or mapped():
        return True
    return once_more(*args, *kwargs.values())


def _twice() -> bool:
    """A second derivative is wanted: some transform is at work, or ``exact(twice=True)`` says so."""
    return transformed() or plain_levels() > 0 or (_local.twice > 0 and torch.is_grad_enabled())


def _attend(always: bool, args: Any, kwargs: Any) -> bool:
    if always or _twice() or current_draws() is not None:
        return True
    return once_more(*args, *kwargs.values())


def _recur(always: bool, args: Any, kwargs: Any) -> bool:
    return always or current_draws() is not None or (_twice() if args[0].is_cuda else mapped())


def _lstm(always: bool, args: Any, kwargs: Any) -> bool:
    if _recur(always, args, kwargs):
        return True
    slow = _local.twice > 0 and torch.is_grad_enabled() and args[0].dtype is not torch.float64
    return slow and not isinstance(args[1], torch.Tensor)  # which is how a packed batch comes


def _noise(always: bool, args: Any, kwargs: Any) -> bool:
    return current_draws() is not None and kwargs.get("generator") is None


def _rrelu(always: bool, args: Any, kwargs: Any) -> bool:
    return current_draws() is not None or mapped()


def _mapped(always: bool, args: Any, kwargs: Any) -> bool:
    return mapped()


def _smooth(always: bool, args: Any, kwargs: Any) -> bool:
    return mapped() and _losses.smoothed(args, kwargs)


def _func(always: bool, args: Any, kwargs: Any) -> bool:
    return transformed() or plain_levels() > 0


def _embed(always: bool, args: Any, kwargs: Any) -> bool:
    return (
        len(args) > 2
        or kwargs.get("padding_idx") is not None
        or any(kwargs.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse"))
    )


def _out(always: bool, args: Any, kwargs: Any) -> bool:
    return kwargs.get("out") is not None


def _every(always: bool, args: Any, kwargs: Any) -> bool:
    return True


def _aten(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The C++ order of arguments, weight and bias before the statistics, and one more at the end."""
    return lambda x, w, b, m, v, *rest: fn(x, m, v, w, b, *rest[:3])


_KERNEL = "its kernel's derivatives are wrong, the second under vmap, the third everywhere"
_TABLE: dict[Callable[..., Any], Rewrite] = {
    F.layer_norm: Rewrite(_kernels.layer_norm, _norm, _KERNEL),
    F.batch_norm: Rewrite(_kernels.batch_norm, _norm, _KERNEL),
    F.instance_norm: Rewrite(_kernels.instance_norm, _norm, _KERNEL),
    torch.layer_norm: Rewrite(_kernels.layer_norm, _norm, _KERNEL),
    torch.batch_norm: Rewrite(_aten(_kernels.batch_norm), _norm, _KERNEL),
    torch.instance_norm: Rewrite(_aten(_kernels.instance_norm), _norm, _KERNEL),
    F.normalize: Rewrite(_norms.normalize, _out, "out= writes to buffers and has no batching rule"),
    F.embedding: Rewrite(embedding, _embed, "padding_idx is wrong under vmap"),
    torch._weight_norm: Rewrite(weight_norm, _every, "its kernel's second derivative is wrong"),
    F.bilinear: Rewrite(bilinear, _mapped, "no batching rule"),
    F.cross_entropy: Rewrite(_losses.cross_entropy, _smooth, "weights with smoothing fail under vmap"),
    F.gaussian_nll_loss: Rewrite(_losses.gaussian_nll_loss, _mapped, "its check of var fails under vmap"),
    torch._pack_padded_sequence: Rewrite(_recurrent.refuse_packing, _func, ""),
    F.rrelu: Rewrite(_dropout.rrelu, _rrelu, "no batching rule"),
}
_TABLE |= {
    getattr(F, name): Rewrite(getattr(_attention, name), _attend, "its kernel has no double backward")
    for name in _attention.__all__
}
_TABLE |= {
    getattr(torch, name): Rewrite(getattr(_recurrent, name), _recur, "its kernel fails under vmap")
    for name in _recurrent.__all__
}
_TABLE[torch.lstm] = _TABLE[torch.lstm]._replace(when=_lstm)
_TABLE |= {
    getattr(F, name): Rewrite(getattr(_dropout, name), _noise, "")
    for name in (
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_alpha_dropout",
        "gumbel_softmax",
    )
}
_TABLE |= {
    getattr(F, name): Rewrite(_dropout.fractional(getattr(F, name), axes), _noise, "")
    for axes in (2, 3)
    for name in (f"fractional_max_pool{axes}d", f"fractional_max_pool{axes}d_with_indices")
}
_TABLE[torch.dropout] = Rewrite(_dropout.dropout, _noise, "")
for fn, drawn in NOISE.items():
    _TABLE[fn] = Rewrite(drawn, _noise, "")
_TABLE |= {fn: Rewrite(refuse(fn), _every, "") for fn in NO_DOUBLE_BACKWARD}
_TABLE |= {fn: Rewrite(refuse_draw(fn), _every, "") for fn in NO_KEYED_FORM}


class exact(TorchFunctionMode):
    """A context in which mapped modules have the right derivatives of every order, or one clear error.

    Rewritten in primitives: layer_norm, batch_norm and instance_norm under ``vmap``; RNN, GRU, LSTM and
    their cells under ``vmap``; attention, and cuDNN's recurrent nets under any transform; embeddings with
    a padding row. On a loop the norms keep torch's kernels, with a second derivative of their own.
    Refused where they are differentiated twice: what has no double backward.
    `metaopt.doctor` shows what was rewritten in a model.

    Args: always: rewrite calls outside ``vmap``, and those that are not differentiated, too.
          twice: plain autograd will differentiate twice: rewrite what has no double backward.
    Raises: DerivativeError, ArgumentError, VmapError, each with the path of the module that called.
    Cost: about a microsecond a torch call; a rewritten norm is two to three kernels more.
    Entering it twice is free: the inner one does nothing.

    >>> with exact():
    ...     torch.vmap(lambda x: F.layer_norm(x, (2,)))(torch.tensor([[1.0, 3.0]]))
    tensor([[-1.0000,  1.0000]])
    """

    def __init__(self, always: bool = False, twice: bool = False) -> None:
        super().__init__()
        for name, value in (("always", always), ("twice", twice)):
            if not isinstance(value, bool):
                raise ArgumentError(f"exact({name})", "True or False", type(value).__name__)
        self.always, self.twice = always, twice

    @staticmethod
    def innermost() -> bool:
        """Tell whether the caller stands directly inside an ``exact``."""
        depth = _len_torch_function_stack()
        return depth > 0 and isinstance(_get_function_stack_at(depth - 1), exact)

    @staticmethod
    def always_on() -> bool:
        """Tell whether the caller stands inside an ``exact(always=True)``."""
        return _local.always > 0

    @staticmethod
    def alone() -> bool:
        """Tell whether the caller stands inside an ``exact`` and nothing else that changes calls on a CPU."""
        return (
            not transformed()
            and exact.innermost()
            and _len_torch_function_stack() == 1
            and not exact.always_on()
            and current_draws() is None
        )

    def __enter__(self) -> exact:
        # torch's own stack, and not a list of ours: while torch runs an autograd.Function or a backward
        # pass under a mode, the mode is off, and has to be entered anew.
        self.counted = self.always
        _local.always += self.counted
        _local.twice += self.twice
        self.always = _local.always > 0
        self.idle = self._is_on()
        if not self.idle:
            _push_on_torch_function_stack(self)
        return self

    def _is_on(self) -> bool:
        """Whether a mode further out does all that this one would; the innermost is looked at first."""
        for i in reversed(range(_len_torch_function_stack())):
            mode = _get_function_stack_at(i)
            if isinstance(mode, exact) and (mode.always or not self.always):
                return True
        return False

    def __exit__(self, *exc: Any) -> None:
        _local.always -= self.counted
        _local.twice -= self.twice
        if not self.idle:
            _pop_torch_function_stack()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rewrite = _TABLE.get(func)
        if rewrite is None:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if not rewrite.when(self.always, args, kwargs):
            return func(*args, **kwargs)
        if _local.log is not None and rewrite.why:
            _local.log.append((calling_module(), getattr(func, "__name__", str(func)), rewrite.why))
        return rewrite.fn(*args, **kwargs)


class paused:
    """A context in which the `exact` that the caller stands in is off: a microsecond less a torch call.

    For what this library itself computes, which is nothing in the table; an `exact` entered inside is on.

    >>> with exact(), paused():
    ...     exact.innermost()
    False
    """

    __slots__ = ("modes",)

    def __enter__(self) -> None:
        self.modes: list[Any] = []
        while exact.innermost():
            self.modes.append(_pop_torch_function_stack())

    def __exit__(self, *exc: Any) -> None:
        while self.modes:
            _push_on_torch_function_stack(self.modes.pop())


@contextmanager
def rewrites() -> Any:
    """A context that yields the list of rewrites made in it: (module path, function, why)."""
    before = _local.log
    _local.log = []
    try:
        yield _local.log
    finally:
        _local.log = before
