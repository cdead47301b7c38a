"""Invented characters: few-shot images where no data is at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, check_at_least
from metaopt.tasks._images import ImageTasks, check_episode, image_tasks
from metaopt.tasks._random import key_of, uniform

__all__ = ["glyphs"]

_PARTS = ("train", "validation", "test")
_SIZE, _STROKES, _POINTS, _DRAWERS = 28, 3, 24, 20
_PEN = 1.0  # half the width of a stroke, in pixels


def glyphs(
    way: int = 5,
    shot: int = 1,
    query: int = 1,
    *,
    part: str = "train",
    num_classes: int = 100,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ImageTasks:
    """Characters of three random strokes, each drawn by twenty unsteady hands, 28x28.

    A stroke is a quadratic Bézier curve; a hand moves its control points and shears, scales and shifts the
    whole. The same arguments give the same pixels, and the parts share no class.

    Args:    way, shot, query: classes of a task, and drawings of each in support and in query.
             part: "train", "validation" or "test".
             num_classes: characters to invent; the first ones do not depend on how many follow.
             device, dtype: of the tensors that ``sample`` returns.
    Returns: `Tasks`, as `omniglot`.
    Raises:  ArgumentError; DataError if there are fewer classes than ``way``.
    Cost:    about 2 ms a class to draw, once.

    >>> (x, y), _ = glyphs(way=5, shot=2, num_classes=8).sample(num_tasks=4, seed=0)
    >>> x.shape, y[0]
    (torch.Size([4, 10, 1, 28, 28]), tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]))
    """
    check_episode("glyphs", way, shot, query, dtype)
    check_at_least("glyphs(num_classes)", num_classes, 1)
    if part not in _PARTS:
        raise ArgumentError("glyphs(part)", "'train', 'validation' or 'test'", repr(part))
    name = f"glyphs({part})"
    return image_tasks("glyphs", name, _draw(part, num_classes), way, shot, query, device, dtype)


def _draw(part: str, num_classes: int) -> Tensor:
    """Uint8 [class, drawer, 28, 28]. Only +, −, ×, √, min: the same pixels on every machine."""
    hands = (num_classes, _DRAWERS)
    corners = 0.12 + 0.76 * uniform(key_of("glyphs", part, "corners"), num_classes, 1, _STROKES, 3, 2)
    tremble = uniform(key_of("glyphs", part, "tremble"), *hands, _STROKES, 3, 2) - 0.5
    slant = 0.5 * uniform(key_of("glyphs", part, "slant"), *hands, 2, 2) - 0.25
    shift = 0.14 * uniform(key_of("glyphs", part, "shift"), *hands, 2) - 0.07

    p0, p1, p2 = (corners + 0.14 * tremble).unsqueeze(-3).unbind(-2)
    t = torch.arange(_POINTS, dtype=torch.float64).unsqueeze(-1) / (_POINTS - 1)
    curve = ((1 - t) * (1 - t) * p0 + 2 * t * (1 - t) * p1 + t * t * p2).flatten(2, 3) - 0.5
    x, y = curve.unbind(-1)
    column = x + slant[..., 0, :1] * x + slant[..., 0, 1:] * y + shift[..., :1]
    row = y + slant[..., 1, :1] * x + slant[..., 1, 1:] * y + shift[..., 1:]
    column, row = (_SIZE * (z + 0.5).float() for z in (column, row))

    centre = torch.arange(_SIZE) + 0.5
    images = torch.empty(*hands, _SIZE, _SIZE, dtype=torch.uint8)
    for c in range(num_classes):
        dx = centre - column[c, :, :, None]
        dy = centre - row[c, :, :, None]
        square = (dx * dx).unsqueeze(2) + (dy * dy).unsqueeze(3)  # [drawer, point, row, column]
        ink = (_PEN + 0.5 - square.amin(1).sqrt()).clamp(0, 1)
        images[c] = (255 * ink).round().to(torch.uint8)
    return images
