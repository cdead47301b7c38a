"""Before and after each adaptation step, over many test tasks, with an interval."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.batch import map_tasks
from metaopt.progress import progress
from metaopt.step import inner_step
from metaopt.train._config import Config
from metaopt.train._loop import Learned, as_meta, inner_optimizer
from metaopt.train._problem import Problem

__all__ = ["TEST_SEED", "Evaluation", "adapt", "evaluate"]

TEST_SEED = 2**31 - 1  # no training run draws from it unless asked to


class Evaluation(NamedTuple):
    """``mean`` and ``half_width`` [num_steps + 1]: the score after 0, 1, ... steps, ± 95 %."""

    mean: Tensor
    half_width: Tensor
    num_tasks: int
    score: str

    def __repr__(self) -> str:
        percent = self.score == "accuracy"
        rows = [f"steps  {self.score} over {self.num_tasks} test tasks, 95 % interval"]
        for k, (m, h) in enumerate(zip(self.mean.tolist(), self.half_width.tolist(), strict=True)):
            shown = f"{100 * m:.2f} ± {100 * h:.2f} %" if percent else f"{m:.4f} ± {h:.4f}"
            rows.append(f"{k:>5}  {shown}")
        return "\n".join(rows)


def adapt(config: Config, problem: Problem, learned: Learned, support: Any, num_steps: int) -> list[Any]:
    """Return the fast weights after 0, 1, ..., num_steps steps on one task's support set.

    Where step sizes are learned per step, the last one serves for the steps beyond.
    """
    opt, meta = inner_optimizer(config), as_meta(config, learned)
    params, state = meta.params, opt.init(meta.params)
    trail = [params]
    for k in range(num_steps):
        hparams = meta.hparams
        if config.learn_lr == "step":
            row = min(k, config.inner_steps - 1)
            hparams = hparams._replace(lr=tree.index(hparams.lr, row))
        params, state, _ = inner_step(
            problem.loss_fn, opt, params, state, support, hparams, meta.phi, order=1
        )
        trail.append(params)
    return trail


def evaluate(
    config: Config,
    problem: Problem,
    learned: Learned,
    *,
    num_tasks: int = 600,
    num_steps: int | None = None,
    seed: int = TEST_SEED,
) -> Evaluation:
    """Score the learned initialisation on test tasks, before and after each adaptation step.

    The interval is the normal one over tasks, ±1.96 s/√n. Tasks never depend on the training seed.
    """
    num_steps = config.inner_steps if num_steps is None else num_steps

    def one(learned: Learned, episode: Any) -> Tensor:
        trail = adapt(config, problem, learned, episode.support, num_steps)
        return torch.stack([problem.judge_fn(params, episode.query)[1] for params in trail])

    how: Any = config.how
    scores = []
    for first in progress(range(0, num_tasks, 100), "evaluate"):
        count = min(100, num_tasks - first)
        episodes = problem.test.sample(count, seed, first)
        with torch.no_grad():
            scores.append(map_tasks(one, how=how)(tree.detach(learned), episodes))
    all_scores = torch.cat(scores).double()
    half = 1.96 * all_scores.std(0) / math.sqrt(num_tasks)
    return Evaluation(all_scores.mean(0), half, num_tasks, problem.score)
