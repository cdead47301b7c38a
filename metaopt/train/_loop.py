"""The outer loop: sample episodes, take a meta-step, log, checkpoint, go on where it stopped."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, DivergenceError
from metaopt.progress import bar
from metaopt.train import _checkpoint as checkpoint
from metaopt.train._config import Config
from metaopt.train._methods import make_method
from metaopt.train._problem import Problem
from metaopt.types import Episode

__all__ = ["Run", "start", "train"]


class Run(NamedTuple):
    """A run at a step; all that a checkpoint holds."""

    learned: Any
    outer: Any


def start(config: Config, problem: Problem) -> Run:
    """The state before the first step."""
    method = make_method(config, problem)
    return Run(method.learned, method.outer.init(method.learned))


def meta_step(config: Config, problem: Problem) -> Callable[[Run, Episode, int], tuple[Run, Any]]:
    """Return one step of the outer loop, ``(run, episodes, step) -> (run, (losses, scores))``.

    ::

        φ ← outer(φ, the method's gradient over these tasks)
    """
    method = make_method(config, problem)

    def step_fn(run: Run, episodes: Episode, step: int) -> tuple[Run, Any]:
        losses, scores, grads = method.gradient(run.learned, episodes, step)
        _check_finite(losses, tree.leaves(grads), run.learned, step)
        decay = 0.5 * (1 + math.cos(math.pi * step / config.iterations))
        decay = decay if config.schedule == "cosine" else 1.0
        rates = tree.broadcast_prefix("train(rates)", method.rates, run.learned)
        rates = tree.unflatten(tree.structure(run.learned), [decay * rate for rate in rates])
        with torch.no_grad():
            hparams = method.outer.hparams._replace(lr=rates)
            gradient = _clipped(grads, config.clip)
            learned, outer = method.outer.update(run.learned, run.outer, gradient, hparams)
        learned = tree.map(lambda x: x.requires_grad_(), learned)
        return Run(learned, outer), (losses, scores)

    return step_fn


def _clipped(gradient: Any, limit: float) -> Any:
    """g · min(1, limit / ‖g‖)."""
    if not limit:
        return gradient
    norm = tree.global_norm(gradient)
    return tree.scale(gradient, torch.where(norm > limit, limit / norm, 1.0))


def _check_finite(losses: Tensor, grads: Any, learned: Any, step: int) -> None:
    remedy = "Lower --inner-lr, --lr-lr or --meta-lr; the last checkpoint holds the step before."
    if not bool(torch.isfinite(losses).all()):
        task = int((~torch.isfinite(losses)).nonzero()[0])
        raise DivergenceError(
            f"train(step {step})", "a finite loss", str(losses[task].item()), f"task {task}", remedy
        )
    total = torch.stack([g.sum() for g in grads]).sum()
    if bool(torch.isfinite(total)):
        return
    for path, g in zip(tree.paths(learned), grads, strict=True):
        if not bool(torch.isfinite(g).all()):
            raise DivergenceError(f"train(step {step})", "a finite meta-gradient", "NaN or inf", path, remedy)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop after this step; a second one is immediate."""
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: nobody presses Ctrl-C there
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


def train(
    config: Config,
    problem: Problem,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_every: int = 200,
    progress: bool = True,
) -> tuple[Run, int]:
    """Train, leaving ``checkpoint.pt`` and ``metrics.jsonl`` in ``out``.

    Every step is a function of the state and of (seed, step) alone, so that a run that was killed and
    resumed ends in the same bytes as one that was not.

    Returns: the run and the steps it has taken, fewer than ``config.iterations`` after Ctrl-C.
    Raises: CheckpointError; DivergenceError with step, task and leaf where a number stops being finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    saved, metrics = out / "checkpoint.pt", out / "metrics.jsonl"
    run, first = start(config, problem), 0
    if resume:
        found = checkpoint.load(saved)
        run, first = checkpoint.restore(found, run), found.step
    elif saved.exists():
        raise ArgumentError(
            "train(out)",
            "a folder without a checkpoint",
            "one",
            str(saved),
            remedy="Pass --resume to go on, or another --out.",
        )
    _keep_lines(metrics, first)
    step_fn, step = meta_step(config, problem), first
    shown = _Progress(config, first, progress)
    with shown.bar, metrics.open("a") as log, _interruptible() as stop:
        if first == 0:
            checkpoint.save(saved, config, 0, run)
        for step in range(first + 1, config.iterations + 1):
            episodes = problem.train.sample(config.meta_batch, config.seed, step)
            run, (losses, scores) = step_fn(run, episodes, step - 1)
            line = {"step": step, "loss": losses.mean().item(), problem.score: scores.mean().item()}
            log.write(json.dumps(line) + "\n")
            shown.step(line)
            if step % checkpoint_every == 0 or step == config.iterations or stop():
                log.flush()
                checkpoint.save(saved, config, step, run)
            if stop():
                break
    return run, step


class _Progress:
    """A bar with smoothed loss and score and the speed, and a line that stays every tenth of the way."""

    def __init__(self, config: Config, first: int, shown: bool) -> None:
        self.tasks = config.meta_batch
        self.bar = bar(total=config.iterations, initial=first, disable=not shown, unit="step")
        self.smooth: dict[str, float] = {}
        self.first, self.began = first, time.perf_counter()

    def step(self, line: dict[str, float]) -> None:
        n, total = int(line["step"]), self.bar.total
        for k, v in line.items():
            self.smooth[k] = 0.98 * self.smooth.get(k, v) + 0.02 * v
        self.bar.update()
        if n % 20 == 0 or n == total:
            speed = (n - self.first) * self.tasks / (time.perf_counter() - self.began)
            words = {k: f"{v:.4f}" for k, v in self.smooth.items() if k not in ("step", "mse")}
            words["tasks/s"] = f"{speed:.0f}"
            self.bar.set_postfix(words, refresh=False)
            if not self.bar.disable and n % max(total // 200 * 20, 20) == 0:
                self.bar.write(f"step {n:>6}  " + "  ".join(f"{k} {v}" for k, v in words.items()))


def _keep_lines(metrics: Path, steps: int) -> None:
    """Drop the lines after the checkpoint: those steps are about to be taken again."""
    if metrics.exists():
        kept = metrics.read_bytes().splitlines(keepends=True)[:steps]
        checkpoint.write_atomically(metrics, b"".join(kept))
