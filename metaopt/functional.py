"""nn.Module to pure function: what torch's functional_call needs repaired is repaired here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from metaopt.errors import ArgumentError, StructureError, VmapError
from metaopt.exact import exact, mapped

__all__ = ["Apply", "functional"]

Tensors = dict[str, Tensor]
BatchNormMode = Literal["transductive", "frozen"]
_PARALLEL = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")


class Apply:
    """The pure form of a module: ``apply(params, *args) -> output``.

    ``apply(params, buffers, *args)`` takes the buffers too, where they are batched or have moved on.
    Neither call writes to the module, to params or to buffers.
    """

    def __init__(self, module: nn.Module, names: dict[str, str], params: Tensors, buffers: Tensors):
        self.module = module
        self.names = names  # slot of the module -> key in params or buffers; tied slots share one
        self.params = frozenset(params)
        self.buffers = buffers
        self.tracking = [
            path or "the module itself"
            for path, layer in module.named_modules()
            if isinstance(layer, _NormBase) and layer.training and layer.running_mean is not None
        ]

    def __call__(self, params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        buffers: Mapping[str, Tensor] = self.buffers
        if args and isinstance(args[0], Mapping) and args[0].keys() == buffers.keys():
            buffers, *args = args  # type: ignore[assignment]
        if params.keys() != self.params:
            odd = sorted(params.keys() ^ self.params)[0]
            got = f"{'one more' if odd in params else 'none'} at {odd!r}"
            raise StructureError(
                "apply(params)",
                f"the {len(self.params)} parameters that metaopt.functional returned",
                got,
            )
        if self.tracking:
            if mapped():
                raise VmapError(
                    "apply(module)",
                    "batch statistics or frozen ones under vmap",
                    "training BatchNorm with running statistics, which every task would write to,",
                    at=self.tracking[0],
                    remedy="Pass metaopt.functional(module, batch_norm='transductive') or "
                    "'frozen', or map_tasks(how='loop').",
                )
            buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        values = {slot: (params if key in self.params else buffers)[key] for slot, key in self.names.items()}
        with exact():
            # tie_weights=False: torch's own tying turns a module that is registered twice into one
            # with plain tensors for parameters (pytorch/pytorch#164759). Ties are in `names`.
            return torch.func.functional_call(self.module, values, tuple(args), kwargs, tie_weights=False)

    def __repr__(self) -> str:
        name = type(self.module).__name__
        return f"Apply({name}, {len(self.params)} params, {len(self.buffers)} buffers)"


def _skeleton(module: nn.Module) -> nn.Module:
    """A copy of the module that shares its tensors: swapping them there leaves the original alone."""
    memo: dict[int, Any] = {}
    for layer in module.modules():
        for value in (*layer._parameters.values(), *layer._buffers.values(), *vars(layer).values()):
            if isinstance(value, Tensor):
                memo[id(value)] = value
    return copy.deepcopy(module, memo)


def _slots(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every (module, attribute) slot that holds a tensor, once, and the name its tensor goes by."""
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    first: dict[int, str] = {}
    for path, layer in module.named_modules():  # a module registered twice comes once
        for table in (layer._parameters, layer._buffers):
            for attribute, tensor in table.items():
                if tensor is None:
                    continue
                slot = f"{path}.{attribute}" if path else attribute
                names[slot] = first.setdefault(id(tensor), slot)
                tensors.setdefault(names[slot], tensor)
    return tensors, names


def functional(
    module: nn.Module, *, batch_norm: BatchNormMode | None = None
) -> tuple[Apply, Tensors, Tensors]:
    """Return ``(apply, params, buffers)``: the module as a pure function and its tensors.

    ``params`` are the module's own trainable Parameters, each once however often it is tied or
    shared, so that an outer optimizer that trains them trains the module. ``buffers`` are the rest:
    buffers and frozen parameters. The function is a snapshot: train/eval mode and hooks are as they
    were when it was made.

    Args: module: any nn.Module; one that torch.compile returned is unwrapped.
          batch_norm: "transductive", statistics of the batch at hand, none kept (MAML's own);
              "frozen", the running statistics as they are; None, the module's own setting.
    Returns: apply: ``apply(params, *args, **kwargs)`` or ``apply(params, buffers, *args, **kwargs)``.
             params, buffers: dicts by name, in the module's order.
    Raises: ArgumentError for a module wrapped for data parallelism, whose gradients would not be
            synchronised. VmapError from apply under vmap if batch norm tracks statistics.
    Source: torch.func.functional_call.

    >>> apply, params, buffers = functional(nn.Linear(2, 1))
    >>> apply(params, torch.ones(3, 2)).shape, list(params)
    (torch.Size([3, 1]), ['weight', 'bias'])
    """
    if not isinstance(module, nn.Module):
        raise ArgumentError("functional(module)", "an nn.Module", type(module).__name__)
    module = getattr(module, "_orig_mod", module)
    if type(module).__name__ in _PARALLEL:
        raise ArgumentError(
            "functional(module)",
            "a bare module",
            type(module).__name__,
            remedy="Pass its .module: a functional call does not synchronise gradients, silently.",
        )
    if batch_norm not in (None, "transductive", "frozen"):
        raise ArgumentError("functional(batch_norm)", "'transductive', 'frozen' or None", repr(batch_norm))
    module = _skeleton(module)
    for layer in module.modules():
        if isinstance(layer, _NormBase) and batch_norm == "transductive":
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
        elif isinstance(layer, _NormBase) and batch_norm == "frozen":
            layer.eval()
    tensors, names = _slots(module)
    params: Tensors = {k: v for k, v in tensors.items() if isinstance(v, nn.Parameter) and v.requires_grad}
    buffers = {k: v for k, v in tensors.items() if k not in params}
    return Apply(module, names, params, buffers), params, buffers
