"""What a training run is told: one frozen record, the same on the command line and in a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from metaopt.errors import ArgumentError

__all__ = ["DEFAULTS", "Config", "config_for"]

LearnLr = Literal["no", "leaf", "step"]


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run. The help texts are the command line's."""

    problem: str
    algorithm: str = dataclasses.field(
        default="maml", metadata={"help": "by name; metaopt list tells them"}, kw_only=True
    )
    shot: int = dataclasses.field(metadata={"help": "examples to adapt on, per class"})
    query: int = dataclasses.field(metadata={"help": "examples to be judged by, per class"})
    inner_steps: int = dataclasses.field(metadata={"help": "gradient steps of the inner loop"})
    inner_lr: float = dataclasses.field(metadata={"help": "inner step size, at first"})
    learn_lr: str = dataclasses.field(
        metadata={"help": "inner step sizes learned: no, one per leaf, or one per leaf and step"}
    )
    meta_batch: int = dataclasses.field(metadata={"help": "tasks per outer step"})
    meta_lr: float = dataclasses.field(metadata={"help": "Adam's step size for the initial parameters"})
    lr_lr: float = dataclasses.field(metadata={"help": "Adam's step size for the inner step sizes"})
    iterations: int = dataclasses.field(metadata={"help": "outer steps"})
    way: int = dataclasses.field(default=5, metadata={"help": "classes of an episode"})
    width: int = dataclasses.field(default=40, metadata={"help": "units or filters of a layer"})
    schedule: str = dataclasses.field(
        default="cosine", metadata={"help": "of the outer step sizes: cosine or constant"}
    )
    clip: float = dataclasses.field(
        default=1.0, metadata={"help": "largest norm of the meta-gradient; 0: any"}
    )
    first_order: bool = dataclasses.field(
        default=False, metadata={"help": "take inner gradients for constants (first-order MAML)"}
    )
    split: str = dataclasses.field(default="vinyals", metadata={"help": "vinyals or lake"})
    data: str = dataclasses.field(default="", metadata={"help": "folder with the Omniglot archives"})
    how: str = dataclasses.field(default="auto", metadata={"help": "auto, vmap or loop over tasks"})
    chunk_size: int = dataclasses.field(default=0, metadata={"help": "tasks in memory at a time; 0: all"})
    seed: int = dataclasses.field(default=0, metadata={"help": "of the model and of every episode"})
    device: str = dataclasses.field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, mps"})
    dtype: str = dataclasses.field(default="float32", metadata={"help": "float32 or float64"})
    threads: int = dataclasses.field(default=1, metadata={"help": "of an operation; 0: torch's own choice"})

    def __post_init__(self) -> None:
        for name, least in (("shot", 1), ("query", 1), ("inner_steps", 0), ("meta_batch", 1)):
            self._check(name, getattr(self, name) >= least, f"an integer >= {least}")
        for name, least in (("iterations", 1), ("way", 2), ("width", 1), ("chunk_size", 0), ("threads", 0)):
            self._check(name, getattr(self, name) >= least, f"an integer >= {least}")
        for name in ("inner_lr", "meta_lr", "lr_lr", "clip"):
            self._check(name, getattr(self, name) >= 0, "a number >= 0")
        for name, known in CHOICES.items():
            self._check(name, getattr(self, name) in known, " or ".join(map(repr, known)))

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ArgumentError(f"train({name})", expected, repr(getattr(self, name)))


CHOICES: dict[str, tuple[str, ...]] = {
    "problem": ("sinusoid", "omniglot"),
    "algorithm": ("maml", "fomaml"),
    "learn_lr": ("no", "leaf", "step"),
    "schedule": ("cosine", "constant"),
    "split": ("vinyals", "lake"),
    "how": ("auto", "vmap", "loop"),
    "dtype": ("float32", "float64"),
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "sinusoid": {
        "shot": 10,
        "query": 10,
        "inner_steps": 5,
        "inner_lr": 0.03,
        "learn_lr": "leaf",
        "meta_batch": 25,
        "meta_lr": 3e-3,
        "lr_lr": 5e-4,
        "iterations": 5000,
        "width": 40,
    },
    "omniglot": {
        "shot": 1,
        "query": 5,
        "inner_steps": 1,
        "inner_lr": 0.4,
        "learn_lr": "leaf",
        "meta_batch": 4,
        "meta_lr": 3e-3,
        "lr_lr": 1e-2,
        "iterations": 9000,
        "how": "vmap",  # so narrow a net maps faster than it loops: 56 ms a step against 65
        "width": 32,
    },
}


# What an algorithm does otherwise than the problem's defaults.
ALGORITHM_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "sinusoid": {"fomaml": {"first_order": True}},
    "omniglot": {"fomaml": {"first_order": True}},
}


def config_for(problem: str, algorithm: str = "maml", **given: Any) -> Config:
    """The defaults of the problem and the algorithm, with what was given in their place."""
    if problem not in DEFAULTS:
        raise ArgumentError("train(problem)", "'sinusoid' or 'omniglot'", repr(problem))
    defaults = DEFAULTS[problem] | ALGORITHM_DEFAULTS[problem].get(algorithm, {})
    return Config(problem=problem, algorithm=algorithm, **(defaults | given))
