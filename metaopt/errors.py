"""The exception family: what went wrong, where, and the way out.

::

    MetaoptError
    ├── ArgumentError      ValueError       an argument is outside its range, or of another type
    ├── StructureError     ValueError       two trees, or a tree and what was asked of it, differ
    ├── CaptureError       RuntimeError     a tensor that needs a gradient came in by closure
    ├── VmapError          RuntimeError     something in the model cannot be mapped over tasks
    ├── DerivativeError    RuntimeError     something in the model has no derivative of the order asked for
    ├── CompileError       RuntimeError     something in the model cannot be compiled
    ├── DivergenceError    ArithmeticError  a number became NaN or infinite
    ├── DataError          ValueError       a data file is missing, damaged, or too small
    ├── CheckpointError    RuntimeError     a checkpoint is damaged, or of another run
    └── MissingExtraError  ImportError      an optional dependency is not installed

Every message reads ``call(argument): expected X, got Y at PATH. Remedy.``

>>> str(ArgumentError("sgd(lr)", "a number >= 0", "-1.0", remedy="Pass a step size such as 0.1."))
'sgd(lr): expected a number >= 0, got -1.0. Pass a step size such as 0.1.'
"""

from __future__ import annotations

from typing import TypeGuard

__all__ = [
    "ArgumentError",
    "CaptureError",
    "CheckpointError",
    "CompileError",
    "DataError",
    "DerivativeError",
    "DivergenceError",
    "MetaoptError",
    "MissingExtraError",
    "StructureError",
    "VmapError",
    "check_at_least",
    "is_count",
]


class MetaoptError(Exception):
    """The root of the family: ``call(argument): expected X, got Y at PATH. Remedy.``

    Args: where: the call and its argument, ``"map_tasks(episodes)"``.
          expected: what would have been right.
          got: what came.
          at: the path of the leaf, ``"query['y']"``; empty where the argument is one value.
          remedy: one sentence that tells what to do.
    """

    def __init__(self, where: str, expected: str = "", got: str = "", at: str = "", remedy: str = "") -> None:
        text = where
        if expected:
            text += f": expected {expected}, got {got}"
            text += f" at {at}." if at else "."
        super().__init__(f"{text} {remedy}".strip())


class ArgumentError(MetaoptError, ValueError):
    """An argument is outside its range, or of another type."""


class StructureError(MetaoptError, ValueError):
    """Two trees, or a tree and what was asked of it, differ."""


class CaptureError(MetaoptError, RuntimeError):
    """A tensor that needs a gradient came in by closure, where its gradient would be lost."""


class VmapError(MetaoptError, RuntimeError):
    """Something in the model cannot be mapped over tasks."""


class DerivativeError(MetaoptError, RuntimeError):
    """Something in the model has no derivative of the order that was asked for."""


class CompileError(MetaoptError, RuntimeError):
    """Something in the model cannot be compiled; it runs eagerly all the same."""


class DivergenceError(MetaoptError, ArithmeticError):
    """A number became NaN or infinite."""


class DataError(MetaoptError, ValueError):
    """A data file is missing, damaged, or too small for what was asked."""


class CheckpointError(MetaoptError, RuntimeError):
    """A checkpoint is damaged, or belongs to another run."""


class MissingExtraError(MetaoptError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def is_count(value: object, low: int = 1) -> TypeGuard[int]:
    """Tell whether ``value`` is an integer >= ``low``; True and False are none.

    >>> is_count(3), is_count(0), is_count(True), is_count(2.0)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def check_at_least(where: str, value: object, low: int) -> None:
    """Raise `ArgumentError` unless ``value`` is an integer >= ``low``."""
    if not is_count(value, low):
        raise ArgumentError(where, f"an integer >= {low}", repr(value))
