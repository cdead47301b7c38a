"""What is remembered of the kinds of call that were made last, until all of it is forgotten."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

__all__ = ["Table"]


class Table(OrderedDict[Any, Any]):
    """The last ``limit`` entries that were kept; the one that was not kept for longest goes first."""

    all: ClassVar[list[Table]] = []

    def __init__(self, limit: int = 128) -> None:
        super().__init__()
        self.limit = limit
        Table.all.append(self)

    def keep(self, key: Any, value: Any) -> Any:
        self[key] = value
        self.move_to_end(key)
        while len(self) > self.limit:
            self.popitem(last=False)
        return value
