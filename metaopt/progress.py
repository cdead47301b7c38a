"""Progress bars on what lasts: a widget in Jupyter, text in a terminal, nothing within the first second."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["bar", "progress"]

T = TypeVar("T")


def bar(*args: Any, **options: Any) -> Any:
    """A bar of tqdm.auto. In Jupyter without ipywidgets it is text, and not a warning of every import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm(*args, **options)


def progress(items: Iterable[T], title: str) -> Iterator[T]:
    """Go through ``items`` under a bar that appears after a second and leaves when all is done.

    >>> list(progress([1, 2], "counting"))
    [1, 2]
    """
    return iter(bar(items, desc=title, leave=False, delay=1.0))
