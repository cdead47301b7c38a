"""The layers of an fmodel: the model's own, with weights that may be any tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.errors import ArgumentError
from metaopt.exact import exact, transformed
from metaopt.stateful._weights import Weights

__all__ = ["FastModule", "as_fast"]


class _Layer:
    """Mixed into the class of a layer: its weights are assigned as tensors."""

    _original: type
    _guarded: bool

    def __setattr__(self, name: str, value: Any) -> None:
        table = self.__dict__.get("_parameters")
        if table is not None and name in table and isinstance(value, Tensor):
            table[name] = value
        else:
            super().__setattr__(name, value)

    def flatten_parameters(self) -> None:
        """cuDNN's flattening would write to weights that are part of a graph."""

    def _update_flat_weights(self) -> None:
        """Recurrent nets keep a list of their weights: taken anew, without comparing references."""
        names = self._flat_weights_names  # type: ignore[attr-defined]
        self.__dict__["_flat_weights"] = [getattr(self, name, None) for name in names]

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = self._original, isinstance(self, FastModule), self._guarded
        return _blank, kind, self.__getstate__()  # type: ignore[attr-defined]


class _Guarded(_Layer):
    """A layer that may call what has no double backward: it is `exact`, called by its model or alone."""

    _weights: Weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if exact.innermost():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        with exact(twice=self._weights.twice):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]


class _Recurrent(_Guarded):
    """One of torch's own recurrent layers, of whose thirty calls `exact` has to see none on a CPU.

    Those of an LSTM that is differentiated twice it does see, because it has a faster one.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if exact.alone() and not self._is_rewritten():
            with torch._C.DisableTorchFunction():
                if all(_plain(x) for x in (*args, *kwargs.values(), *self._parameters.values())):  # type: ignore[attr-defined]
                    return super().forward(*args, **kwargs)  # type: ignore[misc]
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    def _is_rewritten(self) -> bool:
        slow = self.mode == "LSTM" and self.weight_ih_l0.dtype is not torch.float64  # type: ignore[attr-defined]
        return self._weights.twice and bool(slow)


def _plain(x: Any) -> bool:
    """Tell whether torch's own kernel is what runs: of tensors on the CPU that nobody listens to."""
    if isinstance(x, tuple):
        return type(x) is tuple and all(map(_plain, x))
    return x is None or (type(x) in (Tensor, nn.Parameter) and x.is_cpu)


