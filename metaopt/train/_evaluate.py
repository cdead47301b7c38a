"""Before and after each adaptation step, over many test tasks, with an interval."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.batch import map_tasks
from metaopt.errors import check_at_least
from metaopt.progress import progress
from metaopt.train._config import Config
from metaopt.train._methods import make_method
from metaopt.train._problem import Problem

__all__ = ["TEST_SEED", "Evaluation", "evaluate"]

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


def evaluate(
    config: Config,
    problem: Problem,
    learned: Any,
    *,
    num_tasks: int = 600,
    num_steps: int | None = None,
    seed: int = TEST_SEED,
) -> Evaluation:
    """Score the learned initialisation on test tasks, before and after each adaptation step.

    The interval is the normal one over tasks, ±1.96 s/√n. Tasks never depend on the training seed.

    Raises: ArgumentError for fewer than two tasks, or a negative number of steps.
    """
    check_at_least("evaluate(num_tasks)", num_tasks, 2)
    if num_steps is not None:
        check_at_least("evaluate(num_steps)", num_steps, 0)
    num_steps = (config.test_steps or config.inner_steps) if num_steps is None else num_steps
    method = make_method(config, problem)

    def one(learned: Any, episode: Any) -> Tensor:
        x, y = episode.query
        trail = method.adapt(learned, episode.support, num_steps)
        return torch.stack([problem.judge(method.predict(fast, x), y)[1] for fast in trail])

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
