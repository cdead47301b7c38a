"""Tasks over ranks, on torch.distributed itself: share out, compute, reduce once."""

from __future__ import annotations

import ctypes
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from metaopt import tree
from metaopt.errors import ArgumentError, CheckpointError, MetaoptError, VmapError, check_at_least

__all__ = [
    "Ranks",
    "from_first",
    "gather",
    "is_restart",
    "leave_name",
    "process_group",
    "ranks",
    "reduce_gradients",
    "shard_tasks",
    "share",
    "sum_over_ranks",
    "weighted",
]

_STACK = "Stack episodes with metaopt.tree.stack."


class Ranks(NamedTuple):
    """Which of how many processes this is."""

    rank: int
    size: int


def ranks() -> Ranks:
    """This process among those of torch.distributed; the only one where there is no process group."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks(0, 1)


def share(total: int, rank: int, size: int) -> slice:
    """The tasks ⌊rT/W⌋ … ⌊(r+1)T/W⌋ − 1 of T: shares differ by one task at most.

    >>> [share(5, r, 3) for r in range(3)]
    [slice(0, 1, None), slice(1, 3, None), slice(3, 5, None)]
    """
    return slice(rank * total // size, (rank + 1) * total // size)


def shard_tasks(episodes: Any, *, rank: int | None = None, world_size: int | None = None) -> Any:
    """Return this rank's tasks of a batch that every rank has drawn alike.

    Under ``with tasks_from(⌊rT/W⌋)`` a ``map_tasks(seed=)`` over them draws what it draws over all of them.

    Args: episodes: stacked, the leading axis of every leaf being the task.
          rank, world_size: those of torch.distributed; 0 and 1 without a process group.
    Returns: tasks ⌊rT/W⌋ up to ⌊(r+1)T/W⌋, views; none where there are fewer tasks than ranks.
    Raises: ArgumentError if the rank is not of this world; StructureError if the leaves disagree on T.

    >>> shard_tasks(torch.arange(5), rank=1, world_size=2)
    tensor([2, 3, 4])
    """
    here = ranks()
    size = here.size if world_size is None else world_size
    number = here.rank if rank is None else rank
    check_at_least("shard_tasks(world_size)", size, 1)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < size:
        raise ArgumentError("shard_tasks(rank)", f"an integer from 0 to {size - 1}", repr(number))
    total = tree.axis_size("shard_tasks(episodes)", episodes, 0, "tasks", _STACK)
    return tree.index(episodes, share(total, number, size))


def reduce_gradients(grads: Any, num_tasks: int) -> Any:
    """Return the mean over the tasks of all ranks, from each rank's mean over its own.

    ::

        g = Σ_r n_r g_r / Σ_r n_r

    Call it once, after the outer backward pass: collectives inside torch.func fail, and a module in
    DistributedDataParallel does not synchronise what a functional call differentiates.

    Args: grads: a tree of tensors, of the same structure on every rank.
          num_tasks: n_r >= 0, tasks that ``grads`` is the mean over; a rank with 0 counts for nothing.
    Returns: a tree like ``grads``, the same on every rank. ``grads`` itself where there is one rank.
    Raises: ArgumentError; StructureError for a leaf that is no floating-point tensor; VmapError
            inside torch.func.
    Cost: one all-reduce for each dtype and device in the tree.

    >>> reduce_gradients({"w": torch.ones(2)}, num_tasks=4)
    {'w': tensor([1., 1.])}
    """
    where = "reduce_gradients(num_tasks)"
    check_at_least(where, num_tasks, 0)
    tree.check_parameters("reduce_gradients(grads)", grads)
    for path, g in zip(tree.paths(grads), tree.leaves(grads), strict=True):
        if torch._C._functorch.is_functorch_wrapped_tensor(g):
            raise VmapError(
                "reduce_gradients(grads)",
                "plain tensors",
                "a tensor under torch.func",
                at=path or "the root",
                remedy="Reduce after the outer gradient, outside vmap and grad.",
            )
    if ranks().size == 1:
        if num_tasks == 0:
            raise ArgumentError(where, "at least one task on some rank", "0 on all")
        return grads
    mine = weighted(grads, num_tasks)
    total, summed = sum_over_ranks((torch.tensor(float(num_tasks), dtype=torch.float64), mine))
    if total == 0:
        raise ArgumentError(where, "at least one task on some rank", "0 on all")
    return tree.map(lambda g: g / total.to(g.device, g.real.dtype), summed)


def weighted(grads: Any, num_tasks: int) -> Any:
    """n g, and 0 rather than 0 · NaN for a rank without tasks."""
    return tree.map(lambda g: g * num_tasks if num_tasks else torch.zeros_like(g), grads)


def sum_over_ranks(value: Any) -> Any:
    """Σ_r of a tree, in one all-reduce for each dtype; the same bits on every rank."""
    if ranks().size == 1:
        return value
    leaves, structure = tree.flatten(value)
    kinds: dict[torch.dtype, list[int]] = {}
    for i, x in enumerate(leaves):
        kinds.setdefault(x.dtype, []).append(i)
    for dtype, ids in kinds.items():
        flat = torch.cat([leaves[i].detach().reshape(-1).to(_meeting_place()) for i in ids])
        if dtype.is_complex:
            dist.all_reduce(torch.view_as_real(flat))
        else:
            dist.all_reduce(flat)
        pieces = flat.split([leaves[i].numel() for i in ids])
        for i, piece in zip(ids, pieces, strict=True):
            leaves[i] = piece.view(leaves[i].shape).to(leaves[i].device)
    return tree.unflatten(structure, leaves)


def from_first(make: Callable[[], bytes]) -> bytes:
    """Rank 0's ``make()`` on every rank: files are read where they were written.

    Raises: rank 0's error on rank 0, and a CheckpointError with its text on the others.
    """
    if ranks().size == 1:
        return make()
    failure, content = None, b""
    if ranks().rank == 0:
        try:
            content = b"+" + make()
        except MetaoptError as error:
            failure, content = error, b"-" + str(error).encode()
    length = torch.tensor(len(content), device=_meeting_place())
    dist.broadcast(length, 0)
    buffer = torch.zeros(int(length), dtype=torch.uint8, device=_meeting_place())
    if ranks().rank == 0:
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(buffer, 0)
    if failure is not None:
        raise failure
    buffer = buffer.cpu()
    content = ctypes.string_at(buffer.data_ptr(), buffer.numel())
    if content[:1] == b"-":
        raise CheckpointError(f"rank 0: {content[1:].decode()}")
    return content[1:]


def gather(value: Any) -> list[Any]:
    """The trees of all ranks, on every rank; they must agree in structure, shapes and dtypes."""
    if ranks().size == 1:
        return [value]
    leaves, structure = tree.flatten(value)
    columns = []
    for x in leaves:
        x = x.detach().contiguous().to(_meeting_place())
        rows = [torch.empty_like(x) for _ in range(ranks().size)]
        dist.all_gather(rows, x)
        columns.append(rows)
    return [tree.unflatten(structure, [rows[r] for rows in columns]) for r in range(ranks().size)]


def _meeting_place() -> torch.device:
    """Where collectives take tensors from: this rank's GPU with NCCL, the CPU with gloo."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


