"""The command's run: a named algorithm on a named problem, by `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaopt import tree
from metaopt.optim import schedule
from metaopt.train._config import Config
from metaopt.train._estimate import Estimate, Estimator
from metaopt.train._fit import Fitted, fit, start_run
from metaopt.train._methods import make_method
from metaopt.train._problem import Problem
from metaopt.train._run import Resume, Run, check_resumed, resumed_config

__all__ = ["start", "train"]


def start(config: Config, problem: Problem) -> Run:
    """The state before the first step."""
    method = make_method(config, problem)
    return start_run(method.learned, method.outer)


def train(
    config: Config,
    problem: Problem,
    out: Path,
    *,
    resume: Resume = False,
    checkpoint_every: int = 200,
    progress: bool = True,
    **options: Any,
) -> Fitted:
    """Train, leaving ``checkpoint.pt``, the one before it and ``metrics.jsonl`` in ``out``.

    Args: options: as in `fit`.
    Returns: Fitted; fewer steps than ``config.iterations`` after Ctrl-C.
    Raises: CheckpointError; DivergenceError with step, task and leaf where a number stops being finite.
    """
    check_resumed(resumed_config(out, resume), config, out)
    method = make_method(config, problem)

    def estimate(learned: Any, episodes: Any, step: int, carry: Any) -> Estimate:
        losses, scores, grads = method.gradient(learned, episodes, step)
        return Estimate(losses, grads, {problem.score: scores}, carry)

    rates = tree.broadcast_prefix("train(rates)", method.rates, method.learned)
    return fit(
        Estimator(estimate),
        method.learned,
        problem.train,
        method.outer,
        num_steps=config.iterations,
        meta_batch=config.meta_batch,
        seed=config.seed,
        hparams=method.outer.hparams._replace(lr=tree.unflatten(tree.structure(method.learned), rates)),
        schedule=schedule.cosine(1.0, config.iterations) if config.schedule == "cosine" else None,
        clip=config.clip,
        out=out,
        resume=resume,
        checkpoint_every=checkpoint_every,
        about=config,
        progress=progress,
        **options,
    )
