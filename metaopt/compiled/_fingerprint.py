"""What a function's result depends on beside its arguments, as something that can be compared."""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from operator import is_
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from metaopt.compiled._table import Table

__all__ = ["fingerprint"]

_VALUES = (bool, int, float, complex, str, bytes, type(None))
_OURS = ("torch", "metaopt")  # whose objects, but for layers, do not change
_SYNTAX = (
    "call getattr getattribute getitem len iter next contains bool float int index enter exit get add radd "
    "sub rsub mul rmul truediv rtruediv pow rpow matmul rmatmul neg abs"
)
_CALLED = {f"__{name}__" for name in _SYNTAX.split()} | {"forward"}  # without their names in the code
_LAYER = frozenset(vars(nn.Module()))


def fingerprint(*values: Any) -> tuple[Any, list[Any]]:
    """``(key, anchors)``: equal keys mean the same code over the same captured values.

    Numbers, strings, containers and numpy's arrays count by value, so that ``lr`` in a closure that changes
    changes the key; tensors by identity, which holds while ``anchors`` are kept. Of another object, of a
    class and of a Python module count the attributes whose names occur in the code that is reached: in the
    functions, in the methods that they name, and in what these name in turn. Of an nn.Module, the mode, the
    attributes and the tensors of every layer count too. What installed packages hold does not change.

    Cost: a microsecond for everything that is met; a tenth where the values are those of a call before, and
    whatever was met still holds the same objects.

    >>> scale = lambda a: lambda x: a * x
    >>> fingerprint(scale(2.0))[0] == fingerprint(scale(2.0))[0]
    True
    >>> fingerprint(scale(2.0))[0] == fingerprint(scale(3.0))[0]
    False
    """
    before = _known.get(same := tuple(map(id, values)))
    if before is not None and before.holds():
        return before.key, before.anchors
    names = _reached(tuple(getattr(x, "__code__", type(x)) for x in values))
    while True:  # whatever is named last may be an attribute of what was met first
        walk = _Walk(names)
        key = walk.of(values)
        if walk.found <= names:
            break
        names |= walk.found
    if walk.by_identity:
        _known.keep(same, _Known(key, [*walk.anchors, values], walk.reads))
    return key, walk.anchors


Read = Callable[[], tuple[Any, ...]]


class _Known(NamedTuple):
    """A key, and all that was read for it: as long as everything holds the same objects, it is the key."""

    key: Any
    anchors: list[Any]
    reads: list[tuple[Read, tuple[Any, ...]]]

    def holds(self) -> bool:
        for read, before in self.reads:
            now = read()
            if len(now) != len(before) or not all(map(is_, now, before)):
                return False
        return True


_known = Table(8)  # few, for what the calls captured is kept alive


@functools.lru_cache(256)
def _reached(codes: tuple[Any, ...]) -> set[str]:
    """The names that were found to be reached from here, to be added to: a second walk is then saved."""
    return set(_CALLED)


