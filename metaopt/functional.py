"""nn.Module to pure function: what torch's functional_call needs repaired is repaired here."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from metaopt.errors import ArgumentError, StructureError, VmapError
from metaopt.exact import Statistics, exact, mapped

__all__ = ["Apply", "functional"]

Tensors = dict[str, Tensor]
BatchNormMode = Literal["transductive", "frozen", "per_step"]
_PARALLEL = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")
_STEP = "metaopt_step"  # the buffer that counts calls where statistics are kept per step
_copies = threading.local()
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Apply:
    """The pure form of a module: ``apply(params, *args) -> output``.

    ``apply(params, buffers, *args)`` takes the buffers too, where they are batched or have moved on;
    ``apply.with_buffers(params, buffers, *args) -> (output, buffers)`` hands back what they became.
    None of them writes to the module, to params or to buffers.
    """

    def __init__(self, module: nn.Module, names: dict[str, str], params: Tensors, buffers: Tensors):
        self.module = module
        self.names = names  # slot of the module -> key in params or buffers; tied slots share one
        self.params = frozenset(params)
        self.buffers = buffers
        layers = dict(module.named_modules())
        self.tracking = [
            path or "the module itself"
            for path, layer in layers.items()
            if isinstance(layer, _NormBase) and layer.training and layer.running_mean is not None
        ]
        # what a training layer may write to in place, and what each step keeps its own copy of
        self.written, self.stacked = set(), set()
        for slot, key in names.items():
            path, _, attribute = slot.rpartition(".")
            layer = layers[path]
            if layer.training and attribute in layer._buffers:
                self.written.add(key)
            if _STEP in buffers and isinstance(layer, _NormBase) and attribute in _STATISTICS:
                self.stacked.add(key)

    def __call__(self, params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        buffers: Mapping[str, Tensor] = self.buffers
        if args and isinstance(args[0], Mapping) and args[0].keys() == buffers.keys():
            buffers, *args = args  # type: ignore[assignment]
        if self.tracking and torch.compiler.is_compiling():
            # which cannot tell whether it stands in a map: what is thrown away is not written either
            with Statistics() as statistics:
                return self._run(params, buffers, args, kwargs, statistics)[0]
        if self.tracking and mapped():
            raise VmapError(
                "apply(module)",
                "batch statistics or frozen ones under vmap",
                "training BatchNorm with running statistics, which every task would write to,",
                at=self.tracking[0],
                remedy="Pass metaopt.functional(module, batch_norm='transductive') or 'frozen', keep "
                "them per task by apply.with_buffers, or map_tasks(how='loop').",
            )
        return self._run(params, buffers, args, kwargs, None)[0]

    def with_buffers(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> tuple[Any, Tensors]:
        """Return ``(output, buffers)``: running statistics and whatever else the module keeps, moved on.

        Under ``vmap`` every task moves its own. Running statistics are differentiable. The buffers are
        the dict that `functional` returned, or one that this function did.

        >>> apply, params, buffers = functional(nn.BatchNorm1d(2))
        >>> _, buffers = apply.with_buffers(params, buffers, torch.ones(4, 2))
        >>> buffers["running_mean"]
        tensor([0.1000, 0.1000])
        """
        if buffers.keys() != self.buffers.keys():
            odd = sorted(buffers.keys() ^ self.buffers.keys())[0]
            raise StructureError(
                "apply.with_buffers(buffers)",
                f"the {len(self.buffers)} buffers that metaopt.functional returned",
                f"{'one more' if odd in buffers else 'none'} at {odd!r}",
            )
        full = dict(buffers)
        if _STEP in full:
            rows = len(full[next(iter(self.stacked))]) if self.stacked else 1
            row = torch.arange(rows, device=full[_STEP].device) == full[_STEP].clamp(max=rows - 1)
            for key in self.stacked:
                column = row.view(-1, *(1,) * (full[key].ndim - 1))
                full[key] = (full[key] * column).sum(0, dtype=full[key].dtype)
        with Statistics() as statistics:
            output, moved = self._run(params, full, args, kwargs, statistics)
        if _STEP in full:
            for key in self.stacked:
                column = row.view(-1, *(1,) * (buffers[key].ndim - 1))
                moved[key] = torch.where(column, moved[key], buffers[key])
            moved[_STEP] = buffers[_STEP] + 1
        return output, moved

    def _own(self) -> nn.Module:
        """This thread's copy: functional_call puts tensors into the module for the time of the call."""
        if torch.compiler.is_compiling():
            return self.module
        copies = _copies.__dict__.setdefault("of", WeakKeyDictionary())
        if self not in copies:
            copies[self] = _skeleton(self.module)
        return copies[self]

    def eval(self) -> Apply:
        """The same function with every layer in eval mode: running statistics are used, none is kept."""
        module = _skeleton(self.module).eval()
        params = dict.fromkeys(self.params, torch.empty(0))
        return Apply(module, self.names, params, self.buffers)

    def _run(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        args: Any,
        kwargs: Any,
        statistics: Statistics | None,
    ) -> tuple[Any, Tensors]:
        if params.keys() != self.params:
            odd = sorted(params.keys() ^ self.params)[0]
            raise StructureError(
                "apply(params)",
                f"the {len(self.params)} parameters that metaopt.functional returned",
                f"{'one more' if odd in params else 'none'} at {odd!r}",
            )
        given = {k: b.clone() if k in self.written else b for k, b in buffers.items()}
        values = {slot: (params if key in self.params else given)[key] for slot, key in self.names.items()}
        with exact():
            # tie_weights=False: torch's own tying turns a module that is registered twice into one
            # with plain tensors for parameters (pytorch/pytorch#164759). Ties are in `names`.
            # functional_call leaves in `values` what the module has put into its slots.
            output = torch.func.functional_call(self._own(), values, tuple(args), kwargs, tie_weights=False)
        for slot, key in self.names.items():
            if key in self.written and statistics is not None:
                given[key] = statistics.new(values[slot])
        return output, given

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


