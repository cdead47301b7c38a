"""The Figure that pictures are drawn on. Imported only when one is drawn."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

__all__ = ["Picture"]


class Picture(Figure):
    """A matplotlib Figure that shows itself in Jupyter, where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png", dpi=80)
            return file.getvalue()
