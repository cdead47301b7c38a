"""Differentiable versions of live optimizers, by `higher`'s names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError
from metaopt.optim._torch import KNOWN
from metaopt.stateful._diffopt import DifferentiableOptimizer, Override
from metaopt.stateful._hyper import apply_trainable_opt_params, get_trainable_opt_params
from metaopt.types import Optimizer

__all__ = [
    "DifferentiableOptimizer",
    "apply_trainable_opt_params",
    "create_diff_optim",
    "get_diff_optim",
    "get_trainable_opt_params",
    "register_optim",
]

_CLASSES: dict[type, type[DifferentiableOptimizer]] = {}


def _class_of(opt: Any) -> type[DifferentiableOptimizer]:
    if isinstance(opt, Optimizer):
        return DifferentiableOptimizer
    return next((_CLASSES[cls] for cls in type(opt).__mro__ if cls in _CLASSES), DifferentiableOptimizer)


def get_diff_optim(
    opt: torch.optim.Optimizer | Optimizer,
    reference_params: Iterable[Tensor],
    fmodel: Any = None,
    device: Any = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **options: Any,
) -> DifferentiableOptimizer:
    """Return the differentiable version of a live optimizer, its state carried over.

    Args: as `DifferentiableOptimizer`, ``grad_callback`` and ``order`` among the options.
    Raises: ArgumentError for a class that is not known: `register_optim` it.

    >>> p = torch.tensor([2.0], requires_grad=True)
    >>> diffopt = get_diff_optim(torch.optim.SGD([p], lr=0.25), [p])
    >>> (q,) = diffopt.step((p**2).sum(), params=[p])
    >>> torch.autograd.grad(q, p)
    (tensor([0.5000]),)
    """
    args = (reference_params, fmodel, device, override)
    return _class_of(opt)(opt, *args, track_higher_grads=track_higher_grads, **options)


def create_diff_optim(
    opt_type: type[torch.optim.Optimizer],
    opt_kwargs: Mapping[str, Any] | None = None,
    params: Iterable[Any] | None = None,
    fmodel: Any = None,
    device: Any = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **options: Any,
) -> DifferentiableOptimizer:
    """Return a differentiable optimizer without a live one.

    Args: opt_type: a class of torch.optim's, or one that was registered.
          opt_kwargs: its arguments.
          params: tensors or parameter groups, for their shapes; the fmodel's where None.
    Raises: ArgumentError if there are neither params nor an fmodel.
    """
    if params is None and (fmodel is None or fmodel.fast_params is None):
        raise ArgumentError("create_diff_optim(params)", "params or an fmodel", "neither")
    if not (isinstance(opt_type, type) and issubclass(opt_type, torch.optim.Optimizer)):
        remedy = "A live optimizer, or a metaopt.Optimizer, goes to get_diff_optim."
        got = type(opt_type).__name__
        raise ArgumentError("create_diff_optim(opt_type)", "a class of torch.optim's", got, remedy=remedy)
    entries = list(fmodel.parameters() if params is None else params)
    if not entries:
        raise ArgumentError("create_diff_optim(params)", "one parameter at least", "none")
    groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
    stood = [[torch.zeros_like(p, requires_grad=True) for p in _tensors(g["params"])] for g in groups]
    live = opt_type([{**g, "params": ps} for g, ps in zip(groups, stood, strict=True)], **(opt_kwargs or {}))
    reference = [p for ps in stood for p in ps]
    return get_diff_optim(live, reference, fmodel, device, override, track_higher_grads, **options)


def _tensors(params: Any) -> list[Tensor]:
    return [params] if isinstance(params, Tensor) else list(params)


def register_optim(opt_type: type, rule: Any) -> None:
    """Make a further class of optimizers known.

    Args: opt_type: a subclass of torch.optim.Optimizer.
          rule: a function that takes its settings by name and returns a `metaopt.Optimizer`, whose state's
              fields have torch's names; or a `DifferentiableOptimizer` subclass with ``_update``.
    Without any registration a `metaopt.Optimizer` may be given in the place of a live optimizer.
    """
    if not isinstance(opt_type, type):
        raise ArgumentError("register_optim(opt_type)", "a class of optimizers", repr(opt_type))
    if isinstance(rule, type) and issubclass(rule, DifferentiableOptimizer):
        _CLASSES[opt_type] = rule
    elif callable(rule):
        KNOWN[opt_type] = rule
    else:
        expected = "a function that returns a metaopt.Optimizer, or a DifferentiableOptimizer"
        raise ArgumentError("register_optim(rule)", expected, type(rule).__name__)


def __getattr__(name: str) -> Any:
    """``DifferentiableSGD`` and its like: one class does for all."""
    if name.startswith("Differentiable") and name[14:] in {cls.__name__ for cls in KNOWN}:
        return DifferentiableOptimizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
