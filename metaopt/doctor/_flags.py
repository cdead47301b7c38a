"""What is not an error and often a mistake: unused parameters, cut paths, captures, mixtures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metaopt import tree
from metaopt.doctor._report import Row
from metaopt.recompute import captured

__all__ = ["flags"]

_HOME = tuple(str(Path(m.__file__ or "").parent) for m in (torch, sys.modules["metaopt"]))
_MODE = sys.modules["metaopt.exact._mode"].__file__
_READ = {"item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__array__", "__index__"}


def _place() -> str:
    """``file:line`` of the caller, if the call was not made by torch or by metaopt."""
    frame: Any = sys._getframe(2)
    while frame.f_code.co_filename == _MODE:  # a call that `exact` let through
        frame = frame.f_back
    if frame.f_code.co_filename.startswith(_HOME):
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


class _Cuts(TorchFunctionMode):
    """Records calls that take a tensor with a history and return one without."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name != "data":
                return out
        given = any(isinstance(x, Tensor) and x.requires_grad for x in args)
        lost = isinstance(out, Tensor) and out.is_floating_point() and not out.requires_grad
        if given and (lost or name in _READ):
            place = _place()
            if place:
                self.found[name, place] = None
        return out


def _cuts(run: Callable[[], Any]) -> list[Row]:
    with _Cuts() as mode:
        run()
    known = {"detach": ".detach()", "data": ".data", "__float__": "float()", "__bool__": "a condition"}
    rows = []
    for name, place in mode.found:
        what = known.get(name, f".{name}()")
        read = name in _READ
        remark = "read as a constant" if read else "the gradient stops here, at every order"
        rows.append(Row(place, what, "look", f"{remark}; is that meant?"))
    return rows


def _unused(loss_fn: Callable[..., Tensor], params: Any, episode: Any) -> list[Row]:
    leaves = [p.detach().requires_grad_() for p in tree.leaves(params)]
    full = tree.unflatten(tree.structure(params), leaves)
    losses = [loss_fn(full, batch) for batch in episode]
    live = [loss for loss in losses if loss.requires_grad]
    grads = torch.autograd.grad(live, leaves, allow_unused=True) if live else [None] * len(leaves)
    names = [name for name, g in zip(tree.paths(params), grads, strict=True) if g is None]
    if len(names) == len(leaves):
        remark = "the loss uses no parameter that it is given: does it call the module in place of apply?"
        return [Row("params", "unused", "look", remark)]
    return [Row(name, "unused", "look", "no loss depends on it; its meta-gradient is zero") for name in names]


def _mixtures(params: Any, buffers: Any, episode: Any) -> list[Row]:
    rows = []
    tensors = [
        (f"{root}{path if path.startswith('[') else '.' + path}", x)
        for root, value in (("params", params), ("buffers", buffers), ("episode", episode))
        for path, x in zip(tree.paths(value), tree.leaves(value), strict=True)
        if isinstance(x, Tensor)
    ]
    for what, of in (("device", lambda x: x.device), ("dtype", lambda x: x.dtype)):
        groups: dict[Any, list[str]] = {}
        for name, x in tensors:
            if what == "device" or x.is_floating_point():
                groups.setdefault(of(x), []).append(name)
        if len(groups) > 1:
            remark = "; ".join(f"{key} at {names[0]} ({len(names)})" for key, names in groups.items())
            rows.append(Row(what, "mixture", "look", remark))
    return rows


def flags(loss_fn: Callable[..., Tensor], params: Any, buffers: Any, episode: Any) -> list[Row]:
    """All flags of a loss; the loss runs by plain autograd on the support and on the query."""
    leaves = [p.detach().requires_grad_() for p in tree.leaves(params)]
    full = tree.unflatten(tree.structure(params), leaves)
    rows = [
        Row(name, "captured", "look", "needs a gradient and came in by closure: pass it through phi")
        for name in captured(loss_fn)
    ]
    rows += _mixtures(params, buffers, episode)
    rows += _unused(loss_fn, params, episode)
    return rows + _cuts(lambda: [loss_fn(full, batch) for batch in episode])
