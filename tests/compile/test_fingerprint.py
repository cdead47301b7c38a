"""Whatever a function captured, a change of it changes its fingerprint, and nothing else does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from metaopt.compiled._fingerprint import fingerprint

FACTOR = 2.0


def _closure() -> tuple[Any, Callable[[], None]]:
    factor = 2.0

    def change() -> None:
        nonlocal factor
        factor = 3.0

    return lambda x: factor * x, change


def _inner_closure() -> tuple[Any, Callable[[], None]]:
    f, change = _closure()
    return lambda x: f(x), change


def _list() -> tuple[Any, Callable[[], None]]:
    table = {"rates": ([1.0], 2)}
    return lambda x: table["rates"][0][0] * x, lambda: table["rates"][0].append(3.0)


def _global() -> tuple[Any, Callable[[], None]]:
    return lambda x: FACTOR * x, lambda: globals().update(FACTOR=globals()["FACTOR"] + 1)


def _absent() -> tuple[Any, Callable[[], None]]:
    return lambda x: APPEARS * x, lambda: globals().update(APPEARS=1.0)  # noqa: F821


def _default() -> tuple[Any, Callable[[], None]]:
    def f(x: Any, factor: float = 2.0, *, power: int = 1) -> Any:
        return factor * x**power

    def change() -> None:
        f.__kwdefaults__["power"] = 2

    return f, change


def _code() -> tuple[Any, Callable[[], None]]:
    def f(x: Any) -> Any:
        return x

    def change() -> None:
        f.__code__ = (lambda x: x + 1).__code__

    return f, change


def _partial() -> tuple[Any, Callable[[], None]]:
    f = functools.partial(pow, mod=3)
    return lambda x: f(x, 2), lambda: f.keywords.update(mod=5)


def _empty_cell() -> tuple[Any, Callable[[], None]]:
    def f(x: Any) -> Any:
        return later * x

    def change() -> None:
        nonlocal later
        later = 2.0

    if False:
        later = 1.0
    return f, change


CASES = [_closure, _inner_closure, _list, _global, _absent, _default, _code, _partial, _empty_cell]


@pytest.mark.parametrize("case", CASES, ids=lambda f: f.__name__)
def test_a_change_is_seen(case: Callable[[], tuple[Any, Callable[[], None]]]) -> None:
    f, change = case()
    before = fingerprint(f)[0]
    assert fingerprint(f)[0] == before, "nothing changed"
    change()
    assert fingerprint(f)[0] != before
