"""What a function's result depends on beside its arguments, as something that can be compared."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

__all__ = ["fingerprint"]

_VALUES = (bool, int, float, complex, str, bytes, type(None))


def fingerprint(value: Any) -> tuple[Any, list[Any]]:
    """``(key, anchors)``: equal keys mean the same code over the same captured values.

    Numbers, strings and containers count by value, so that ``lr`` in a closure that changes changes the
    key; tensors, modules and other objects by identity, which holds while ``anchors`` are kept. What an
    object holds in its attributes is not looked at.

    >>> scale = lambda a: lambda x: a * x
    >>> fingerprint(scale(2.0))[0] == fingerprint(scale(2.0))[0]
    True
    >>> fingerprint(scale(2.0))[0] == fingerprint(scale(3.0))[0]
    False
    """
    anchors: list[Any] = []
    return _of(value, {}, anchors), anchors


def _of(x: Any, seen: dict[int, int], anchors: list[Any]) -> Any:
    if isinstance(x, _VALUES):
        return type(x), x
    if id(x) in seen:
        return "seen", seen[id(x)]
    if isinstance(x, (tuple, list)):
        return type(x), tuple(_of(y, seen, anchors) for y in x)
    if type(x) is dict:
        return dict, tuple((_of(k, seen, anchors), _of(v, seen, anchors)) for k, v in x.items())
    if isinstance(x, functools.partial):
        return functools.partial, _of((x.func, x.args, x.keywords), seen, anchors)
    if isinstance(x, MethodType):
        return MethodType, _of(x.__func__, seen, anchors), _of(x.__self__, seen, anchors)
    seen[id(x)] = len(seen)
    anchors.append(x)
    if not isinstance(x, FunctionType) or x.__module__ is None:
        return "is", id(x)
    # a function that is made anew is the same function: its code over equal values
    parts = [_of(cell, seen, anchors) for cell in _cells(x)]
    parts += [_of(x.__defaults__, seen, anchors), _of(x.__kwdefaults__, seen, anchors)]
    if x.__module__.partition(".")[0] not in ("torch", "metaopt"):
        parts += [_of(x.__globals__[n], seen, anchors) for n in _names(x.__code__) if n in x.__globals__]
    anchors.append(x.__code__)
    return "function", id(x.__code__), tuple(parts)


def _cells(f: FunctionType) -> Iterator[Any]:
    """What the function captured; an empty cell, which a later call may fill, counts as it is."""
    for cell in f.__closure__ or ():
        yield cell if cell == CellType() else cell.cell_contents


def _names(code: CodeType) -> Iterator[str]:
    """The global names that the code and the functions within it may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
