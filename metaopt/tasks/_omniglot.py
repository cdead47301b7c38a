"""Omniglot: 1623 handwritten characters of 50 alphabets, each by 20 people."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, DataError
from metaopt.tasks._archive import Archive, load_arrays, opened, require
from metaopt.tasks._download import OMNIGLOT, Mirror, fetch
from metaopt.tasks._images import ImageTasks, check_episode, image_tasks
from metaopt.tasks._splits import check_split, part_of

__all__ = ["omniglot"]

_NPZ = "omniglot_28_grey.npz"
_WHOLE = ("images_background.zip", "images_evaluation.zip")
_SMALL = ("images_background_small1.zip", "images_background_small2.zip")
_MEMBER = re.compile(r"[^/]+/([^/]+)/character(\d\d)/(\d{4})_(\d\d)\.png")
_SIZE, _PIXELS = (105, 105), 28
_WHERE = "omniglot(root)"


def omniglot(
    root: str | PathLike[str],
    split: str = "vinyals",
    part: str = "train",
    way: int = 5,
    shot: int = 1,
    query: int = 1,
    rotations: bool | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    download: bool | Mirror = False,
) -> ImageTasks:
    """Few-shot classification of Omniglot's characters, 28x28, ink = 1.

    ``root`` holds ``omniglot_28_grey.npz`` or, read where that is absent, the authors' archives:
    ``images_background.zip`` and ``images_evaluation.zip``, or else the small ones,
    ``images_background_small1.zip`` and ``images_background_small2.zip``, whose 8 alphabets make every part
    a subset. All give the same pixels: the 105x105 originals, averaged over boxes.

    Args:    root: the folder.
             split: "vinyals" (1028 characters to train on, 172 to validate, 423 to test: the one to report)
                 or "lake" (964 background characters to train on, 659 to evaluate: no validation).
             part: "train", "validation" or "test".
             way, shot, query: classes of a task, and drawings of each in support and in query.
             rotations: turns by 0, 90, 180 and 270 degrees are four classes instead of one. None means
                 True for training and False otherwise; Vinyals et al. and Snell et al. report test tasks
                 with rotations too, so pass True to compare with them, and say which it was.
             device, dtype: of the tensors that ``sample`` returns; the images stay there as uint8.
             download: fetch the authors' archives to ``root`` where no data is there; or the `Mirror` to
                 fetch them from. One process at a time.
    Returns: `Tasks`; ``sample(T, seed, step)`` has x [T, way*k, 1, 28, 28] and y [T, way*k], int64.
    Raises:  ArgumentError; DataError if the data is missing, damaged or too small for the task;
             MissingExtraError without numpy and Pillow, which come with ``metaopt-torch[vision]``.
    Cost:    16 KiB a class on the device (rotations: 63 MiB for Vinyals' training classes). The archives
             are decoded at every call, in about 0.2 ms a drawing; the npz takes a tenth of a second.
    Source:  Lake, Salakhutdinov & Tenenbaum 2015, Science 350:1332; Vinyals et al. 2016, arXiv:1606.04080.
    """
    check_split(split, part)
    check_episode("omniglot", way, shot, query, dtype)
    if rotations not in (None, True, False):
        raise ArgumentError("omniglot(rotations)", "True, False or None", repr(rotations))
    images = _read(Path(root).expanduser(), split, part, download)
    turned = part == "train" if rotations is None else bool(rotations)
    if turned:
        images = torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])
    name = f"omniglot({split}, {part}{', rotations' if turned else ''})"
    return image_tasks("omniglot", name, images, way, shot, query, device, dtype)


def _read(root: Path, split: str, part: str, download: bool | Mirror) -> Tensor:
    """Uint8 [class, drawing, 28, 28] of one part, 255 = ink, in the authors' order."""
    if (root / _NPZ).is_file():
        return _read_npz(root / _NPZ, split, part)
    needed = {("lake", "train"): _WHOLE[:1], ("lake", "test"): _WHOLE[1:]}.get((split, part), _WHOLE)
    if download:
        mirror = download if isinstance(download, Mirror) else OMNIGLOT
        paths = [fetch("omniglot(download)", mirror, name, root) for name in needed]
    else:
        paths = [root / name for name in needed if (root / name).is_file()]
        if not paths:
            paths = [root / name for name in _SMALL if (root / name).is_file()]
        elif len(paths) < len(needed):
            (missing,) = {root / name for name in needed} - set(paths)
            raise DataError(
                _WHERE,
                " and ".join(needed),
                "one of them",
                str(root),
                f"Add {missing.name}, or download=True.",
            )
    if not paths:
        raise DataError(
            _WHERE,
            f"{_NPZ}, {' and '.join(needed)}, or the small archives",
            "none of them",
            str(root),
            "Pass download=True to fetch the authors' archives (16 MB).",
        )
    return _read_archives(paths, split, part)


def _read_npz(path: Path, split: str, part: str) -> Tensor:
    names = ("images", "alphabets", "class_alphabet", "class_character")
    images, alphabets, alphabet, character = load_arrays(_WHERE, path, names)
    count = len(images) if images.ndim else 0
    if images.dtype != "uint8" or images.ndim != 4 or images.shape[2:] != (_PIXELS, _PIXELS):
        got = f"{images.dtype} {list(images.shape)}"
        raise DataError(_WHERE, "uint8 [class, drawing, 28, 28]", got, f"{path.name}:images")
    for name, array in (("class_alphabet", alphabet), ("class_character", character)):
        if array.shape != (count,) or array.dtype.kind not in "ui":
            got = f"{array.dtype} {list(array.shape)}"
            raise DataError(_WHERE, f"{count} integers", got, f"{path.name}:{name}")
    known = range(len(alphabets)) if alphabets.ndim == 1 and alphabets.dtype.kind == "U" else ()
    if not set(alphabet.tolist()) <= set(known):
        got = f"{alphabets.dtype} {list(alphabets.shape)}"
        raise DataError(_WHERE, "a name for every alphabet", got, f"{path.name}:alphabets")
    rows = [
        i
        for i in range(count)
        if part_of(split, str(alphabets[alphabet[i]]), int(character[i]), path.name) == part
    ]
    return torch.from_numpy(images[rows])


def _members(archive: Archive, at: str, split: str, part: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (file index, character, drawing, member) of the drawings of one part."""
    found = False
    for name in archive.names:
        match = _MEMBER.fullmatch(name)
        if match:
            found = True
            alphabet, character, index, drawing = match.groups()
            if part_of(split, alphabet, int(character), at) == part:
                yield index, f"{alphabet}/character{character}", drawing, name
    if not found:
        raise archive.error("drawings <archive>/<Alphabet>/characterNN/CCCC_DD.png", "none")


def _read_archives(paths: list[Path], split: str, part: str) -> Tensor:
    numpy = require(_WHERE, "numpy", "archives")
    image_module = require(_WHERE, "PIL.Image", "archives")
    classes: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths:
        with opened(_WHERE, path) as archive:
            for index, character, drawing, name in _members(archive, path.name, split, part):
                drawings = classes.setdefault((index, character), {})
                if drawing not in drawings:  # the small archives share two alphabets
                    drawings[drawing] = numpy.asarray(_grey(archive, name, image_module))
    counts = {key: len(drawings) for key, drawings in classes.items()}
    most = max(counts.values(), default=0)
    for (_, character), count in counts.items():
        if count < most:
            raise DataError(_WHERE, f"{most} drawings of every character", str(count), character)
    if not classes:
        return torch.empty(0, 0, _PIXELS, _PIXELS, dtype=torch.uint8)
    rows = [[drawings[d] for d in sorted(drawings)] for _, drawings in sorted(classes.items())]
    return torch.from_numpy(numpy.stack([numpy.stack(row) for row in rows]))


def _grey(archive: Archive, name: str, image_module: Any) -> Any:
    """255 = ink, 28x28. In mode "1" Pillow would resize by nearest neighbour: "L" first."""
    content = archive.read(name)
    header = struct.pack(">8s4x4sII", b"\x89PNG\r\n\x1a\n", b"IHDR", *_SIZE)
    if content[:8] + bytes(4) + content[12:24] != header:  # before Pillow makes room for the pixels
        raise archive.error("a PNG image of 105x105 pixels", "another file", name)
    try:
        with image_module.open(io.BytesIO(content), formats=("PNG",)) as image:
            ink = image.convert("L").point(lambda v: 255 - v)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise archive.error("an undamaged PNG image", f"'{error}'", name) from error
    return ink.resize((_PIXELS, _PIXELS), image_module.Resampling.BOX)
