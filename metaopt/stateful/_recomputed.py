"""A step of an fmodel that is forgotten, and computed again for the outer gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import CaptureError
from metaopt.peek import peek
from metaopt.recompute import check_captured, recompute
from metaopt.step import inner_step
from metaopt.types import Optimizer

__all__ = ["recomputed_step"]


def recomputed_step(
    fmodel: Any,
    opt: Optimizer,
    params: list[Tensor],
    index: list[int],
    state: Any,
    hparams: Any,
    phi: tuple[Any, ...],
    loss_fn: Callable[..., Tensor],
    order: int,
) -> tuple[list[Tensor], Any]:
    """(P[t+1] at ``index``, state), of which the graph keeps P[t], the state and φ alone.

    Running statistics move once, however often the step is computed.
    """
    check_captured("step(loss)", loss_fn)
    weights, seen = fmodel._weights, []  # type: ignore[var-annotated]

    def step(params: list[Tensor], state: Any, hparams: Any, phi: Any, buffers: list[Tensor]) -> Any:
        def loss(moving: Any, _: Any, /, *phi: Any, buffers: Any = ()) -> Any:
            full = list(params)
            for i, p in zip(index, moving, strict=True):
                full[i] = p
            with weights.lent(full, [b.clone() for b in buffers]):
                value = loss_fn(*phi)
                _check_same(seen, value)
                return value, weights.held()

        moving = [params[i] for i in index]
        part, state, _, moved = inner_step(
            loss, opt, moving, state, (), hparams, phi, order=1 if order == 1 else 2, buffers=buffers
        )
        return part, state, moved

    held = [b.clone() for b in weights.held()]
    part, state, moved = recompute(step, params, state, hparams, phi, held)
    weights.put([b.detach() for b in moved])
    return part, state


def _check_same(seen: list[Tensor], loss: Tensor) -> None:
    """The loss is the same each time it is computed; a name that is bound late would make it another."""
    value = peek(loss)[0]
    if not seen:
        seen.append(value)
    elif not torch.allclose(value, seen[0], rtol=1e-3, equal_nan=True):
        raise CaptureError(
            "step(loss)",
            f"the loss {float(seen[0]):g} again when the step is computed again",
            f"{float(value):g}",
            remedy="Bind what changes from step to step, lambda x=x: ..., or pass it through phi.",
        )
