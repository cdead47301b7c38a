"""From a module to its fmodel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.errors import ArgumentError
from metaopt.functional import functional
from metaopt.slots import Slot
from metaopt.stateful._fast import FastModule, as_fast
from metaopt.stateful._weights import Weights

__all__ = ["flatten", "get_func_params", "make_functional", "monkeypatch"]

Device = torch.device | str | None


def monkeypatch(
    module: nn.Module,
    device: Device = None,
    copy_initial_weights: bool = True,
    track_higher_grads: bool = True,
    *,
    history: int | None = None,
) -> Any:
    """Return an fmodel: the module with fast weights P[0], P[1], … that are connected.

    Args: module: any nn.Module; one that torch.compile returned is unwrapped.
          device: where the fast weights and buffers live; the module's own where None.
          copy_initial_weights: True, P[0] are detached copies that require a gradient as the originals
              do; False, gradients reach the module's own parameters.
          track_higher_grads: False keeps the latest parameters alone.
          history: how many of the latest parameters are kept besides P[0]; None keeps all.
    Returns: a `FastModule`, of the module's class. The module is never written to.
    Raises: ArgumentError for a module that is an fmodel already, or wrapped for data parallelism.
    Cost: one copy of the parameters and buffers.

    >>> fmodel = monkeypatch(nn.Linear(1, 1, bias=False))
    >>> fmodel.weight = 3 * fmodel.weight
    >>> torch.autograd.grad(fmodel(torch.ones(1, 1)).sum(), fmodel.parameters(time=0))
    (tensor([[3.]]),)
    """
    fmodel, own = _stateless(module, track_higher_grads, history)
    fmodel._weights.put([_copy(b, device, True) for b in fmodel._weights.held()])
    fmodel._weights.restart([_copy(p, device, copy_initial_weights) for p in own])
    return fmodel


def make_functional(module: nn.Module) -> Any:
    """Return a stateless model: it takes its parameters with each call, ``fmodel(x, params=[...])``.

    >>> layer = nn.Linear(2, 1)
    >>> make_functional(layer)(torch.ones(3, 2), params=layer.parameters()).shape
    torch.Size([3, 1])
    """
    fmodel, _ = _stateless(module, True, 1)
    fmodel._weights.put([_copy(b, None, True) for b in fmodel._weights.held()])
    return fmodel


def get_func_params(module: nn.Module, device: Device = None) -> list[Tensor]:
    """Detached copies of the parameters, each requiring a gradient as its original does."""
    return [_copy(p, device, True) for p in module.parameters()]


def flatten(x: Any) -> list[Any]:
    """The entries of nested lists, tuples, sets and dicts, in their order: of an ``override``, say.

    >>> flatten({"betas": [(0.9, 0.99)], "lr": [0.1]})
    [0.9, 0.99, 0.1]
    """
    if isinstance(x, Mapping):
        x = list(x.values())
    return [z for y in x for z in flatten(y)] if isinstance(x, (list, tuple, set)) else [x]


def _copy(p: Tensor, device: Device, detached: bool) -> Tensor:
    q = p.detach() if detached else p
    q = q.clone() if device is None else q.to(device, copy=True)
    return q.requires_grad_(p.requires_grad) if detached else q


def _stateless(module: nn.Module, tracking: bool, history: int | None) -> tuple[Any, list[Tensor]]:
    """A copy of the module's structure with the slots of its tensors written down, and its parameters."""
    if isinstance(module, FastModule):
        remedy = "Use fmodel.clone() to branch off."
        raise ArgumentError("monkeypatch(module)", "a module", "an fmodel", remedy=remedy)
    apply, _, _ = functional(module)
    skeleton, names = apply.module, apply.names  # names: every slot, and the first slot of its tensor
    layers = dict(skeleton.named_modules())
    tables: dict[bool, dict[str, int]] = {True: {}, False: {}}
    slots: dict[bool, list[Slot]] = {True: [], False: []}
    own: list[Tensor] = []
    for slot, key in names.items():
        path, _, attribute = slot.rpartition(".")
        layer = layers[path]
        trained = attribute in layer._parameters
        table = layer._parameters if trained else layer._buffers
        index = tables[trained].setdefault(key, len(tables[trained]))
        if trained and slot == key:
            own.append(table[attribute])
        slots[trained].append((table, attribute, index))
    weights = Weights(list(tables[True]), slots[True], slots[False], tracking, history)
    return as_fast(skeleton, weights), own
