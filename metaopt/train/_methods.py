"""The table of named algorithms: ``train --algorithm NAME``."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.errors import ArgumentError
from metaopt.train import _methods_direct, _methods_maml, _methods_metric, _methods_modules
from metaopt.train._config import Config
from metaopt.train._method import Method
from metaopt.train._problem import Problem

__all__ = ["METHODS", "make_method"]

METHODS: dict[str, Callable[[Config, Problem], Method]] = {
    "maml": _methods_maml.maml,
    "fomaml": _methods_maml.maml,
    "meta_sgd": _methods_maml.maml,
    "anil": _methods_maml.anil,
    "boil": _methods_maml.boil,
    "meta_curvature": _methods_maml.meta_curvature,
    "maml_plus_plus": _methods_maml.maml_plus_plus,
    "cavia": _methods_modules.cavia,
    "warpgrad": _methods_modules.warpgrad,
    "reptile": _methods_direct.reptile,
    "imaml": _methods_direct.imaml,
    "protonet": _methods_metric.protonet,
    "r2d2": _methods_metric.r2d2,
    "metaoptnet": _methods_metric.metaoptnet,
}


_ANY_WAY = ("protonet", "r2d2", "metaoptnet")  # their heads are made of the support set


def make_method(config: Config, problem: Problem) -> Method:
    """Build the algorithm that a configuration names.

    Raises: ArgumentError if it does not fit the problem, or the number of classes that it is trained on.
    """
    if config.train_way not in (0, config.way) and config.algorithm not in _ANY_WAY:
        expected = f"0 or {config.way}, the classes of the network's last layer,"
        raise ArgumentError("train(train_way)", expected, str(config.train_way))
    return METHODS[config.algorithm](config, problem)
