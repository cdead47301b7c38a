"""What an inner loop remembers of itself: every step, some carries, or a few of them in turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, is_count
from metaopt.recompute import recompute
from metaopt.revolve import revolve

__all__ = ["Binomial", "Memory", "Offload", "check_memory", "run"]


class Binomial(NamedTuple):
    """Recursive binomial checkpointing: ``slots`` carries at a time, whatever the number of steps.

    With s slots, C(s+t, s) steps are computed t times in the backward pass: 20 slots and t = 3 do for
    1,771 steps, t = 4 for 10,626.

    Source: Griewank & Walther 2000, doi:10.1145/347837.347846 (Revolve).
    """

    slots: int = 16


class Offload(NamedTuple):
    """One carry ``every`` K steps (⌈√J⌉ where None), kept in the CPU's memory."""

    every: int | None = None


Memory = Literal["all", "sqrt"] | int | Binomial | Offload
Carry = tuple[Any, ...]
Block = Callable[[Carry, Any, range], tuple[Carry, Tensor]]


def check_memory(memory: Any) -> None:
    """Raise ArgumentError unless ``memory`` is a strategy."""
    if isinstance(memory, Binomial):
        fine = is_count(memory.slots)
    elif isinstance(memory, Offload):
        fine = memory.every is None or is_count(memory.every)
    else:
        fine = memory in ("all", "sqrt") if isinstance(memory, str) else is_count(memory)
    if not fine:
        expected = "'all', 'sqrt', an integer >= 1, Binomial(slots >= 1) or Offload(every >= 1 or None)"
        raise ArgumentError("unroll(memory)", expected, repr(memory))


def run(block: Block, carry: Carry, rest: Any, num_steps: int, memory: Memory) -> tuple[Carry, list[Tensor]]:
    """All steps of ``block(carry, rest, steps) -> (carry, losses)``, remembered as ``memory`` says."""
    if memory == "all":
        carry, losses = block(carry, rest, range(num_steps))
        return carry, [losses]
    if isinstance(memory, Binomial):
        carry, losses = revolve(block, carry, rest, num_steps, memory.slots)
        return carry, [losses]
    every = memory.every if isinstance(memory, Offload) else memory
    if every is None or every == "sqrt":
        every = math.isqrt(max(num_steps - 1, 0)) + 1
    assert isinstance(every, int)
    losses_of_blocks = []
    for start in range(0, num_steps, every):
        steps = range(start, min(start + every, num_steps))
        if isinstance(memory, Offload):
            carry, losses = _offloaded(block, carry, rest, steps)
        else:
            carry, losses = recompute(block, carry, rest, steps)
        losses_of_blocks.append(losses)
    return carry, losses_of_blocks


def _offloaded(block: Block, carry: Carry, rest: Any, steps: range) -> tuple[Carry, Tensor]:
    """The block from a carry that lies in the CPU's memory."""
    devices = [x.device for x in tree.leaves(carry)]

    def from_cpu(carry: Carry, rest: Any) -> tuple[Carry, Tensor]:
        leaves, structure = tree.flatten(carry)
        back = [x.to(device, non_blocking=True) for x, device in zip(leaves, devices, strict=True)]
        return block(tree.unflatten(structure, back), rest, steps)

    return recompute(from_cpu, tree.map(lambda x: x.to("cpu"), carry), rest)
