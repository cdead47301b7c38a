"""An optimizer's continuous hyperparameters as tensors to be learned, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError
from metaopt.optim._torch import TUPLES, settings_of
from metaopt.stateful._groups import factory_of

__all__ = ["apply_trainable_opt_params", "get_trainable_opt_params"]


def get_trainable_opt_params(opt: torch.optim.Optimizer, device: Any = None) -> dict[str, list[Any]]:
    """The hyperparameters that can be learned, each a tensor that requires a gradient: an ``override``.

    Flags are left out, and what the rule cannot take as a tensor (dampening beside nesterov).

    Args: opt: a live optimizer.
          device: where the tensors live.
    Returns: ``{key: [one value a group]}``; betas and their like are tuples of tensors.

    >>> p = torch.nn.Parameter(torch.ones(1))
    >>> override = get_trainable_opt_params(torch.optim.SGD([p], lr=0.5))
    >>> sorted(override), override["lr"]
    (['dampening', 'lr', 'momentum', 'weight_decay'], [tensor(0.5000, requires_grad=True)])
    """
    _check("get_trainable_opt_params(opt)", opt)
    factory = factory_of(type(opt))
    found: dict[str, list[Any]] = {}
    for group in opt.param_groups:
        kept = {k: v for k, v in group.items() if k != "params" and _continuous(v)}
        for key, value in kept.items():
            learned = _map(lambda x: _tensor(x, device), value)
            if factory is None or _takes(factory, group, key, learned):
                found.setdefault(key, []).append(learned)
    return {k: v for k, v in found.items() if len(v) == len(opt.param_groups)}


def apply_trainable_opt_params(opt: torch.optim.Optimizer, override: Mapping[str, Any]) -> None:
    """Write learned hyperparameters into the live optimizer, in the types that it holds them in.

    Raises: ArgumentError for a key that it does not have, or another number of values.
    """
    _check("apply_trainable_opt_params(opt)", opt)
    for key, values in override.items():
        if not isinstance(values, (list, tuple)):
            got = type(values).__name__
            raise ArgumentError(
                "apply_trainable_opt_params(override)", "a list, one value a group", got, repr(key)
            )
        if len(values) not in (1, len(opt.param_groups)):
            expected = f"1 value, or one for each of {len(opt.param_groups)} groups"
            raise ArgumentError("apply_trainable_opt_params(override)", expected, str(len(values)), repr(key))
        for i, group in enumerate(opt.param_groups):
            if key not in group:
                expected = f"one of {sorted(k for k in group if k != 'params')}"
                raise ArgumentError("apply_trainable_opt_params(override)", expected, repr(key))
            group[key] = _like(values[0] if len(values) == 1 else values[i], group[key])


def _check(where: str, opt: object) -> None:
    if not isinstance(opt, torch.optim.Optimizer):
        raise ArgumentError(where, "a live torch.optim.Optimizer", type(opt).__name__)


def _continuous(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(_continuous(x) for x in value)
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tensor(value: Any, device: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone().to(device or value.device).requires_grad_()
    return torch.tensor(float(value), device=device, requires_grad=True)


def _takes(factory: Any, group: Mapping[str, Any], key: str, value: Any) -> bool:
    """Tell whether the rule has such a hyperparameter, and takes a tensor for it."""
    names = settings_of(factory)
    try:
        opt = factory(**{k: v for k, v in group.items() if k in names} | {key: value})
    except (ArgumentError, TypeError):
        return False
    fields = TUPLES.get(key, (key,))
    return all(f in opt.hparams._fields for f in fields) or key in opt.hparams._fields


def _map(fn: Any, value: Any) -> Any:
    return type(value)(_map(fn, x) for x in value) if isinstance(value, (tuple, list)) else fn(value)


def _like(new: Any, old: Any) -> Any:
    """The number or tensor ``new`` in the type of ``old``."""
    if isinstance(old, (tuple, list)):
        return type(old)(_like(n, o) for n, o in zip(new, old, strict=True))
    if isinstance(old, Tensor):
        with torch.no_grad():
            return old.copy_(torch.as_tensor(new))
    return type(old)(new.item() if isinstance(new, Tensor) else new)
