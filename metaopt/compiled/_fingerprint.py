"""What a function's result depends on beside its arguments, as something that can be compared."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

__all__ = ["fingerprint"]

_VALUES = (bool, int, float, complex, str, bytes, type(None))
_WHOLE = (type, Tensor, BuiltinFunctionType)  # known by identity alone
_OURS = ("torch", "metaopt")  # whose objects, but for layers, do not change


def fingerprint(value: Any) -> tuple[Any, list[Any]]:
    """``(key, anchors)``: equal keys mean the same code over the same captured values.

    Numbers, strings and containers count by value, so that ``lr`` in a closure that changes changes the
    key; tensors by identity, which holds while ``anchors`` are kept. Of another object, and of a Python
    module, count the attributes that are named in the code that holds it, and in the methods named there;
    of an nn.Module, the mode, the attributes and the tensors of every layer.

    >>> scale = lambda a: lambda x: a * x
    >>> fingerprint(scale(2.0))[0] == fingerprint(scale(2.0))[0]
    True
    >>> fingerprint(scale(2.0))[0] == fingerprint(scale(3.0))[0]
    False
    """
    anchors: list[Any] = []
    return _of(value, frozenset(), {}, anchors), anchors


def _of(x: Any, names: frozenset[str], seen: dict[Any, int], anchors: list[Any]) -> Any:
    """The key of x, held by code that has these names in it."""
    if isinstance(x, _VALUES):
        return type(x), x
    if isinstance(x, functools.partial):
        return functools.partial, _of((x.func, x.args, x.keywords), names, seen, anchors)
    if isinstance(x, MethodType):
        return MethodType, _of((x.__func__, x.__self__), names | _named(x), seen, anchors)
    known = id(x), names
    if known in seen:
        return "seen", seen[known]
    seen[known] = len(seen)
    anchors.append(x)
    if isinstance(x, (tuple, list)):
        return type(x), tuple(_of(y, names, seen, anchors) for y in x)
    if isinstance(x, dict):
        return type(x), tuple(_of(pair, names, seen, anchors) for pair in x.items())
    if isinstance(x, (set, frozenset)):
        return type(x), frozenset(_of(y, names, seen, anchors) for y in x)
    if isinstance(x, FunctionType) and x.__module__ is not None:
        return _function(x, seen, anchors)
    held: Any = ()
    if isinstance(x, nn.Module):
        held = [(type(layer), _state(layer)) for layer in x.modules()]
    elif not _is_constant(x):
        held = list(_attributes(x, names))
    return "is", id(x), _of(held, names, seen, anchors)


def _function(f: FunctionType, seen: dict[Any, int], anchors: list[Any]) -> Any:
    """A function that is made anew is the same function: its code over equal values."""
    names = frozenset(_names(f.__code__))
    held = [*_cells(f), f.__defaults__, f.__kwdefaults__]
    if not _is_fixed(f.__module__):
        held += [f.__globals__[n] for n in sorted(names) if n in f.__globals__]
    anchors.append(f.__code__)
    return "function", id(f.__code__), tuple(_of(x, names, seen, anchors) for x in held)


def _is_constant(x: Any) -> bool:
    """Whether an object is what it is by its identity."""
    if isinstance(x, ModuleType):
        return _is_fixed(x.__name__)
    return isinstance(x, _WHOLE) or type(x).__module__.partition(".")[0] in _OURS


@functools.cache
def _is_fixed(home: str) -> bool:
    """Whether a Python module is a library's, whose functions and globals do not change."""
    root = home.partition(".")[0]
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in _OURS or root in sys.stdlib_module_names or "-packages" in file


def _named(x: MethodType) -> frozenset[str]:
    """The names in the code of a bound method."""
    code = getattr(x.__func__, "__code__", None)
    return frozenset(_names(code) if isinstance(code, CodeType) else ())


def _attributes(x: Any, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """What code with these names in it, and the methods of x that it names, may read of x."""
    todo, done = {*names, "__call__"}, set[str]()
    while todo:
        done |= todo
        methods = [getattr(type(x), n, None) for n in todo]
        todo = {m for f in methods if isinstance(f, FunctionType) for m in _names(f.__code__)} - done
    for name in sorted(done):
        if name in getattr(x, "__dict__", ()) or name in getattr(type(x), "__slots__", ()):
            yield name, getattr(x, name)


def _state(layer: nn.Module) -> dict[str, Any]:
    """What a layer holds: its mode, attributes, hooks and tensors."""
    own = {k: v for k, v in vars(layer).items() if not k.startswith("_")}
    hooks = {"hooks": (layer._forward_pre_hooks, layer._forward_hooks)}
    return own | hooks | layer._parameters | layer._buffers


def _cells(f: FunctionType) -> Iterator[Any]:
    """What the function captured; an empty cell, which a later call may fill, counts as it is."""
    for cell in f.__closure__ or ():
        yield cell if cell == CellType() else cell.cell_contents


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes that the code and the functions within it may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
