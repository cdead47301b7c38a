"""What a function's result depends on beside its arguments, as something that can be compared."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

__all__ = ["fingerprint", "forget_fingerprints"]

_VALUES = (bool, int, float, complex, str, bytes, type(None))
_ABSENT = object()
_LIMIT = 16  # functions whose last fingerprint is kept
_last: OrderedDict[int, tuple[Any, _Key, _Seen]] = OrderedDict()


class _Key:
    """A nested tuple that is hashed once."""

    __slots__ = ("hash", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.hash = value, hash(value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Key) and self.value == other.value)


class _Seen:
    """What a fingerprint was made of, and whether all of it is still the same object."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.anchors: list[Any] = []
        self.cells: list[tuple[CellType, Any]] = []  # a cell and what it held; the cell itself where empty
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        self.functions: list[tuple[FunctionType, Any]] = []
        self.contents: list[tuple[Any, list[Any]]] = []  # of lists and dicts, which can change

    def holds(self) -> bool:
        return (
            all(_content(cell) is x for cell, x in self.cells)
            and all(table.get(name, _ABSENT) is x for table, name, x in self.names)
            and all(_same(_parts(f), parts) for f, parts in self.functions)
            and all(_same(_items(x), items) for x, items in self.contents)
        )


def _content(cell: CellType) -> Any:
    """What a cell holds; an empty one, which a later call may fill, counts as it is."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def _parts(f: FunctionType) -> Any:
    return f.__code__, f.__defaults__, f.__kwdefaults__


def _items(x: Any) -> list[Any]:
    return list(x) if isinstance(x, list) else [*x, *x.values()]


def _same(now: Any, before: Any) -> bool:
    return len(now) == len(before) and all(x is y for x, y in zip(now, before, strict=True))


def forget_fingerprints() -> None:
    """Drop what was kept of the last fingerprints."""
    _last.clear()


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
    kept = _last.get(id(value))
    if kept is not None and kept[0] is value and kept[2].holds():
        return kept[1], kept[2].anchors
    seen = _Seen()
    key = _Key(_of(value, seen))
    if isinstance(value, FunctionType):
        _last[id(value)] = value, key, seen
        while len(_last) > _LIMIT:
            _last.popitem(last=False)
    return key, seen.anchors


def _of(x: Any, seen: _Seen) -> Any:
    if isinstance(x, _VALUES):
        return type(x), x
    if id(x) in seen.numbers:
        return "seen", seen.numbers[id(x)]
    if isinstance(x, list) or type(x) is dict:
        seen.contents.append((x, _items(x)))
    if isinstance(x, (tuple, list)):
        return type(x), tuple(_of(y, seen) for y in x)
    if type(x) is dict:
        return dict, tuple((_of(k, seen), _of(v, seen)) for k, v in x.items())
    if isinstance(x, functools.partial):
        return functools.partial, _of((x.func, x.args, x.keywords), seen)
    if isinstance(x, MethodType):
        return MethodType, _of(x.__func__, seen), _of(x.__self__, seen)
    seen.numbers[id(x)] = len(seen.numbers)
    seen.anchors.append(x)
    if not isinstance(x, FunctionType) or x.__module__ is None:
        return "is", id(x)
    # a function that is made anew is the same function: its code over equal values
    cells = [(cell, _content(cell)) for cell in x.__closure__ or ()]
    parts = [_of(content, seen) for _, content in cells]
    parts += [_of(x.__defaults__, seen), _of(x.__kwdefaults__, seen)]
    seen.cells += cells
    seen.functions.append((x, _parts(x)))
    if x.__module__.partition(".")[0] not in ("torch", "metaopt"):
        names = list(_names(x.__code__))
        seen.names += [(x.__globals__, n, x.__globals__.get(n, _ABSENT)) for n in names]
        parts += [_of(x.__globals__[n], seen) for n in names if n in x.__globals__]
    seen.anchors.append(x.__code__)
    return "function", id(x.__code__), tuple(parts)


def _names(code: CodeType) -> Iterator[str]:
    """The global names that the code and the functions within it may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