@contextmanager
def process_group(device: str = "cpu") -> Iterator[Ranks]:
    """Join the ranks that torchrun has started, if it has, and leave them at the end.

    gloo for a CPU, NCCL for GPUs, one a rank. Where a group stands already it is used and kept.
    """
    if dist.is_initialized() or not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield ranks()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(dist.rendezvous("env://"))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=_of_this_start(store, rank, size), rank=rank, world_size=size)
    try:
        yield ranks()
    finally:
        dist.destroy_process_group()


def _of_this_start(store: dist.Store, rank: int, size: int) -> dist.Store:
    """The launch's store under a name that this start alone has, made up by rank 0 for whoever asks.

    After a restart torchrun hands out the store of before, with the addresses of dead ranks in it
    (torch 2.13), and a rank that is early connects to one of these. Every question has a name of its
    own, so that an answer to a dead rank is not taken for one's own.
    """
    name, deadline = uuid.uuid4().hex, time.monotonic() + store.timeout.total_seconds()  # type: ignore[attr-defined]
    if rank:
        store.set(f"metaopt/asked/{rank}", name)
        start = store.get(f"metaopt/told/{name}").decode()  # waits for the key
        store.set(f"metaopt/joined/{start}/{rank}", "")
        return dist.PrefixStore(start, store)
    missing = set(range(1, size))
    while missing:
        missing -= {r for r in missing if store.check([f"metaopt/joined/{name}/{r}"])}
        for r in missing:
            if store.check([f"metaopt/asked/{r}"]):
                store.set(f"metaopt/told/{store.get(f'metaopt/asked/{r}').decode()}", name)
        if time.monotonic() > deadline:
            raise TimeoutError(f"process_group(): ranks {sorted(missing)} of {size} did not come.")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


def is_restart(out: Path) -> bool:
    """Whether this launch of torchrun has started in ``out`` before; asked on rank 0.

    A start that is accepted leaves the launch's name in the folder, so that the run of another launch,
    which the first start refused, is not taken for its own by the second. The restart count does not tell:
    an agent counts the failures of its own ranks, and not those of other machines.
    """
    name = out / "launch.txt"
    return bool(_launch()) and name.is_file() and name.read_text() == _launch()


def leave_name(out: Path) -> None:
    """Write the name of this launch of torchrun, if it is one, for `is_restart`."""
    if _launch():
        (out / "launch.txt").write_text(_launch())


def _launch() -> str:
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return run if run != "none" else f"agent {os.getppid()}"  # the agent is this process's parent
