"""Zip archives and npz files from strangers, read in memory.

Nothing is extracted to the disk, nothing is unpickled, and nothing is decompressed before its declared size
has been found small; a member that then yields more than it declared is refused too.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from metaopt.errors import DataError, MissingExtraError

__all__ = ["Archive", "load_arrays", "opened", "require"]

_TOTAL_LIMIT = 1 << 28  # bytes of all members: the whole of Omniglot in grey is 2^25
_MEMBER_LIMIT = 100_000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError)
_REMEDY = "Remove the file and fetch it again, for example with omniglot(root, download=True)."


def require(where: str, module: str, what: str) -> Any:
    """Import an optional module, or raise `MissingExtraError` that names the extra."""
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise MissingExtraError(
            where,
            f"{module.split('.')[0]} to read {what}",
            f"'{error}'",
            remedy="Install the extra: pip install 'metaopt-torch[vision]'.",
        ) from error


class Archive:
    """A zip file whose members have been checked; made by `opened`."""

    def __init__(self, where: str, path: Path, file: zipfile.ZipFile) -> None:
        self._where, self._path, self._file = where, path, file
        members = file.infolist()
        if len(members) > _MEMBER_LIMIT:
            raise self.error(f"at most {_MEMBER_LIMIT} members", str(len(members)))
        total = 0
        for member in members:
            name = member.filename
            windows = PureWindowsPath(name)  # knows '/', '\\' and drive letters
            if name.startswith(("/", "\\")) or windows.drive or ".." in windows.parts:
                raise self.error("members inside the archive's own folder", repr(name))
            if member.flag_bits & 1:
                raise self.error("members without encryption", "an encrypted one", name)
            if member.compress_type not in _METHODS:
                raise self.error("members stored or deflated", f"method {member.compress_type}", name)
            total += member.file_size
            if total > _TOTAL_LIMIT:
                raise self.error(f"at most {_TOTAL_LIMIT >> 20} MiB when decompressed", "more")
        self.names = [member.filename for member in members if not member.is_dir()]

    def error(self, expected: str, got: str, name: str = "") -> DataError:
        """Return the error that names this file, and the member where there is one."""
        at = f"{self._path.name}:{name}" if name else self._path.name
        return DataError(self._where, expected, got, at, _REMEDY)

    def read(self, name: str) -> bytes:
        """Return the bytes of a member, checked against its declared size and checksum."""
        size = self._file.getinfo(name).file_size
        try:
            with self._file.open(name) as stream:
                content = stream.read(size + 1)
        except _DAMAGE as error:
            raise self.error("an undamaged member", f"'{error}'", name) from error
        if len(content) != size:
            raise self.error(f"{size} bytes, as declared", str(len(content)), name)
        return content


@contextmanager
def opened(where: str, path: Path) -> Iterator[Archive]:
    """Open a zip file for reading; `DataError` where it is damaged, hostile or not a zip file."""
    try:
        file = zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise DataError(where, "a zip archive", f"'{error}'", path.name, _REMEDY) from error
    with file:
        yield Archive(where, path, file)


def load_arrays(where: str, path: Path, names: tuple[str, ...]) -> list[Any]:
    """Return arrays of an npz file as numpy arrays, without pickle."""
    numpy = require(where, "numpy", path.name)
    arrays = []
    with opened(where, path) as archive:
        for name in names:
            member = f"{name}.npy"
            if member not in archive.names:
                raise archive.error(f"an array {name!r}", "none of this name")
            content = archive.read(member)
            try:
                _check_header(numpy.lib.format, content)
                arrays.append(numpy.load(io.BytesIO(content), allow_pickle=False))
            except (*_DAMAGE, SyntaxError) as error:
                raise archive.error("an array of numbers or text", f"'{error}'", member) from error
    return arrays


def _check_header(layout: Any, content: bytes) -> None:
    """Raise ValueError if a header promises more numbers than follow: numpy would make room for them."""
    stream = io.BytesIO(content)
    version = layout.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"npy format version {version}")
    shape, _, dtype = layout.read_array_header_1_0(stream)
    size, promised = len(content) - stream.tell(), math.prod(shape) * dtype.itemsize
    if size != promised or dtype.hasobject:
        raise ValueError(f"{size} bytes of data for {dtype} {list(shape)}")
