"""What there is to choose from: algorithms, estimators, optimizers, each with a line on what it is."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

from metaopt import algorithms, hypergrad, optim

__all__ = ["catalogue"]


def catalogue() -> dict[str, dict[str, str]]:
    """The public algorithms, hypergradient estimators and optimizers, with the first line of their docs.

    An algorithm is a function with a file of its name, an estimator returns a Hypergrad, and an optimizer
    an Optimizer: a new one is listed as soon as it is exported.

    >>> catalogue()["algorithms"]["fomaml"]
    'First-order MAML: inner gradients are constants, ``(meta_params, episode) -> query loss []``.'
    """
    return {
        "algorithms": _where(algorithms, lambda fn: fn.__module__.endswith(f"._{fn.__name__}")),
        "estimators": _where(hypergrad, lambda fn: _returns(fn) == "Hypergrad"),
        "optimizers": _where(optim, lambda fn: _returns(fn) in ("Optimizer", "Transform")),
    }


def _returns(fn: Any) -> str:
    return str(inspect.signature(fn).return_annotation)


def _where(room: ModuleType, chosen: Any) -> dict[str, str]:
    public = {name: getattr(room, name) for name in room.__all__}
    found = {name: fn for name, fn in public.items() if inspect.isfunction(fn) and chosen(fn)}
    return {name: (inspect.getdoc(fn) or "").partition("\n")[0] for name, fn in sorted(found.items())}
