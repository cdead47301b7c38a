"""Where a run's numbers go: lines of JSON, a table, TensorBoard; one small protocol."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

from metaopt.errors import MissingExtraError
from metaopt.train._checkpoint import write_atomically

__all__ = ["CSVWriter", "JSONLWriter", "TensorBoardWriter", "Writer"]

Line = dict[str, float]


class Writer(Protocol):
    """What `fit` asks of a writer; on rank 0 alone.

    A resumed run takes the steps after its checkpoint again: ``begin(step)`` is called first, and a writer
    then forgets what it has of later ones.
    """

    def begin(self, step: int) -> None:
        """Start, or go on, after this step."""

    def write(self, step: int, line: Line) -> None:
        """Take the numbers of one outer step."""

    def flush(self) -> None:
        """Bring what was written to where it outlasts this process; before every checkpoint."""

    def close(self) -> None:
        """The run is over."""


class _FileWriter:
    """A text file of one line a step."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.file: Any = None

    def write(self, step: int, line: Line) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


class JSONLWriter(_FileWriter):
    """One JSON object a line, ``{"step": 1, "loss": 0.5}``; null where a number is not finite."""

    def begin(self, step: int) -> None:
        if self.path.exists():
            kept = [
                row
                for row in self.path.read_bytes().splitlines(keepends=True)
                if row.endswith(b"\n") and json.loads(row)["step"] <= step
            ]
            write_atomically(self.path, b"".join(kept))
        self.file = self.path.open("a")

    def write(self, step: int, line: Line) -> None:
        numbers = {k: v if math.isfinite(v) else None for k, v in line.items()}
        self.file.write(json.dumps({"step": step} | numbers) + "\n")


class CSVWriter(_FileWriter):
    """A table with a header; a column that appears later is empty in the rows before."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.columns: list[str] = ["step"]

    def begin(self, step: int) -> None:
        rows: list[dict[str, str]] = []
        if self.path.exists():
            rows = _rows(self.path)
            rows = [row for row in rows if None not in row.values() and int(row["step"]) <= step]
            self.columns = list(rows[0]) if rows else ["step"]
        self._rewrite(rows)

    def write(self, step: int, line: Line) -> None:
        new = [k for k in line if k not in self.columns]
        if new:
            self.file.close()
            self.columns += new
            self._rewrite(_rows(self.path))
        csv.DictWriter(self.file, self.columns).writerow({"step": step} | line)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        table = csv.DictWriter(text, self.columns)
        table.writeheader()
        table.writerows(rows)
        write_atomically(self.path, text.getvalue().encode())
        self.file = self.path.open("a", newline="")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TensorBoardWriter:
    """Scalars for TensorBoard, in ``folder``.

    Raises: MissingExtraError if tensorboard is not installed, before the first step.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "TensorBoardWriter",
                "tensorboard",
                "no such module",
                remedy="pip install 'metaopt-torch[tensorboard]'.",
            ) from error
        self.make, self.folder = SummaryWriter, str(folder)
        self.to: Any = None

    def begin(self, step: int) -> None:
        self.to = self.make(self.folder, purge_step=step + 1)

    def write(self, step: int, line: Line) -> None:
        for name, value in line.items():
            self.to.add_scalar(name, value, step)

    def flush(self) -> None:
        self.to.flush()

    def close(self) -> None:
        self.to.close()
