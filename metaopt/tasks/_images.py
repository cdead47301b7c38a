"""N-way K-shot classification, drawn from a tensor of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, DataError, check_at_least
from metaopt.tasks._random import distinct, key_of
from metaopt.tasks._tasks import check_device, check_draw, check_floating
from metaopt.types import Episode

__all__ = ["ImageTasks", "check_episode", "image_tasks"]


@dataclass(frozen=True, repr=False, eq=False)
class ImageTasks:
    """What `omniglot` and `glyphs` return: few-shot tasks over ``images`` [class, drawing, height, width]."""

    name: str
    images: Tensor
    way: int
    shot: int
    query: int
    dtype: torch.dtype

    @property
    def num_classes(self) -> int:
        """Classes that episodes choose from; a rotated class is one of its own."""
        return self.images.shape[0]

    @property
    def num_drawings(self) -> int:
        """Drawings of every class."""
        return self.images.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the images are, and the episodes will be."""
        return self.images.device

    def __repr__(self) -> str:
        return (
            f"{self.name}: {self.way}-way {self.shot}-shot, query {self.query}, {self.num_classes} classes "
            f"of {self.num_drawings} drawings, {self.dtype}, {self.device}"
        )

    def sample(self, num_tasks: int, seed: int, step: int = 0) -> Episode:
        """Return an Episode: x [task, way*k, 1, height, width] in [0, 1], y [task, way*k] int64.

        k is ``shot`` in support and ``query`` in query. Examples are sorted by label, so that
        ``x.unflatten(1, (way, k))`` has the class axis. The classes of a task are different, and no
        drawing is in both support and query.
        """
        check_draw(num_tasks, seed, step)
        way, shot, count = self.way, self.shot, self.shot + self.query
        classes = distinct(key_of("classes", seed, step), num_tasks, way, self.num_classes)
        rows = distinct(key_of("drawings", seed, step), num_tasks * way, count, self.num_drawings)
        flat = classes.view(num_tasks, way, 1) * self.num_drawings + rows.view(num_tasks, way, count)
        height, width = self.images.shape[2:]
        pool = self.images.view(-1, height * width)

        def batch(index: Tensor) -> tuple[Tensor, Tensor]:
            k = index.shape[2]
            ink = pool.index_select(0, index.reshape(-1).to(self.device))
            x = ink.to(self.dtype).div_(255).view(num_tasks, way * k, 1, height, width)
            y = torch.arange(way, device=self.device).repeat_interleave(k, output_size=way * k)
            return x, y.repeat(num_tasks, 1)

        return Episode(batch(flat[:, :, :shot]), batch(flat[:, :, shot:]))


def check_episode(call: str, way: int, shot: int, query: int, dtype: torch.dtype) -> None:
    """Check what can be checked before any image is read."""
    check_at_least(f"{call}(way)", way, 2)
    check_at_least(f"{call}(shot)", shot, 1)
    check_at_least(f"{call}(query)", query, 1)
    check_floating(f"{call}(dtype)", dtype)


def image_tasks(
    call: str,
    name: str,
    images: Tensor,
    way: int,
    shot: int,
    query: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> ImageTasks:
    """Return the tasks over ``images`` uint8 [class, drawing, height, width], 255 = ink.

    Raises: DataError if there are fewer classes than ``way``; ArgumentError if ``shot + query`` drawings
            are more than there are.
    """
    if images.shape[0] < way:
        raise DataError(
            f"{call}(way)",
            f"at least {way} classes",
            str(images.shape[0]),
            name,
            "Pass a smaller way, or data with more classes.",
        )
    if images.shape[1] < shot + query:
        raise ArgumentError(
            f"{call}(query)",
            f"shot + query <= {images.shape[1]}, the drawings of a class",
            f"{shot} + {query}",
        )
    images = images.to(check_device(f"{call}(device)", device)).contiguous()
    return ImageTasks(name, images, way, shot, query, dtype)
