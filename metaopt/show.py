"""How objects look: types, shapes and leaf paths in place of pages of numbers.

``Episode(support=f32[25, 10, 1], query=f32[25, 10, 1])``: what fits a line is written as one would
write it in Python; what does not, a leaf a line; in Jupyter, as a table. `dress` gives this look to
every NamedTuple of a package that has no look of its own, so that an update rule need not know of it.
"""

from __future__ import annotations

import html
import sys
from collections import namedtuple
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.types import Optimizer

__all__ = ["dress", "leaf", "rows", "table", "text"]

WIDTH, LINES = 110, 24
_PLAIN = namedtuple("_PLAIN", "").__repr__.__code__  # the repr that every NamedTuple starts with


def leaf(x: Any) -> str:
    """One leaf: ``f32[40, 1]``, with the value where there is one number and it can be read.

    >>> leaf(torch.zeros(40, 1)), leaf(torch.tensor(0.5)), leaf(torch.relu), leaf(0.1)
    ('f32[40, 1]', 'f32[] 0.5', 'relu', '0.1')
    """
    if isinstance(x, Tensor):
        kind = tree.describe([x]).split(maxsplit=1)[1]
        value = x.item() if _readable(x) else ""
        return f"{kind} {value:.6g}" if isinstance(value, float) else f"{kind} {value}".rstrip()
    if callable(x) and not isinstance(x, type):
        return str(getattr(x, "__name__", type(x).__name__))
    found = repr(x)
    return found if len(found) <= WIDTH else f"{found[: WIDTH - 3]}..."


def _readable(x: Tensor) -> bool:
    """Tell whether the one number of x is there: not while it is traced, mapped or differentiated."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta"
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    real = not x.is_complex() and x.ndim == 0
    return plain and real and not torch.compiler.is_compiling() and not wrapped(x)


def rows(value: Any) -> list[tuple[str, str]]:
    """(path, look) of every leaf; an optimizer's two functions are left out.

    >>> rows({"w": torch.zeros(3, 2), "lr": 0.1})
    [("['lr']", '0.1'), ("['w']", 'f32[3, 2]')]
    """
    pairs = zip(tree.paths(value), tree.leaves(value), strict=True)
    return [(path, leaf(x)) for path, x in pairs if not (callable(x) and _last(path) in ("init", "update"))]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def text(value: Any) -> str:
    """A line where it fits, else a leaf a line.

    >>> text({"w": torch.zeros(3, 2), "rates": [0.1, torch.tensor(0.2)]})
    "{'w': f32[3, 2], 'rates': [0.1, f32[] 0.2]}"
    """
    line = _line(value)
    if len(line) <= WIDTH and "\n" not in line:
        return line
    found = rows(value)
    shown = found[:LINES]
    width = max([0, *(len(path) for path, _ in shown)])
    lines = [_title(value), *(f"  {path:<{width}}  {look}" for path, look in shown)]
    return "\n".join([*lines, f"  … and {len(found) - LINES} more"] if len(found) > LINES else lines)


def _line(value: Any) -> str:
    if hasattr(value, "_fields"):
        if type(value).__repr__ is not _repr:  # it has a look of its own
            return repr(value)
        hidden = ("init", "update") if isinstance(value, Optimizer) else ()
        kept = [f for f in value._fields if f not in hidden and not _absent(value, f)]
        return f"{type(value).__name__}({', '.join(f'{f}={_line(getattr(value, f))}' for f in kept)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {_line(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_line, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_line, value))}{',' if len(value) == 1 else ''})"
    return leaf(value)


def _absent(value: Any, field: str) -> bool:
    """Tell whether a field holds ``()`` or None by default: what this configuration does not need."""
    default, found = type(value)._field_defaults.get(field, ...), getattr(value, field)
    return (found is None and default is None) or (type(found) is tuple and found == default == ())


def _title(value: Any) -> str:
    found = [x for x in tree.leaves(value) if isinstance(x, Tensor)]
    size = f": {len(found)} tensors, {sum(x.numel() for x in found):,} numbers" if found else ""
    return f"{type(value).__name__}{size}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    """An HTML table, its text escaped and set in columns that begin on the left.

    >>> table(("a",), [("<b>",)])
    '<table><tr><th>a</th></tr><tr><td style="text-align:left">&lt;b&gt;</td></tr></table>'
    """
    caption = f"<p><b>{html.escape(title)}</b></p>" if title else ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(_cells(row, len(head)))}</tr>" for row in rows)
    return f"{caption}<table><tr>{top}</tr>{body}</table>"


def _cells(row: Sequence[str], columns: int) -> list[str]:
    """The last cell of a short row reaches to the right edge."""
    spans = [1] * (len(row) - 1) + [columns - len(row) + 1]
    wide = [f' colspan="{n}"' if n > 1 else "" for n in spans]
    return [f'<td{w} style="text-align:left">{html.escape(x)}</td>' for x, w in zip(row, wide, strict=True)]


def _repr(self: Any) -> str:
    return text(self)


def _html(self: Any) -> str:
    found = rows(self)
    more = [("…", f"and {len(found) - LINES} more")] if len(found) > LINES else []
    return table(("leaf", "is"), [*found[:LINES], *more], _title(self))


def dress(package: str) -> None:
    """Give every NamedTuple of a package that is imported by now its ``repr`` and its HTML.

    A class that defines ``__repr__`` or ``_repr_html_`` itself keeps it. Nothing else of it changes.

    Args: package: a module's name; those below it are included.
    """
    modules = [m for name, m in sys.modules.items() if f"{name}.".startswith(f"{package}.")]
    for cls in {v for module in modules for v in vars(module).values() if _is_ours(v, package)}:
        if cls.__repr__.__code__ is _PLAIN:
            cls.__repr__ = _repr
            if not hasattr(cls, "_repr_html_"):
                cls._repr_html_ = _html


def _is_ours(cls: Any, package: str) -> bool:
    named = isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")
    return named and f"{cls.__module__}.".startswith(f"{package}.")
