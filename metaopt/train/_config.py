"""What a training run is told: one frozen record, the same on the command line and in a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

from metaopt.errors import ArgumentError
from metaopt.train._defaults import ALGORITHMS, DEFAULTS

__all__ = ["CHOICES", "Config", "config_for"]


def _field(help: str, **default: Any) -> Any:
    return dataclasses.field(metadata={"help": help}, kw_only=True, **default)


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run. The help texts are the command line's."""

    problem: str
    algorithm: str = _field("by its name; `metaopt list` tells them", default="maml")
    shot: int = _field("examples to adapt on, per class")
    query: int = _field("examples to be judged by, per class")
    inner_steps: int = _field("gradient steps of the inner loop")
    inner_lr: float = _field("inner step size, at first")
    learn_lr: str = _field("inner step sizes learned: no, one a leaf, a leaf and step, or an element")
    meta_batch: int = _field("tasks per outer step")
    meta_lr: float = _field("outer step size for the initial parameters")
    lr_lr: float = _field("outer step size for the inner step sizes, and for what else is learned of them")
    iterations: int = _field("outer steps")
    way: int = _field("classes of an episode", default=5)
    train_way: int = _field("classes of a training episode; 0: as in the test", default=0)
    train_shot: int = _field("examples to adapt on while training, per class; 0: as in the test", default=0)
    test_steps: int = _field("inner steps at the test; 0: as in training", default=0)
    width: int = _field("units or filters of a layer", default=40)
    last_width: int = _field("filters of the last block of an image net; 0: as the others", default=0)
    context: int = _field("context parameters (cavia)", default=5)
    strength: float = _field("of the pull towards the initial parameters (imaml)", default=2.0)
    damping: float = _field("of the linear system, added to the strength (imaml)", default=0.0)
    cg_steps: int = _field("conjugate gradient steps (imaml)", default=5)
    schedule: str = _field("of the outer step sizes: cosine or constant", default="cosine")
    clip: float = _field("largest norm of the meta-gradient; 0: any", default=1.0)
    first_order: bool = _field("take inner gradients for constants (first-order MAML)", default=False)
    split: str = _field("vinyals or lake", default="vinyals")
    data: str = _field("folder with the Omniglot archives", default="")
    how: str = _field("auto, vmap or loop over tasks", default="auto")
    chunk_size: int = _field("tasks in memory at a time; 0: all", default=0)
    seed: int = _field("of the model and of every episode", default=0)
    device: str = _field("cpu, cuda, cuda:1, mps", default="cpu")
    dtype: str = _field("float32 or float64", default="float32")
    threads: int = _field("of an operation; 0: torch's own choice", default=1)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            holds = isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
            self._check(field.name, holds, f"a value of type {kind}")
        for name, least in LEAST.items():
            self._check(name, getattr(self, name) >= least, f"an integer >= {least}")
        for name in ("inner_lr", "meta_lr", "lr_lr", "clip", "strength", "damping"):
            self._check(name, getattr(self, name) >= 0, "a number >= 0")
        for name, known in CHOICES.items():
            self._check(name, getattr(self, name) in known, " or ".join(map(repr, known)))

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ArgumentError(f"train({name})", expected, repr(getattr(self, name)))


_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool}

LEAST = {
    "shot": 1,
    "query": 1,
    "inner_steps": 0,
    "meta_batch": 1,
    "iterations": 1,
    "way": 2,
    "train_way": 0,
    "train_shot": 0,
    "test_steps": 0,
    "width": 1,
    "last_width": 0,
    "context": 1,
    "cg_steps": 1,
    "chunk_size": 0,
    "threads": 0,
}

CHOICES: dict[str, tuple[str, ...]] = {
    "problem": ("sinusoid", "omniglot"),
    "algorithm": tuple(ALGORITHMS),
    "learn_lr": ("no", "leaf", "step", "element"),
    "schedule": ("cosine", "constant"),
    "split": ("vinyals", "lake"),
    "how": ("auto", "vmap", "loop"),
    "dtype": ("float32", "float64"),
}


def config_for(problem: str, algorithm: str = "maml", **given: Any) -> Config:
    """The defaults of the problem and of the algorithm, with what was given in their place."""
    if problem not in DEFAULTS:
        raise ArgumentError("train(problem)", "'sinusoid' or 'omniglot'", repr(problem))
    own = ALGORITHMS.get(algorithm, {}).get(problem, {})
    return Config(problem, algorithm=algorithm, **(DEFAULTS[problem] | own | given))
