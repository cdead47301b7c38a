"""nn.Module to pure function: what torch's functional_call needs repaired is repaired here."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from metaopt.errors import ArgumentError, StructureError, VmapError
from metaopt.exact import Statistics, batched, exact, mapped
from metaopt.skeleton import skeleton
from metaopt.slots import Slot, lent, slots_of, tables_of

__all__ = ["Apply", "functional"]

Tensors = dict[str, Tensor]
BatchNormMode = Literal["transductive", "frozen", "per_step"]
_PARALLEL = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")
_STEP = "metaopt_step"  # the buffer that counts calls where statistics are kept per step
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_AFFINE = ("weight", "bias")


class Apply:
    """The pure form of a module: ``apply(params, *args) -> output``.

    ``apply(params, buffers, *args)`` takes the buffers too, where they are batched or have moved on;
    ``apply.with_buffers(params, buffers, *args) -> (output, buffers)`` hands back what they became.
    None of them writes to the module, to params or to buffers.
    """

    def __init__(
        self,
        module: nn.Module,
        names: dict[str, str],
        params: Iterable[str],
        buffers: Tensors,
        stacked: frozenset[str] = frozenset(),
        num_rows: int = 0,
    ):
        self.module = module  # never called: a call swaps attributes, and so each thread has a copy
        self.own = threading.local()
        self.names = names  # slot of the module -> key in params or buffers; tied slots share one
        self.params = frozenset(params)
        self.buffers = buffers
        self.stacked = stacked  # the keys that have a row for every step, and one for the query
        self.num_rows = num_rows
        layers = dict(module.named_modules())
        self.tracking = [
            path or "the module itself"
            for path, layer in layers.items()
            if isinstance(layer, _NormBase) and layer.training and layer.running_mean is not None
        ]
        self.written = set()  # what a training layer may write to in place
        self.counts = []  # what a layer with momentum=None reads as a number
        for slot, key in names.items():
            path, _, attribute = slot.rpartition(".")
            layer = layers[path]
            if layer.training and attribute in layer._buffers:
                self.written.add(key)
                if attribute == "num_batches_tracked" and layer.momentum is None:
                    self.counts.append(key)

    def __call__(self, params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        buffers: Mapping[str, Tensor] = self.buffers
        if args and isinstance(args[0], Mapping) and args[0].keys() == buffers.keys():
            buffers, *args = args  # type: ignore[assignment]
        if self.stacked:
            raise ArgumentError(
                "apply(module)",
                "a call of apply.with_buffers, which counts the steps of batch_norm='per_step'",
                "one without",
                remedy="Call apply.with_buffers(params, buffers, ...) and pass on the buffers it returns.",
            )
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
        for key in self.counts:
            if batched(buffers[key]):
                raise VmapError(
                    "apply.with_buffers(buffers)",
                    "one count of batches for all tasks, where BatchNorm has momentum=None and reads it",
                    "one a task",
                    at=key,
                    remedy="Give the layer a momentum, share the count (in_dims None), or "
                    "map_tasks(how='loop').",
                )
        if not self.num_rows:
            with Statistics() as statistics:
                return self._run(params, buffers, args, kwargs, statistics)
        step = buffers[_STEP]
        now = torch.arange(self.num_rows, device=step.device) == step.clamp(max=self.num_rows - 1)

        def column(x: Tensor) -> Tensor:
            return now.view(-1, *(1,) * (x.ndim - 1))

        def row(table: Mapping[str, Tensor]) -> Tensors:  # x[step], where the step may be mapped
            return {
                k: (x * column(x)).sum(0, dtype=x.dtype) if k in self.stacked else x for k, x in table.items()
            }

        with Statistics() as statistics:
            output, moved = self._run(row(params), row(buffers), args, kwargs, statistics)
        for key in self.stacked & buffers.keys():
            moved[key] = torch.where(column(buffers[key]), moved[key], buffers[key])
        moved[_STEP] = step + 1
        return output, moved

    def eval(self) -> Apply:
        """The same function with every layer in eval mode: running statistics are used, none is kept."""
        module = skeleton(self.module).eval()
        return Apply(module, self.names, self.params, self.buffers, self.stacked, self.num_rows)

    def _run(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        args: Any,
        kwargs: Any,
        statistics: Statistics | None,
    ) -> tuple[Any, Tensors]:
        if not isinstance(params, Mapping):
            got, remedy = type(params).__name__, "Call apply(params, x)."
            raise StructureError("apply(params)", "a dict of parameters by name", got, remedy=remedy)
        if params.keys() != self.params:
            odd = sorted(params.keys() ^ self.params)[0]
            raise StructureError(
                "apply(params)",
                f"the {len(self.params)} parameters that metaopt.functional returned",
                f"{'one more' if odd in params else 'none'} at {odd!r}",
            )
        given = {k: b.clone() if k in self.written else b for k, b in buffers.items()}
        values: Any = {**given, **params}
        if torch.compiler.is_compiling():  # which swaps nothing
            # tie_weights=False: torch's own tying turns a module that is registered twice into one
            # with plain tensors for parameters (pytorch/pytorch#164759). Ties are in `names`.
            placed = {slot: values[key] for slot, key in self.names.items()}
            with exact():
                output = torch.func.functional_call(
                    self.module, placed, tuple(args), kwargs, tie_weights=False
                )
            left = {key: placed[slot] for slot, key in self.names.items()}
        else:
            module, slots = self._of_thread()
            with exact(), lent(slots, values):
                output = module(*args, **kwargs)
                left = {key: table[name] for table, name, key in slots if key in self.written}
        if statistics is not None:
            given |= {key: statistics.new(left[key]) for key in self.written}
        return output, given

    def _of_thread(self) -> tuple[nn.Module, list[Slot]]:
        """The module to be called by this thread, and its slots."""
        if not hasattr(self.own, "module"):
            self.own.module = skeleton(self.module)
            self.own.slots = tables_of(self.own.module, self.names)
        return self.own.module, self.own.slots

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "own"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, own=threading.local())

    def __repr__(self) -> str:
        name = type(self.module).__name__
        return f"Apply({name}, {len(self.params)} params, {len(self.buffers)} buffers)"


def _of_norms(module: nn.Module, attributes: tuple[str, ...]) -> list[str]:
    """The slots of the norms with running statistics that hold one of these attributes."""
    return [
        f"{path}.{attribute}" if path else attribute
        for path, layer in module.named_modules()
        if isinstance(layer, _NormBase) and layer.running_mean is not None
        for attribute in attributes
        if getattr(layer, attribute) is not None
    ]


def functional(
    module: nn.Module,
    *,
    batch_norm: BatchNormMode | None = None,
    num_steps: int | None = None,
    per_step_affine: bool = False,
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
          num_steps: inner steps J, for "per_step".
          per_step_affine: each step, and the query, has its own weights and biases of these norms too:
              new Parameters [J+1, channel] under the names of the module's own, which start as copies.
              A step's gradient reaches its own row alone, after its last use, so that the inner loop
              leaves them to the outer one, as in MAML++.
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
    if type(module).__name__ in _PARALLEL or hasattr(module, "set_requires_gradient_sync"):
        raise ArgumentError(
            "functional(module)",
            "a bare module",
            type(module).__name__,
            remedy="Pass its .module, or the module before fully_shard, for a functional call does not "
            "synchronise gradients, and call metaopt.train.reduce_gradients once after the outer backward.",
        )
    if batch_norm not in (None, "transductive", "frozen", "per_step"):
        expected = "'transductive', 'frozen', 'per_step' or None"
        raise ArgumentError("functional(batch_norm)", expected, repr(batch_norm))
    if (batch_norm == "per_step") != (num_steps is not None) or (num_steps is not None and num_steps < 0):
        expected = "a number of inner steps with batch_norm='per_step', and None without"
        raise ArgumentError("functional(num_steps)", expected, repr(num_steps))
    if per_step_affine and batch_norm != "per_step":
        raise ArgumentError("functional(per_step_affine)", "batch_norm='per_step' with it", repr(batch_norm))
    module = skeleton(module)
    for layer in module.modules():
        if isinstance(layer, _NormBase) and batch_norm == "transductive":
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
        elif isinstance(layer, _NormBase) and batch_norm == "frozen":
            layer.eval()
    tensors, names = slots_of(module)
    params: Tensors = {k: v for k, v in tensors.items() if isinstance(v, nn.Parameter) and v.requires_grad}
    buffers = {k: v for k, v in tensors.items() if k not in params}
    if num_steps is None:
        return Apply(module, names, params, buffers), params, buffers
    rows = num_steps + 1
    stacked = {names[slot] for slot in _of_norms(module, _STATISTICS)}
    buffers |= {key: torch.stack([buffers[key]] * rows) for key in stacked}
    buffers[_STEP] = torch.zeros((), dtype=torch.int64)
    if per_step_affine:
        affine = {names[slot] for slot in _of_norms(module, _AFFINE)} & params.keys()
        params |= {key: nn.Parameter(torch.stack([params[key].detach()] * rows)) for key in affine}
        stacked |= affine
    return Apply(module, names, params, buffers, frozenset(stacked), rows), params, buffers
