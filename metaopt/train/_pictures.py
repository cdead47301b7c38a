"""The pictures a run leaves in its folder: the curve, and tasks before and after adaptation."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from metaopt import plot, tree
from metaopt.train._config import Config
from metaopt.train._evaluate import TEST_SEED, adapt
from metaopt.train._loop import Learned
from metaopt.train._problem import Problem

__all__ = ["save_pictures"]


def save_pictures(config: Config, problem: Problem, learned: Learned, out: Path) -> list[Path]:
    """Write ``curve.png`` and ``tasks.png`` and return their paths.

    Raises: MissingExtraError if matplotlib is not installed.
    """
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    figures = {"curve.png": plot.learning_curve(lines, problem.score)}
    draw = _sinusoids if config.problem == "sinusoid" else _images
    figures["tasks.png"] = draw(config, problem, tree.detach(learned))
    for name, figure in figures.items():
        figure.savefig(out / name)
    return [out / name for name in figures]


def _sinusoids(config: Config, problem: Problem, learned: Learned) -> plot.Any:
    episodes = problem.test.sample(3, TEST_SEED, 0)
    steps = sorted({0, 1, config.inner_steps})
    x = torch.linspace(-5, 5, 200, dtype=getattr(torch, config.dtype), device=config.device)
    rows, truth = [], []
    for episode in tree.unstack(episodes):
        trail = adapt(config, problem, learned, episode.support, config.inner_steps)
        with torch.no_grad():
            rows.append(torch.stack([problem.apply(trail[k], x[:, None])[:, 0] for k in steps]))
        support_x, support_y = episode.support
        truth.append(_wave(x) @ torch.linalg.lstsq(_wave(support_x[:, 0]), support_y).solution)
    drawn = (x, torch.stack(truth)[..., 0], episodes.support, torch.stack(rows, 1))
    x, truths, support, predictions = tree.map(lambda v: v.cpu(), drawn)
    return plot.adapted_sinusoids(x, truths, support, predictions, steps)


def _wave(x: Tensor) -> Tensor:
    """a sin(x − φ) is linear in these two columns, so that the support set tells the whole wave."""
    return torch.stack([x.sin(), x.cos()], -1)


def _images(config: Config, problem: Problem, learned: Learned) -> plot.Any:
    episode = tree.index(problem.test.sample(1, TEST_SEED, 0), 0)
    trail = adapt(config, problem, learned, episode.support, config.inner_steps)
    with torch.no_grad():
        before, after = (problem.apply(p, episode.query[0]).argmax(-1) for p in (trail[0], trail[-1]))
    support, query = tree.map(lambda v: v.cpu(), tuple(episode))
    return plot.adapted_images(support, query, before.cpu(), after.cpu(), config.way)