class _Walk:
    """One walk through all that is reached, under the names that are known by now."""

    def __init__(self, names: set[str]):
        self.names = names
        self.found: set[str] = set()  # the names in the code that was met
        self.seen: dict[int, int] = {}
        self.anchors: list[Any] = []
        self.reads: list[tuple[Read, tuple[Any, ...]]] = []
        self.by_identity = True  # whether a change of anything would show in the objects that were read

    def of(self, x: Any) -> Any:
        """The key of x."""
        if isinstance(x, _VALUES):
            return type(x), x
        if isinstance(x, functools.partial):
            return functools.partial, self._all(self._held(lambda: (x.func, x.args, x.keywords)))
        if isinstance(x, MethodType):
            return MethodType, self._all((x.__func__, x.__self__))
        if isinstance(x, BuiltinFunctionType) and not isinstance(x.__self__, (type, ModuleType, type(None))):
            return x.__name__, self.of(x.__self__)
        if id(x) in self.seen:
            return "seen", self.seen[id(x)]
        self.seen[id(x)] = len(self.seen)
        self.anchors.append(x)
        if isinstance(x, tuple):
            return type(x), self._all(x)
        if isinstance(x, (list, deque)):
            return type(x), self._all(self._held(lambda: tuple(x)))
        if isinstance(x, Mapping):
            return type(x), self._all(self._held(lambda: (*x, *x.values())))
        if isinstance(x, Set):
            return type(x), frozenset(self._all(self._held(lambda: tuple(x))))
        if isinstance(x, FunctionType):
            return self._function(x)
        if isinstance(x, type):
            return self._class(x)
        if type(x).__module__ == "numpy" and hasattr(x, "tobytes"):
            self.by_identity = False
            return str(x.dtype), x.shape, hash(x.tobytes())
        return "is", id(x), self._object(x)

    def _held(self, read: Read) -> tuple[Any, ...]:
        """What is read, which will be read again to find out whether anything has changed."""
        self.reads.append((read, held := read()))
        return held

    def _all(self, xs: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(self.of(x) for x in xs)

    def _named(self, table: Mapping[str, Any]) -> Any:
        """The entries whose names are reached."""
        return tuple((n, self.of(_bare(v))) for n, v in table.items() if n in self.names)

    def _function(self, f: FunctionType) -> Any:
        """A function that is made anew is the same function: its code over equal values."""
        home, own, names = f.__module__ or "", vars(f), _names(f.__code__)
        if home.partition(".")[0] not in _OURS:
            self.found |= names
        table = {} if _is_fixed(home) else f.__globals__
        read = lambda: (*_cells(f), f.__code__, f.__defaults__, f.__kwdefaults__)
        held = self._held(read)
        self._held(lambda: (*own, *own.values(), *map(table.get, names)))
        used = {n: table[n] for n in sorted(names) if n in table}
        return "function", id(f.__code__), self._all(held), self._named(own), self._named(used)

    def _class(self, cls: type) -> Any:
        """The attributes that are named, its own and inherited ones, and the code of its methods."""
        tables = [vars(c) for c in _homes(cls)]
        if tables:
            self._held(lambda: tuple(x for table in tables for x in table.values()))
        return "class", id(cls), tuple(map(self._named, tables))

    def _object(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return ()
        if isinstance(x, ModuleType):
            if _is_fixed(x.__name__):
                return ()
            self._held(lambda: tuple(map(vars(x).get, self.names)))
            return self._named(vars(x))
        if isinstance(x, nn.Module):
            return tuple(map(self._layer, x.modules()))
        if type(x).__module__.partition(".")[0] in _OURS:
            inner = getattr(x, "module", None)  # a snapshot, of all but the code
            return tuple(map(self._code, inner.modules())) if isinstance(inner, nn.Module) else ()
        slots = [n for c in type(x).__mro__ for n in getattr(c, "__slots__", ()) if hasattr(x, n)]
        own = lambda: {n: getattr(x, n) for n in slots} | getattr(x, "__dict__", {})
        self._held(lambda: (type(x), *(table := own()), *table.values()))
        return self.of(type(x)), self._named(own())

    def _layer(self, layer: nn.Module) -> Any:
        """What a layer holds: its mode, attributes, hooks and tensors."""
        own = vars(layer)
        tables = layer._parameters, layer._buffers
        self._held(lambda: (*own, *own.values(), *(x for t in tables for x in t.values())))
        held = {
            k: v for k, v in own.items() if not k.startswith("_") or (k in self.names and k not in _LAYER)
        }
        return self._all(held.items()), self._all(tables), self._code(layer)

    def _code(self, layer: nn.Module) -> Any:
        """The class, the hooks and the children of a layer."""
        hooks = layer._forward_pre_hooks, layer._forward_hooks
        self._held(lambda: (type(layer), *(x for h in hooks for x in h.values()), *layer._modules.values()))
        return self.of(type(layer)), self._all(x for h in hooks for x in h.values())


def _bare(x: Any) -> Any:
    """The function of a property or of another kind of method."""
    for name in ("fget", "__func__", "func"):
        if isinstance(found := getattr(x, name, None), FunctionType):
            return found
    return x


@functools.lru_cache(4096)
def _homes(cls: type) -> list[type]:
    """A class and what it inherits from, without torch's, ours and the standard library's."""
    return [c for c in cls.__mro__ if not _is_standard(c.__module__)]


@functools.cache
def _is_standard(home: str) -> bool:
    """Whether a Python module is torch's, ours or of the standard library."""
    root = home.partition(".")[0]
    return root in _OURS or root in sys.stdlib_module_names


@functools.cache
def _is_fixed(home: str) -> bool:
    """Whether a Python module is a library's, whose functions and globals do not change."""
    file = getattr(sys.modules.get(home.partition(".")[0]), "__file__", None) or ""
    return _is_standard(home) or "-packages" in file


def _cells(f: FunctionType) -> Iterator[Any]:
    """What the function captured; an empty cell, which a later call may fill, counts as it is."""
    for cell in f.__closure__ or ():
        yield cell if cell == CellType() else cell.cell_contents


@functools.lru_cache(4096)
def _names(code: CodeType) -> frozenset[str]:
    """The global names and attributes that the code and the functions within it may read."""
    inner = [_names(x) for x in code.co_consts if isinstance(x, CodeType)]
    strings = [x for x in code.co_consts if isinstance(x, str) and x.isidentifier()]  # for getattr and vars
    return frozenset(code.co_names).union(strings, *inner)
