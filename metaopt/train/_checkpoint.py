"""Checkpoints: written whole or not at all, and refused when damaged or of another run."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import CheckpointError
from metaopt.train._config import Config

__all__ = ["Checkpoint", "load", "restore", "save", "write_atomically"]

_FORMAT = 1


class Checkpoint(NamedTuple):
    """A run at a step: its configuration and the leaves of its state by path."""

    config: Config
    step: int
    leaves: dict[str, Any]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: after a crash at any moment it holds the old or the new."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


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


def save(path: Path, config: Config, step: int, state: Any) -> None:
    """Write a checkpoint atomically.

    Args: state: any pytree of tensors and numbers; its leaves are stored by path, so that the file
              loads with ``torch.load(path, weights_only=True)`` and runs no code.
    """
    leaves = {
        name: leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else leaf
        for name, leaf in zip(tree.paths(state), tree.leaves(state), strict=True)
    }
    # One string, not a dict: pickle shares equal strings by identity, and so a resumed run's bytes
    # would tell it from one that never stopped.
    described = json.dumps(dataclasses.asdict(config), sort_keys=True)
    buffer = io.BytesIO()
    content = {"format": _FORMAT, "config": described, "step": step, "leaves": leaves}
    torch.save(content | {"sha256": _digest(described, step, leaves)}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises: CheckpointError if there is none, or it is damaged or of another format. No code in the
            file is run, whatever it holds.
    """
    where = "load(checkpoint)"
    if not path.is_file():
        raise CheckpointError(where, "a checkpoint file", "none", at=str(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        got = f"a damaged file ({str(error).partition(chr(10))[0]})"
        raise CheckpointError(where, "a checkpoint of metaopt", got, at=str(path)) from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(where, "a checkpoint of metaopt", "another file", at=str(path))
    if content["format"] != _FORMAT:
        raise CheckpointError(where, f"format {_FORMAT}", f"format {content['format']}", at=str(path))
    try:
        config, step, leaves = content["config"], content["step"], content["leaves"]
        whole = content["sha256"] == _digest(config, step, leaves)
    except (KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise CheckpointError(
            where,
            "content that matches its checksum",
            "a damaged file",
            str(path),
            remedy="Start again, or resume from a copy.",
        )
    try:
        return Checkpoint(Config(**json.loads(config)), step, leaves)
    except (TypeError, ValueError) as error:
        raise CheckpointError(where, "options of this version", str(error), at=str(path)) from error


def restore(checkpoint: Checkpoint, like: Any) -> Any:
    """Return the state in a checkpoint as a tree like ``like``, on its devices.

    Raises: CheckpointError naming the first leaf that is missing, extra, or of another shape or dtype.
    """
    where = "restore(checkpoint)"
    names, found = tree.paths(like), tree.leaves(like)
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
            saved = saved.to(leaf.device).requires_grad_(leaf.requires_grad)
        filled.append(saved)
    return tree.unflatten(tree.structure(like), filled)
