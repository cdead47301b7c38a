"""Large meta-parameters as shards: each rank keeps its part of them and of the outer optimizer's state."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError

__all__ = ["gather_params", "is_sharded", "placed_like", "shard_params"]


def is_sharded(params: Any) -> bool:
    """Whether a leaf is a DTensor."""
    return any(hasattr(x, "full_tensor") for x in tree.leaves(params))


def shard_params(params: Any, mesh: Any = None) -> Any:
    """Return the tree with every leaf a DTensor, split along its first axis over the ranks.

    `fit` takes them as ``meta_params``: it gathers them for the inner loops, which torch.func runs on
    plain tensors, and steps the outer optimizer on the shards, so that a rank keeps 1/W of its state.

    Args: params: a tree of tensors, the same on every rank; leaves without an axis are kept whole.
          mesh: a one-dimensional DeviceMesh; all ranks where None.
    Raises: ArgumentError without a process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(
            "shard_params(params)",
            "a process group",
            "none",
            remedy="Start with torchrun, inside metaopt.train.process_group().",
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    if mesh is None:
        kind = next((x.device.type for x in tree.leaves(params)), "cpu")
        mesh = init_device_mesh(kind, (dist.get_world_size(),))

    def one(p: Tensor) -> Tensor:
        split = distribute_tensor(p.detach(), mesh, [Shard(0) if p.ndim else Replicate()])
        return split.requires_grad_(p.requires_grad)

    return tree.map(one, params)


def gather_params(params: Any) -> Any:
    """Return the whole tensors of a sharded tree, on every rank, as fresh leaves of the outer graph.

    A tree without shards is returned as it is.
    """
    if not is_sharded(params):
        return params

    def one(p: Any) -> Any:
        if not hasattr(p, "full_tensor"):
            return p
        return p.detach().full_tensor().requires_grad_(p.requires_grad)

    return tree.map(one, params)


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device, and in the shards, of ``like``; every rank holds the same value."""
    if not hasattr(like, "full_tensor"):
        return value.to(like.device)
    from torch.distributed.tensor import DTensor, Replicate

    layout: Any = like
    whole = DTensor.from_local(
        value.to(layout.device), layout.device_mesh, [Replicate()] * layout.device_mesh.ndim, run_check=False
    )
    return whole.redistribute(placements=layout.placements)
