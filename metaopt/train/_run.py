"""The state of a run, all of it: what a checkpoint holds and a resumed run starts from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, CheckpointError
from metaopt.train import _checkpoint as checkpoint
from metaopt.train._config import Config
from metaopt.train._distributed import from_first, gather, is_restart, leave_name, ranks

__all__ = ["Resume", "Run", "Store", "Watch", "check_resumed", "resumed_config"]

Resume = bool | Literal["auto"]


class Watch(NamedTuple):
    """The best monitored value, validations since then, and the steps that were skipped."""

    best: Tensor
    stale: Tensor
    skipped: Tensor

    @classmethod
    def new(cls) -> Watch:
        """Before the first step."""
        return cls(torch.tensor(math.inf, dtype=torch.float64), torch.tensor(0), torch.tensor(0))


class Run(NamedTuple):
    """A run at a step.

    ``learned`` the meta-parameters; ``outer`` the optimizer's state; ``carry`` what an estimator takes
    along; ``sampler`` the ``state_dict()`` of tasks that have one; ``watch``.
    """

    learned: Any
    outer: Any
    carry: Any
    sampler: Any
    watch: Watch


class Store:
    """The checkpoints of one folder: the newest, the one before, and the best; or nothing at all."""

    def __init__(self, out: Path | None, about: Any) -> None:
        self.out, self.about, self.note = out, about, ""

    def open(self, run: Run, resume: Resume) -> tuple[Run, int]:
        """Return the run to start from and the steps it has taken.

        Raises: ArgumentError if the folder holds a run that was not to be resumed; CheckpointError.
        """
        if self.out is None:
            if resume is True:
                raise ArgumentError("fit(resume)", "a folder out to resume from", "none")
            return run, 0
        content = from_first(lambda: self._read(resume))
        if not content:
            return run, 0
        found = checkpoint.parse(content, str(self.out / "checkpoint.pt"))
        rows = len({name.partition("]")[0] for name in found.leaves if name.startswith("carry[")})
        size = ranks().size
        if rows not in (0, size):
            raise CheckpointError(
                "fit(resume)",
                f"what each of {size} ranks carries",
                f"that of {rows}",
                str(self.out),
                remedy=f"Resume on {rows} ranks: an estimator's state cannot be shared out anew.",
            )
        restored = checkpoint.restore(found, run._replace(carry=[run.carry] * size))
        return restored._replace(carry=restored.carry[ranks().rank]), found.step

    def _read(self, resume: Resume) -> bytes:
        assert self.out is not None
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArgumentError("train(out)", "a folder, or a place for one", f"'{error}'") from error
        path = self.out / "checkpoint.pt"
        goes_on = _goes_on(self.out, resume)
        if not goes_on and path.exists():
            raise ArgumentError(
                "train(out)",
                "a folder without a checkpoint",
                "one",
                str(path),
                remedy="Pass resume (--resume) to go on, or another folder.",
            )
        leave_name(self.out)
        if not goes_on:
            return b""
        content, self.note = checkpoint.read_newest(path, mend=True)
        return content

    def save(self, step: int, run: Run, *, best: bool = False) -> None:
        """Write the run, on all ranks together; rank 0 writes."""
        if self.out is None:
            return
        carries = gather(run.carry) if tree.leaves(run.carry) else []
        path = self.out / ("best.pt" if best else "checkpoint.pt")
        checkpoint.save(path, self.about, step, run._replace(carry=carries), keep_previous=not best)


def _goes_on(out: Path, resume: Resume) -> bool:
    """Whether a run starts from the checkpoint in ``out``: told to, or started again by torchrun."""
    path = out / "checkpoint.pt"
    there = path.exists() or checkpoint.previous_of(path).exists()
    return there if resume == "auto" or is_restart(out) else bool(resume)


def resumed_config(out: Path, resume: Resume) -> Config | None:
    """The options of the run that the command goes on with, or None where it starts one."""

    def read() -> bytes:
        path = out / "checkpoint.pt"
        return checkpoint.read_newest(path)[0] if _goes_on(out, resume) else b""

    content = from_first(read)
    return checkpoint.parse(content, str(out / "checkpoint.pt")).config if content else None


_ANEW = {"data", "device"}  # where a run goes on is no part of what it computes


def check_resumed(saved: Config | None, config: Config, out: Path) -> None:
    """Raise CheckpointError that names an option in which a run would go on as another."""
    for name in sorted(dataclasses.asdict(saved).keys() - _ANEW) if saved else ():
        before, now = getattr(saved, name), getattr(config, name)
        if before != now:
            raise CheckpointError(
                f"train({name})",
                f"{before!r}, as in the checkpoint",
                repr(now),
                str(out / "checkpoint.pt"),
                remedy="Leave the option out, or start another run with --out.",
            )
