"""Checkpoints: written whole or not at all, and refused when damaged or of another run."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import CheckpointError
from metaopt.train._config import Config
from metaopt.train._distributed import ranks
from metaopt.train._shards import placed_like

__all__ = [
    "Checkpoint",
    "load",
    "parse",
    "previous_of",
    "read_newest",
    "restore",
    "save",
    "whole",
    "write_atomically",
]

_FORMAT = 2
_READABLE = (1, 2)


class Checkpoint(NamedTuple):
    """A run at a step: what it was told, the leaves of its state by path, and the format of its file.

    ``note`` says what was wrong with a newer file, where this is the one before it.
    """

    about: dict[str, Any]
    step: int
    leaves: dict[str, Any]
    format: int = _FORMAT
    note: str = ""

    @property
    def config(self) -> Config:
        """The options of a run of the command.

        Raises: CheckpointError if this is another program's run, or has options of another version.
        """
        try:
            return Config(**self.about)
        except (TypeError, ValueError) as error:
            raise CheckpointError("load(checkpoint)", "options of this version", str(error)) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: after a crash at any moment it holds the old or the new."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the system lets a folder be synchronised."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def previous_of(path: Path) -> Path:
    """Where `save` keeps the checkpoint before the one at ``path``: ``checkpoint.previous.pt``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _keep_previous(path: Path) -> None:
    """Give the present checkpoint its second name; at every moment there is a whole file at ``path``."""
    if not path.exists():
        return
    part = path.with_name(path.name + ".link")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, part)
    os.replace(part, previous_of(path))


def _digest(config: str, step: int, leaves: dict[str, Any]) -> str:
    sha = hashlib.sha256(f"{config} {step}".encode())
    for path, leaf in leaves.items():
        sha.update(path.encode())
        if isinstance(leaf, Tensor):
            sha.update(f"{leaf.dtype}{list(leaf.shape)}".encode())
            flat = leaf.detach().cpu().contiguous()  # read by address: numpy is no core dependency
            sha.update(ctypes.string_at(flat.data_ptr(), flat.nbytes))
        else:
            sha.update(repr(leaf).encode())
    return sha.hexdigest()


def whole(leaf: Any) -> Any:
    """A leaf on the CPU, of its own memory; a sharded one is gathered, on all ranks together."""
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach()
    return (leaf.full_tensor() if hasattr(leaf, "full_tensor") else leaf).cpu().clone()


def save(
    path: Path | str,
    about: Config | dict[str, Any] | None,
    step: int,
    state: Any,
    *,
    keep_previous: bool = True,
) -> None:
    """Write a checkpoint atomically, and keep the one before it beside it.

    Args: about: what the run was told, a Config or a dict for json.
          state: any pytree of tensors, numbers and strings; its leaves are stored by path, so that the
              file loads with ``torch.load(path, weights_only=True)`` and runs no code. Leaves that are
              sharded over ranks are gathered: call it on every rank, and rank 0 writes.
    """
    leaves = {name: whole(leaf) for name, leaf in zip(tree.paths(state), tree.leaves(state), strict=True)}
    if ranks().rank:
        return
    # One string, not a dict: pickle shares equal strings by identity, and so a resumed run's bytes
    # would tell it from one that never stopped.
    told = dataclasses.asdict(about) if isinstance(about, Config) else about
    described = json.dumps(told, sort_keys=True)
    buffer = io.BytesIO()
    content = {"format": _FORMAT, "config": described, "step": step, "leaves": leaves}
    torch.save(content | {"sha256": _digest(described, step, leaves)}, buffer)
    path = Path(path)
    if keep_previous:
        _keep_previous(path)
    write_atomically(path, buffer.getvalue())


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint.

    Raises: CheckpointError if there is none, or it is damaged or of another format. No code in the
            file is run, whatever it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("load(checkpoint)", "a checkpoint file", "none", at=str(path))
    return parse(path.read_bytes(), str(path))


