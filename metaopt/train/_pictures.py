"""The pictures a run leaves in its folder: the curve, and tasks before and after adaptation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt import plot, tree
from metaopt.train._config import Config
from metaopt.train._evaluate import TEST_SEED
from metaopt.train._methods import make_method
from metaopt.train._problem import Problem

__all__ = ["save_pictures"]


def save_pictures(config: Config, problem: Problem, learned: Any, out: Path) -> list[Path]:
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


def _sinusoids(config: Config, problem: Problem, learned: Any) -> Any:
    episodes = problem.test.sample(3, TEST_SEED, 0)
    method, steps = make_method(config, problem), sorted({0, 1, config.test_steps or config.inner_steps})
    x = torch.linspace(-5, 5, 200, dtype=getattr(torch, config.dtype), device=config.device)
    rows, truth = [], []
    for episode in tree.unstack(episodes):
        trail = method.adapt(learned, episode.support, max(steps))
        with torch.no_grad():
            rows.append(torch.stack([method.predict(trail[k], x[:, None])[:, 0] for k in steps]))
        support_x, support_y = episode.support
        truth.append(_wave(x) @ torch.linalg.lstsq(_wave(support_x[:, 0]), support_y).solution)
    drawn = (x, torch.stack(truth)[..., 0], episodes.support, torch.stack(rows, 1))
    x, truths, support, predictions = tree.map(lambda v: v.cpu(), drawn)
    return plot.adapted_sinusoids(x, truths, support, predictions, steps)


def _wave(x: Tensor) -> Tensor:
    """a sin(x − φ) is linear in these two columns, so that the support set tells the whole wave."""
    return torch.stack([x.sin(), x.cos()], -1)


def _images(config: Config, problem: Problem, learned: Any) -> Any:
    episode = tree.index(problem.test.sample(1, TEST_SEED, 0), 0)
    method = make_method(config, problem)
    trail = method.adapt(learned, episode.support, config.test_steps or config.inner_steps)
    with torch.no_grad():
        before, after = (method.predict(f, episode.query[0]).argmax(-1) for f in (trail[0], trail[-1]))
    support, query = tree.map(lambda v: v.cpu(), tuple(episode))
    return plot.adapted_images(support, query, before.cpu(), after.cpu(), config.way)
