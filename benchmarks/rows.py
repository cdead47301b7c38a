"""A line of a table, and how it is printed."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HEADER", "Row"]

HEADER = ("| figure | target | measured | |", "| --- | --- | --- | --- |")


class Row(NamedTuple):
    """One line: what was counted or measured, what was wanted, and whether it was reached."""

    figure: str
    target: str
    measured: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.figure} | {self.target} | {self.measured} | {'✓' if self.met else 'short'} |"
