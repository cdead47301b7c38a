"""torchrun itself: two ranks, one of them killed, and a run that ends where one process ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import rank_programs
import torch

from metaopt import train
from metaopt.__main__ import main


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are still alive, by Linux's own table."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has ended meanwhile
                continue
            if int(parent) == pid and state != "Z":
                found.append(int(entry.name))
    return sorted(found)


def test_torchrun_loses_a_rank_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = rank_programs.TINY | {"iterations": 150, "meta_batch": 3}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=3", "-m", "metaopt", "train", "sinusoid", *flags, f"--out={out}"]
    command += ["--checkpoint-every=10", "--no-pictures", "--eval-tasks=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    log = (tmp_path / "log").open("w")
    agent = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        lines = out / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (lines.exists() and lines.read_text().count("\n") > 10):
            assert agent.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(children(agent.pid)) == 2
        os.kill(children(agent.pid)[1], signal.SIGKILL)
        assert agent.wait(200) == 0, (tmp_path / "log").read_text()
    finally:
        agent.kill()
        log.close()
    said = (tmp_path / "log").read_text()
    assert said.count("mse over 2 test tasks") == 1, "one rank reports"
    assert said.count("sinusoids, new at every draw") == 2, "it was started again"
    config = train.config_for("sinusoid", **options)
    problem = train.make_problem(config)
    one = train.train(config, problem, tmp_path / "one", progress=False).run
    run = train.restore(train.load(out / "checkpoint.pt"), train.start(config, problem)._replace(carry=[]))
    for name, value in one.learned.params.items():
        torch.testing.assert_close(run.learned.params[name], value, rtol=1e-12, atol=1e-12)
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()]
    assert steps == list(range(1, 151))


def test_a_refused_start_is_refused_again_by_the_next(tmp_path: Path, monkeypatch, capsys) -> None:
    """torchrun starts anew whatever fails; another launch's run must not be taken for its own."""
    flags = ["train", "sinusoid", "--no-pictures", "--eval-tasks=2", f"--out={tmp_path}"]
    flags += [f"--{k.replace('_', '-')}={v}" for k, v in rank_programs.TINY.items()]
    assert main(flags) == 0
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
        assert main(flags) == 1
        assert "expected a folder without a checkpoint" in capsys.readouterr().err
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    (tmp_path / "launch.txt").write_text("another")
    assert main(flags) == 0, "its own run goes on"
