"""Machines in miniature: network namespaces joined by a bridge, with torchrun in each of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["Namespaces"]


class Namespaces:
    """``size`` network namespaces; each sees the others by a virtual cable, and nothing else.

    Needs root and the command ``ip``.
    """

    def __init__(self, size: int) -> None:
        self.size, self.tag = size, f"mo{os.getpid() % 10000}"
        self.addresses = [f"10.77.0.{i + 1}" for i in range(size)]

    def __enter__(self) -> Namespaces:
        _ip("link", "add", f"{self.tag}br", "type", "bridge")
        _ip("link", "set", f"{self.tag}br", "up")
        for i, address in enumerate(self.addresses):
            space, outer, inner = f"{self.tag}n{i}", f"{self.tag}v{i}", f"{self.tag}w{i}"
            _ip("netns", "add", space)
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            _ip("link", "set", outer, "master", f"{self.tag}br", "up")
            _ip("link", "set", inner, "netns", space)
            _ip("-n", space, "link", "set", inner, "name", "cable")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "cable")
            _ip("-n", space, "link", "set", "cable", "up")
            _ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: Any) -> None:
        for i in range(self.size):
            _ip("netns", "del", f"{self.tag}n{i}")  # its cable goes with it
        _ip("link", "del", f"{self.tag}br")

    def train_and_lose_one(self, flags: list[str], out: Path, timeout: float = 400) -> int:
        """Train on one rank a namespace, kill the last one after some steps, and return the restarts."""
        env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
        with tempfile.TemporaryDirectory() as folder:
            agents = [self._agent(i, flags, env, Path(folder) / f"log{i}") for i in range(self.size)]
            try:
                lines, deadline = out / "metrics.jsonl", time.monotonic() + timeout
                while not (lines.exists() and lines.read_text().count("\n") > 20):
                    _check(time.monotonic() < deadline and all(a.poll() is None for a in agents), folder)
                    time.sleep(0.05)
                (worker,) = _children(agents[-1].pid)
                os.kill(worker, signal.SIGKILL)
                for agent in agents:
                    _check(agent.wait(max(deadline - time.monotonic(), 1)) == 0, folder)
            finally:
                for agent in agents:
                    agent.kill()
            said = "".join((Path(folder) / f"log{i}").read_text() for i in range(self.size))
            return said.count("new at every draw") - 1

    def _agent(self, i: int, flags: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        command = ["ip", "netns", "exec", f"{self.tag}n{i}", sys.executable, "-m", "torch.distributed.run"]
        command += [f"--nnodes={self.size}", "--nproc-per-node=1", "--max-restarts=9", "--rdzv-backend=c10d"]
        command += [f"--rdzv-endpoint={self.addresses[0]}:29477", f"--rdzv-id={self.tag}"]
        command += [f"--rdzv-conf=is_host={int(i == 0)}"]  # its hostname does not tell in a namespace
        command += [f"--local-addr={self.addresses[i]}", "-m", "metaopt", "train", *flags]
        command += ["--checkpoint-every=10", "--no-pictures", "--eval-tasks=2"]
        with log.open("wb") as file:
            return subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _check(holds: bool, folder: str) -> None:
    if not holds:
        logs = "\n".join(path.read_text() for path in sorted(Path(folder).iterdir()))
        raise RuntimeError(f"a run in namespaces failed or took too long:\n{logs}")


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        if int(parent) == pid and state != "Z":
            found.append(int(entry.parent.name))
    return found