def _statistics_of(module: nn.Module) -> list[str]:
    """The slots that hold running statistics."""
    return [
        f"{path}.{attribute}" if path else attribute
        for path, layer in module.named_modules()
        if isinstance(layer, _NormBase)
        for attribute in _STATISTICS
        if layer._buffers.get(attribute) is not None
    ]


def functional(
    module: nn.Module, *, batch_norm: BatchNormMode | None = None, num_steps: int | None = None
) -> tuple[Apply, Tensors, Tensors]:
    """Return ``(apply, params, buffers)``: the module as a pure function and its tensors.

    ``params`` are the module's own trainable Parameters, each once however often it is tied or
    shared, so that an outer optimizer that trains them trains the module. ``buffers`` are the rest:
    buffers and frozen parameters. The function is a snapshot: train/eval mode and hooks are as they
    were when it was made.

    Args: module: any nn.Module; one that torch.compile returned is unwrapped.
          batch_norm: "transductive", statistics of the batch at hand, none kept (MAML's own);
              "frozen", the running statistics as they are; "per_step", one set of running statistics
              for each inner step and one for the query (MAML++), by ``apply.with_buffers``; None, the
              module's own setting, whose running statistics ``apply.with_buffers`` hands back.
          num_steps: inner steps, for "per_step".
    Returns: apply: ``apply(params, *args, **kwargs)`` or ``apply(params, buffers, *args, **kwargs)``.
             params, buffers: dicts by name, in the module's order.
    Raises: ArgumentError for a module wrapped for data parallelism, whose gradients would not be
            synchronised. VmapError from apply under vmap if batch norm tracks statistics.
    Source: torch.func.functional_call; Antoniou et al. 2019, arXiv:1810.09502, for "per_step".

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
    if batch_norm not in (None, "transductive", "frozen", "per_step"):
        expected = "'transductive', 'frozen', 'per_step' or None"
        raise ArgumentError("functional(batch_norm)", expected, repr(batch_norm))
    if (batch_norm == "per_step") != (num_steps is not None) or (num_steps is not None and num_steps < 0):
        expected = "a number of inner steps with batch_norm='per_step', and None without"
        raise ArgumentError("functional(num_steps)", expected, repr(num_steps))
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
    if num_steps is not None:
        for slot in _statistics_of(module):
            buffers[names[slot]] = torch.stack([buffers[names[slot]]] * (num_steps + 1))
        buffers[_STEP] = torch.zeros((), dtype=torch.int64)
    return Apply(module, names, params, buffers), params, buffers
