"""Whether, and how, what runs inside a context is compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from metaopt.errors import ArgumentError

__all__ = ["Compile", "Way", "as_compile", "compiling", "count_steps", "counting_steps", "current_compile"]

Way = Literal["step", "whole", "auto"]
_local = threading.local()


class Compile(NamedTuple):
    """How to compile, for ``compile=``.

    ``how`` is "step", "whole" or "auto"; ``backend`` one of torch.compile's: "inductor" generates code,
    "aot_eager" only replays the traced operations, to find out what a compiler would be given.
    """

    how: Way = "step"
    backend: str | Callable[..., Any] = "inductor"


def as_compile(where: str, choice: Any, ways: tuple[str, ...]) -> Compile | None:
    """The choice as a `Compile`, or None where it is False; ArgumentError for what is neither."""
    if choice is False or choice is None:
        return None
    if isinstance(choice, str):
        choice = Compile(choice)  # type: ignore[arg-type]
    if not isinstance(choice, Compile) or choice.how not in ways:
        expected = ", ".join(map(repr, ways)) + ", Compile(one of these, backend) or False"
        raise ArgumentError(where, expected, repr(choice.how if isinstance(choice, Compile) else choice))
    return choice


class compiling:
    """A context in which every `unroll` compiles its steps, or none does.

    >>> with compiling("step"):
    ...     current_compile()
    Compile(how='step', backend='inductor')
    """

    def __init__(self, choice: Literal["step", False] | Compile):
        self.choice = as_compile("compiling(choice)", choice, ("step",))

    def __enter__(self) -> None:
        self.before = getattr(_local, "choice", None)
        _local.choice = self.choice

    def __exit__(self, *exc: Any) -> None:
        _local.choice = self.before


class counting_steps:
    """A context that yields a list: the number of inner steps of every `unroll` in it."""

    def __enter__(self) -> list[int]:
        self.before = getattr(_local, "steps", None)
        _local.steps = []
        return _local.steps

    def __exit__(self, *exc: Any) -> None:
        _local.steps = self.before


def count_steps(number: int) -> None:
    """Tell a `counting_steps` around us, if there is one."""
    if (steps := getattr(_local, "steps", None)) is not None:
        steps.append(number)


def current_compile() -> Compile | None:
    """The choice of the innermost `compiling` in this thread."""
    return getattr(_local, "choice", None)
