"""The sheet that every picture is drawn on, and its colours."""

from __future__ import annotations

import importlib
from typing import Any

from metaopt.errors import MissingExtraError

__all__ = ["BLUE", "GREEN", "GREY", "LINES", "ORANGE", "PINK", "figure"]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
PINK, SKY, AMBER = "#CC79A7", "#56B4E9", "#E69F00"
LINES = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)


def figure(**kwargs: Any) -> Any:
    """Return an empty matplotlib Figure, which needs no display and no global state.

    Jupyter shows it as it is; ``savefig`` writes it. A rebound or closed figure needs no ``close``.

    Raises: MissingExtraError if matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib.figure")
        from metaopt.plot._picture import Picture
    except ImportError as error:
        raise MissingExtraError(
            "plot", "matplotlib", "no such module", remedy="pip install 'metaopt-torch[vision]'."
        ) from error
    return Picture(layout="constrained", dpi=120, **kwargs)