class FastModule(_Layer):
    """A model whose weights are P[t], connected to P[0]: what `innerloop_ctx` and `monkeypatch` give.

    It is of the model's own class too, with the model's attributes, methods and hooks; its layers
    always hold P[t], and may be called and assigned to. The model that it was made of is never written
    to. ``copy.deepcopy`` gives a copy that begins at P[t] without history; `clone` one that stays
    connected.
    """

    _weights: Weights

    @property
    def fast_params(self) -> list[Tensor] | None:
        """P[t]; None where the model is stateless. Setting it appends P[t+1]."""
        return self._weights.now

    @fast_params.setter
    def fast_params(self, params: Iterable[Tensor]) -> None:
        self.update_params(params)

    @property
    def init_fast_params(self) -> list[Tensor]:
        """P[0]."""
        if not self.track_higher_grads:
            remedy = "Only the latest parameters are kept."
            raise ArgumentError("fmodel.init_fast_params", "track_higher_grads=True", "False", remedy=remedy)
        return self._weights.at(0)

    @property
    def track_higher_grads(self) -> bool:
        """Whether P[0] … P[t] are kept, and connected."""
        return self._weights.tracking

    @track_higher_grads.setter
    def track_higher_grads(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ArgumentError("fmodel.track_higher_grads", "a bool", repr(value))
        self._weights.tracking = value

    def update_params(self, params: Iterable[Tensor]) -> None:
        """P[t+1] ← params."""
        self._weights.append(self._weights.read("fmodel.update_params(params)", params))

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Tensor]:
        """P[time], in the order of the model's own parameters; the latest where None."""
        if recurse:
            return iter(self._weights.at(time))
        return (p for _, p in self.named_parameters(recurse=False, time=time))

    def named_parameters(
        self,
        prefix: str = "",
        recurse: bool = True,
        remove_duplicate: bool = True,
        time: int | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """P[time] with the names of the model's own parameters."""
        dot = prefix + "." if prefix else ""
        pairs = zip(self._weights.names, self._weights.at(time), strict=True)
        return ((dot + name, p) for name, p in pairs if recurse or "." not in name)

    def __call__(
        self, *args: Any, params: Iterable[Tensor] | Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> Any:
        """The model at P[t], or at ``params``, which become P[t+1] unless torch.func is at work."""
        weights = self._weights
        if params is None:
            if weights.now is None:
                weights.at(None)  # says what is missing
        else:
            values = weights.read("fmodel(params)", params)
            if transformed():
                with weights.lent(values, [b.clone() for b in weights.held()]), exact(twice=weights.twice):
                    return super().__call__(*args, **kwargs)  # type: ignore[misc]
            weights.append(values)
        if transformed():
            with exact(twice=weights.twice):
                return super().__call__(*args, **kwargs)  # type: ignore[misc]
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def truncate(self) -> list[Tensor]:
        """P[0] ← P[t], cut off: the graph and the history before are let go. Returns the new P[0]."""
        self._weights.restart([_leaf(p) for p in self._weights.at(None)])
        return self._weights.first

    def clone(self) -> Any:
        """A copy that begins at P[t] and stays connected to it; buffers are copied.

        >>> import metaopt as mo
        >>> fmodel = mo.stateful.monkeypatch(nn.Linear(1, 1, bias=False))
        >>> branch = fmodel.clone()
        >>> branch.fast_params = [2 * p for p in branch.parameters()]
        >>> torch.autograd.grad(branch.weight.sum(), fmodel.weight)
        (tensor([[2.]]),)
        """
        now = self._weights.now or []
        new = copy.deepcopy(self, {id(p): p for p in now})
        if now:
            new._weights.restart([p.clone() for p in now])
        return new

    def hand_back(self, module: nn.Module, *, params: bool = False, buffers: bool = True) -> None:
        """Write to a module of the same architecture: running statistics, and P[t] where asked for."""
        theirs: list[tuple[str, Any]] = []
        ours: list[tuple[str, Any]] = []
        if params:
            theirs += list(module.named_parameters())
            ours += list(self.named_parameters())
        if buffers:
            theirs += list(module.named_buffers())
            ours += list(self.named_buffers())  # type: ignore[attr-defined]
        where = "fmodel.hand_back(module)"  # checked before anything is written, for copy_ would broadcast
        if len(theirs) != len(ours):
            raise ArgumentError(where, f"{len(ours)} tensors", str(len(theirs)))
        for (name, x), (_, y) in zip(theirs, ours, strict=True):
            if x.shape != y.shape:
                raise ArgumentError(where, f"shape {list(y.shape)}", f"{list(x.shape)}", name)
        with torch.no_grad():
            for (_, x), (_, y) in zip(theirs, ours, strict=True):
                x.copy_(y)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for layer in self.modules():  # type: ignore[attr-defined]
            for x in (*layer._parameters.values(), *layer._buffers.values(), *vars(layer).values()):
                if isinstance(x, Tensor) and x.grad_fn is not None and id(x) not in memo:
                    memo[id(x)] = _leaf(x.clone())
        new = _blank(self._original, True, self._guarded)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[attr-defined]
        return new


def _leaf(p: Tensor) -> Tensor:
    return p.detach().requires_grad_(p.requires_grad)


# torch's own layers whose forward is differentiated twice by torch as it is; the rest is guarded
_TORCHS = "torch.nn.modules."
_RISKY = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag)


def _risky(layer: nn.Module) -> bool:
    ours = not type(layer).__module__.startswith(_TORCHS)
    return ours or isinstance(layer, _RISKY) or bool(layer._forward_hooks or layer._forward_pre_hooks)


@lru_cache(maxsize=512)
def _class_of(original: Any, root: bool, guarded: bool) -> type:
    """The original class with the mixins in front of it."""
    recurrent = issubclass(original, nn.RNNBase) and original.__module__.startswith(_TORCHS)
    guard = _Recurrent if recurrent else _Guarded
    mixins = (FastModule,) * root + (guard,) * guarded or (_Layer,)
    marks = {"_original": original, "_guarded": guarded}
    bases: Any = (*mixins, original)
    return type(f"Functional{original.__name__}", bases, marks)


def _blank(original: type, root: bool, guarded: bool) -> Any:
    """What pickle and deepcopy start from."""
    cls: Any = _class_of(original, root, guarded)
    return cls.__new__(cls)


def as_fast(module: nn.Module, weights: Weights) -> Any:
    """Turn a copy of a model, and every layer of it, into the kind that holds fast weights."""
    for layer in list(module.modules()):
        cls: Any = type(layer)
        layer.__class__ = _class_of(cls, layer is module, _risky(layer))
        layer.__dict__["_weights"] = weights
    return module
