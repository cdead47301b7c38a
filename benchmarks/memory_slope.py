"""Does memory grow with the outer steps? What is alive, what the heap holds, and what is resident.

Resident memory tells little alone: an allocator keeps what was freed (glibc up to seven pieces a size),
and touches pages of its heap late. A leak is what is *alive*: blocks of Python's allocator, bytes that malloc
has handed out, tensors with a history. Beside `fit` stands a loop of torch alone that logs and saves alike.
Each runs in a process of its own, where glibc's cache of freed pieces is off, for it to count as free.
"""

from __future__ import annotations

import array
import ctypes
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import metaopt as mo
from benchmarks.rows import Row

__all__ = ["LOOPS", "Gauge", "of_memory"]

EVERY = 200  # steps from a checkpoint, and from a measurement, to the next
PER_STEP = {"blocks": 0.05, "heap": 2.0}  # what a leak exceeds: an object of 56 bytes in 20 steps
NO_CACHE = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


class _Mallinfo(ctypes.Structure):
    """glibc's mallinfo2."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks")
    _fields_ = [(name, ctypes.c_size_t) for name in (*_names, "keepcost")]


def heap() -> int:
    """Bytes that malloc has handed out; 0 where this is not glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _Mallinfo
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def graphs() -> int:
    """Live tensors with a history."""
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) and x.grad_fn is not None for x in gc.get_objects())


class Gauge:
    """Measures after every 200th step, into memory that it has from the start."""

    def __init__(self, steps: int) -> None:
        self.rows = {k: array.array("d", bytes(8 * (steps // EVERY))) for k in ("resident", "heap", "blocks")}

    def __call__(self, step: int) -> None:
        if step % EVERY == 0:
            gc.collect()  # garbage that Python has not looked for yet is no leak
            found = {"resident": resident(), "heap": heap(), "blocks": sys.getallocatedblocks()}
            for name, value in found.items():
                self.rows[name][step // EVERY - 1] = value

    def slope(self, name: str) -> float:
        """Σ (n − n̄)(m − m̄) / Σ (n − n̄)² a step, over the second half, when caches are full.

        Some 170 blocks come at once near step 6,300, whatever the number of steps, and none such after it.
        """
        rows = self.rows[name][len(self.rows[name]) // 2 :]
        m = torch.tensor(rows, dtype=torch.float64)
        n = EVERY * torch.arange(len(m), dtype=torch.float64)
        n = n - n.mean()
        return float((n * (m - m.mean())).sum() / (n**2).sum())


def with_fit(steps: int, gauge: Callable[[int], None], folder: Path) -> None:
    """`fit`, with checkpoints and a log."""
    task = mo.maml(lambda p, b: ((p["w"] * b) ** 2).mean(), mo.optim.sgd(lr=0.1), num_steps=2)

    def draw(step: int) -> mo.Episode:
        x = torch.randn(4, 8)
        return mo.Episode(x, x)

    def measure(event: mo.train.Step) -> None:
        gauge(event.step)

    params = {"w": torch.ones(8)}
    mo.train.fit(
        mo.map_tasks(task),
        params,
        draw,
        num_steps=steps,
        out=folder,
        checkpoint_every=EVERY,
        callbacks=[measure],
    )


def with_torch(steps: int, gauge: Callable[[int], None], folder: Path) -> None:
    """The same by hand: two inner steps, Adam, a line of JSON, torch.save."""
    w = torch.ones(8, requires_grad=True)
    opt = torch.optim.Adam([w], lr=1e-3)
    with (folder / "metrics.jsonl").open("w") as log:
        for step in range(1, steps + 1):
            x, fast = torch.randn(4, 8), w
            for _ in range(2):
                (grad,) = torch.autograd.grad(((fast * x) ** 2).mean(), [fast], create_graph=True)
                fast = fast - 0.1 * grad
            loss = ((fast * x) ** 2).mean()
            (w.grad,) = torch.autograd.grad(loss, [w])
            opt.step()
            log.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")
            if step % EVERY == 0:
                log.flush()
                content = io.BytesIO()
                torch.save({"w": w, "opt": opt.state_dict()}, content)
                (folder / "checkpoint.pt").write_bytes(content.getvalue())
            gauge(step)


LOOPS = {"fit": with_fit, "torch": with_torch}


def measured(name: str, steps: int) -> dict[str, float]:
    """The slopes of one loop in this process, the rise of what is resident, and the graphs it left."""
    torch.set_num_threads(1)
    gauge, before = Gauge(steps), graphs()
    with tempfile.TemporaryDirectory() as folder:
        LOOPS[name](steps, gauge, Path(folder))
    late = gauge.rows["resident"][steps // EVERY // 2 :]
    found = {k: gauge.slope(k) for k in gauge.rows}
    return found | {"rise": late[-1] - late[0], "graphs": graphs() - before}


def of_memory(steps: int) -> list[Row]:
    """What is alive must not grow; what is resident is told beside a loop of torch alone."""
    rows = []
    for name, title in (("fit", "mo.train.fit"), ("torch", "for comparison: the same by torch alone")):
        command = [sys.executable, "-m", "benchmarks.memory_slope", name, str(steps)]
        run = subprocess.run(command, env=os.environ | NO_CACHE, capture_output=True, text=True, check=True)
        found = json.loads(run.stdout)
        said = f"{found['blocks']:+.3f} Python blocks and {found['heap']:+.2f} bytes of heap a step, "
        said += f"{found['graphs']:.0f} live graph tensors; resident {found['resident']:+.2f} bytes a step "
        said += f"({found['rise'] / 1024:+.0f} KiB in all)"
        still = all(abs(found[k]) < limit for k, limit in PER_STEP.items())
        target = "what is alive: slope 0"
        rows.append(
            Row(
                f"{steps // 2:,} outer steps after {steps - steps // 2:,}, {title}",
                target,
                said,
                still and found["graphs"] == 0,
            )
        )
    return rows


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
