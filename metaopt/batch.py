"""One function of one task, mapped over many: vmap, chunks of vmap, or a loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.vmap import lazy_load_decompositions

from metaopt import tree
from metaopt.compiled import Compile, Flat, Way, as_compile, mapped_by, owner
from metaopt.errors import ArgumentError, StructureError, is_count
from metaopt.exact import current_draws, exact, seeded, task_keys, tasks_from
from metaopt.recompute import check_captured, recompute
from metaopt.step import check_loss
from metaopt.workers import in_threads

__all__ = ["How", "choose", "map_tasks"]

How = Literal["auto", "vmap", "loop"]
_HOOKS = "map_tasks(how='vmap') does not support saved tensor hooks: torch.vmap does not."
_REMEDY = "Stack episodes with metaopt.tree.stack."


def map_tasks(
    fn: Callable[..., Any],
    *,
    how: How = "auto",
    chunk_size: int | None = None,
    in_dims: tuple[Any, ...] | None = None,
    seed: int | Tensor | None = None,
    compile: Way | Literal[False] | Compile = False,
    workers: int = 1,
) -> Callable[..., Any]:
    """Return ``fn`` mapped over tasks: ``(meta_params, episodes) -> [task, ...]``.

    The first argument is shared and the rest are mapped over axis 0, unless ``in_dims`` says otherwise.
    The derivative of the result is exact, and the same, for every way of mapping.

    Args: fn: a function of one task, ``(meta_params, episode) -> pytree of tensors``.
          how: "vmap" runs all tasks in one batched call: 7 to 40 times faster for small nets.
               "loop" runs them one after the other: 2 times faster for convolutions on a CPU.
               "auto" loops where a shared tensor on the CPU has 3 axes or more (a convolution's weight
               that becomes a fast weight), and maps otherwise; `choose` tells which.
          chunk_size: tasks held in memory at a time; chunks are computed again in the backward pass.
          in_dims: one entry an argument, as in torch.vmap: an axis, None, or a tree of these.
          seed: an int or an int64 tensor []; what a task draws (dropout, noise) is then a function of
              the seed and of its position, whatever ``how``, ``chunk_size`` and ``memory``. Change it
              from one meta-step to the next. `train.fit` does: there the outer step and the place among
              the tasks of all ranks count too. None draws from torch's generator, one task after another.
          compile: "step" compiles one inner step and its derivative, in seconds whatever the number of
              steps; "whole" compiles all that ``fn`` does into one graph and its derivative, which is the
              fastest where there are few steps; "auto" measures both beside eager code at the first call;
              `Compile` names the backend too. What cannot be compiled runs as it is: `compile_report`.
          workers: threads that a loop's tasks are dealt out to, each computing on one core. ``fn`` is called
              from all of them: `functional` keeps a copy of the module for each, and whatever else it
              writes to must not be shared. Not with ``compile``. Its derivative is taken once.
    Returns: the mapped function; every output has a leading task axis.
    Raises: ArgumentError; StructureError if the leaves disagree on the number of tasks.
    Cost: chunks keep the peak at one chunk's graph, for one forward pass more.

    >>> double = map_tasks(lambda w, x: w * x)
    >>> double(torch.tensor(2.0), torch.arange(3.0))
    tensor([0., 2., 4.])
    """
    check_loss("map_tasks(fn)", fn)
    if how not in ("auto", "vmap", "loop"):
        raise ArgumentError("map_tasks(how)", "'auto', 'vmap' or 'loop'", repr(how))
    if chunk_size is not None and not is_count(chunk_size):
        raise ArgumentError("map_tasks(chunk_size)", "an integer >= 1 or None", repr(chunk_size))
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ArgumentError("map_tasks(workers)", "an integer >= 1", repr(workers))
    if workers > 1 and compile is not False:
        raise ArgumentError("map_tasks(workers)", "1 where compile is on", str(workers))
    choice = as_compile("map_tasks(compile)", compile, ("step", "whole", "auto"))

    def mapped_fn(*args: Any) -> Any:
        depends: Any = None
        dims = in_dims if in_dims is not None else (None,) + (0,) * (len(args) - 1)
        if len(dims) != len(args):
            raise ArgumentError(
                "map_tasks(in_dims)", f"one entry for each of {len(args)} arguments", f"{len(dims)}"
            )
        num_tasks = _num_tasks(args, dims)
        keys, outer = None, current_draws()
        if seed is not None:
            keys = task_keys(seed, num_tasks)
        elif outer is not None:  # a map inside a map
            keys = task_keys(outer, num_tasks)
        flat, tensors, axes, result = _flatten(fn, args, dims, keys is not None)
        if keys is not None:
            tensors, axes = [*tensors, keys], [*axes, 0]
        eager = _vmapped if (choose(*args) if how == "auto" else how) == "vmap" else _looped

        if workers > 1 and eager is _looped and functorch.get_interpreter_stack() is None:
            eager = _threaded(min(workers, num_tasks))

        def run(flat: Flat, axes: list[int | None], tensors: Any) -> tuple[Tensor, ...]:
            with tasks_from(None):
                return mapped_by(eager, flat, axes, tensors, choice, depends, result)

        if choice is not None:
            static = [x for x in tree.leaves(args) if not isinstance(x, Tensor)]
            depends = owner((tree.structure(args), tuple(axes), keys is not None, eager), fn, *static)
        if chunk_size is None or chunk_size >= num_tasks:
            outputs = run(flat, axes, tensors)
            return tree.unflatten(result[0], outputs)
        check_captured("map_tasks(fn)", fn)
        chunks = []
        for start in range(0, num_tasks, chunk_size):
            width = min(chunk_size, num_tasks - start)
            some = [
                x if axis is None else x.narrow(axis, start, width)
                for x, axis in zip(tensors, axes, strict=True)
            ]
            chunks.append(recompute(lambda *xs: run(flat, axes, xs), *some))
        return tree.unflatten(result[0], [torch.cat(xs) for xs in zip(*chunks, strict=True)])

    return mapped_fn


def choose(meta_params: Any, *episodes: Any) -> Literal["vmap", "loop"]:
    """Tell how ``map_tasks(how="auto")`` maps: "loop" for convolutional fast weights on a CPU.

    >>> choose({"weight": torch.zeros(8, 1, 3, 3)})
    'loop'
    """
    convolutional = any(
        isinstance(x, Tensor) and x.ndim >= 3 and x.is_floating_point() and x.device.type == "cpu"
        for x in tree.leaves(meta_params)
    )
    return "loop" if convolutional else "vmap"


def _flatten(
    fn: Callable[..., Any], args: tuple[Any, ...], dims: tuple[Any, ...], keyed: bool
) -> tuple[Flat, list[Tensor], list[int | None], list[tree.Structure]]:
    """``fn`` as a function of a flat list of tensors, their axes, and where its structure will be.

    Where it is ``keyed``, the last tensor is the task's key.
    """
    leaves, structure = tree.flatten(args)
    axes = tree.broadcast_prefix("map_tasks(in_dims)", dims, args)
    slots = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    static = {i: x for i, x in enumerate(leaves) if not isinstance(x, Tensor)}
    result: list[tree.Structure] = []
    always = exact.always_on()

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = static | dict(zip(slots, tensors, strict=not keyed))
        with exact(always), seeded(tensors[-1]) if keyed else nullcontext():
            out = fn(*tree.unflatten(structure, [filled[i] for i in range(len(leaves))]))
        found, shape = tree.flatten(out)
        result[:] = [shape]
        if out is None:
            remedy = "Return what the task computed: is a return missing?"
            raise StructureError("map_tasks(fn)", "a tensor as result", type(out).__name__, remedy=remedy)
        for i, x in enumerate(found):
            if not isinstance(x, Tensor):
                path = tree.paths(out)[i] or "the result"
                raise StructureError("map_tasks(fn)", "tensors as results", type(x).__name__, at=path)
        return tuple(found)

    return flat, [leaves[i] for i in slots], [axes[i] for i in slots], result


def _num_tasks(args: tuple[Any, ...], dims: tuple[Any, ...]) -> int:
    sizes = {}
    for position, (arg, dim) in enumerate(zip(args, dims, strict=True)):
        where = "map_tasks(episodes)" if position == 1 else f"map_tasks(args[{position}])"
        if isinstance(dim, int):
            sizes[where] = tree.axis_size(where, arg, dim, "tasks", _REMEDY)
        elif dim is not None:
            for leaf, axis in zip(tree.leaves(arg), tree.broadcast_prefix(where, dim, arg), strict=True):
                if axis is not None:
                    sizes[where] = leaf.shape[axis]
    if not sizes:
        raise ArgumentError(
            "map_tasks(in_dims)",
            "at least one argument to map over",
            "None for all",
            remedy=_REMEDY,
        )
    (first, size), *others = sizes.items()
    if size == 0:
        raise StructureError(first, "at least one task", "0", remedy=_REMEDY)
    for where, other in others:
        if other != size:
            raise StructureError(where, f"{size} tasks, as in {first}", str(other), remedy=_REMEDY)
    return size


def _vmapped(flat: Flat, axes: list[int | None], tensors: Any) -> tuple[Tensor, ...]:
    sizes = {x.shape[0] if a == 0 and x.ndim else -1 for x, a in zip(tensors, axes) if a is not None}
    if len(sizes) != 1 or -1 in sizes or torch.compiler.is_compiling():
        return torch.vmap(flat, in_dims=tuple(axes), randomness="different")(*tensors)
    # what torch.vmap does with a flat list whose mapped axes are in front, without its walks over pytrees
    (size,) = sizes
    lazy_load_decompositions()
    with torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS):
        level = functorch._vmap_increment_nesting(size, "different")
        try:
            pairs = zip(tensors, axes, strict=True)
            mapped = [x if a is None else functorch._add_batch_dim(x, a, level) for x, a in pairs]
            outputs = flat(*mapped)
            return tuple(functorch._remove_batch_dim(y, level, size, 0) for y in outputs)
        finally:
            functorch._vmap_decrement_nesting()


def _threaded(workers: int) -> Callable[..., tuple[Tensor, ...]]:
    def run(flat: Flat, axes: list[int | None], tensors: Any) -> tuple[Tensor, ...]:
        return in_threads(lambda xs: _looped(flat, axes, xs), tensors, axes, workers)

    return run


def _looped(flat: Flat, axes: list[int | None], tensors: Any) -> tuple[Tensor, ...]:
    (length,) = {x.shape[a] for x, a in zip(tensors, axes, strict=True) if a is not None}
    rows = [
        flat(*(x if a is None else x.select(a, i) for x, a in zip(tensors, axes, strict=True)))
        for i in range(length)
    ]
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))
