"""The table of named algorithms: ``train --algorithm NAME``."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.train import _methods_maml
from metaopt.train._config import Config
from metaopt.train._method import Method
from metaopt.train._problem import Problem

__all__ = ["METHODS", "make_method"]

METHODS: dict[str, Callable[[Config, Problem], Method]] = {
    "maml": _methods_maml.maml,
    "fomaml": _methods_maml.maml,
}


def make_method(config: Config, problem: Problem) -> Method:
    """Build the algorithm that a configuration names.

    Raises: ArgumentError if it does not fit the problem.
    """
    return METHODS[config.algorithm](config, problem)