def read_newest(path: Path, *, mend: bool = False) -> tuple[bytes, str]:
    """The bytes of the newest whole checkpoint, and a note if that is not the one at ``path``.

    Args: mend: put a damaged file aside, as ``checkpoint.damaged.pt``, and the good one in its place, for
              the next one to push out the damaged one and not the good one.
    Raises: the newest one's CheckpointError if there is no whole one.
    """
    try:
        load(path)
        return path.read_bytes(), ""
    except CheckpointError as error:
        before = previous_of(path)
        try:
            found = load(before)
        except CheckpointError:
            raise error from None
        content = before.read_bytes()
        if mend:
            if path.exists():
                os.replace(path, path.with_name(f"{path.stem}.damaged{path.suffix}"))
            write_atomically(path, content)
        return content, f"{error} Going on from {before.name}, step {found.step}."


def parse(content: bytes, at: str) -> Checkpoint:
    """As `load`, from a file's bytes; ``at`` names the file in errors."""
    where = "load(checkpoint)"
    _check_container(content, at)
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        got = f"a damaged file ({str(error).partition(chr(10))[0]})"
        raise CheckpointError(where, "a checkpoint of metaopt", got, at=at) from error
    if not isinstance(found, dict) or "format" not in found:
        raise CheckpointError(where, "a checkpoint of metaopt", "another file", at=at)
    if found["format"] not in _READABLE:
        known = " or ".join(map(str, _READABLE))
        raise CheckpointError(where, f"format {known}", f"format {found['format']}", at=at)
    try:
        config, step, leaves = found["config"], found["step"], found["leaves"]
        sound = found["sha256"] == _digest(config, step, leaves)
    except (KeyError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise CheckpointError(
            where,
            "content that matches its checksum",
            "a damaged file",
            at,
            remedy="Start again, or resume from a copy.",
        )
    return Checkpoint(json.loads(config), step, leaves, found["format"])


def _check_container(content: bytes, at: str) -> None:
    """What torch.save writes is a zip of stored members under one folder; nothing else is unpacked."""
    where, expected = "load(checkpoint)", "a checkpoint of metaopt"
    try:
        members = zipfile.ZipFile(io.BytesIO(content)).infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise CheckpointError(where, expected, f"a damaged file ({error})", at=at) from error
    for member in members:
        name = member.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or ":" in name:
            raise CheckpointError(where, "members inside the file", repr(member.filename), at=at)
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(where, "members that are stored", "a compressed one", at=at)
    if sum(member.file_size for member in members) > len(content):
        raise CheckpointError(where, "members no larger than their file", "larger ones", at=at)


def restore(checkpoint: Checkpoint, like: Any) -> Any:
    """Return the state in a checkpoint as a tree like ``like``, on its devices.

    Raises: CheckpointError naming the first leaf that is missing, extra, or of another shape or dtype.
    """
    where = "restore(checkpoint)"
    names, found = tree.paths(like), tree.leaves(like)
    if checkpoint.format == 1:  # which kept neither the watch nor what an estimator carries
        added = {n: whole(x) for n, x in zip(names, found, strict=True) if n.startswith("watch.")}
        checkpoint = checkpoint._replace(leaves=added | checkpoint.leaves)
    for name in sorted(checkpoint.leaves.keys() ^ set(names)):
        got = "one more" if name in checkpoint.leaves else "none"
        raise CheckpointError(where, "the leaves of this model", got, at=name)
    filled = []
    for name, leaf in zip(names, found, strict=True):
        saved = checkpoint.leaves[name]
        if isinstance(leaf, Tensor):
            if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (leaf.shape, leaf.dtype):
                got = f"{list(saved.shape)} {saved.dtype}" if isinstance(saved, Tensor) else repr(saved)
                raise CheckpointError(where, f"{list(leaf.shape)} {leaf.dtype}", got, at=name)
            saved = placed_like(saved, leaf).requires_grad_(leaf.requires_grad)
        elif type(saved) is not type(leaf):
            raise CheckpointError(where, f"{type(leaf).__name__}", f"{type(saved).__name__}", at=name)
        filled.append(saved)
    return tree.unflatten(tree.structure(like), filled)
