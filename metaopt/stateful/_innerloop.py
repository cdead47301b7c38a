"""The door: ``with innerloop_ctx(model, opt) as (fmodel, diffopt)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from metaopt.errors import ArgumentError
from metaopt.stateful._diffopt import Callback
from metaopt.stateful.optim import get_diff_optim
from metaopt.stateful.patch import Device, monkeypatch
from metaopt.types import Optimizer

__all__ = ["innerloop_ctx"]


@contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer | Optimizer | Sequence[torch.optim.Optimizer | Optimizer],
    device: Device = None,
    copy_initial_weights: bool = True,
    override: Mapping[str, Any] | None = None,
    track_higher_grads: bool = True,
    *,
    order: int = 2,
    history: int | None = None,
    grad_callback: Callback | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yield (fmodel, diffopt): the model with fast weights, and the optimizer that moves them.

    ::

        G = ∂loss/∂P[t],   P[t+1], s[t+1] = update(P[t], s[t], G, φ^opt)

    Args: model: any nn.Module; it is never written to.
          opt: a live torch optimizer over some of its parameters, whose state is carried over; or a
              `metaopt.Optimizer` over all; or several, and then as many diffopts come back.
          device: where fast weights, buffers and state live.
          copy_initial_weights: False lets gradients reach the model's own parameters (MAML).
          override: ``{key: [values]}``: settings laid over the live ones, tensors to be learned say.
          track_higher_grads: False keeps no graph, and the latest parameters alone.
          order: 1 takes every inner gradient for a constant (first-order MAML): the outer gradient still
              reaches P[0] and the hyperparameters, and no step's activations are kept.
          history: how many of the latest parameters are kept besides P[0]; None keeps all.
          grad_callback: ``gradients -> gradients`` before every step.
    Raises: ArgumentError for what cannot be taken over.
    Cost: as the plain training loop, and the graph of its steps: see ``diffopt.step(recompute=True)`` and
          ``diffopt.truncate()``.
    Source: Grefenstette et al. 2019, arXiv:1910.01727, whose library `higher` has these names.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> opt = torch.optim.SGD(model.parameters(), lr=0.25)
    >>> with innerloop_ctx(model, opt) as (fmodel, diffopt):
    ...     _ = diffopt.step(fmodel(torch.ones(1, 1)).square().sum())
    ...     torch.autograd.grad(fmodel.weight.sum(), fmodel.parameters(time=0))
    (tensor([[0.5000]]),)
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError("innerloop_ctx(model)", "an nn.Module", type(model).__name__)
    fmodel = monkeypatch(model, device, copy_initial_weights, track_higher_grads, history=history)
    fmodel._weights.order = order
    several = isinstance(opt, (list, tuple)) and not isinstance(opt, Optimizer)
    opts: Any = opt if several else (opt,)
    if not opts:
        raise ArgumentError("innerloop_ctx(opt)", "an optimizer at least", "none")
    reference = list(getattr(model, "_orig_mod", model).parameters())
    diffopts = tuple(
        get_diff_optim(
            one,
            reference,
            fmodel,
            device,
            override,
            track_higher_grads,
            order=order,
            grad_callback=grad_callback,
        )
        for one in opts
    )
    yield fmodel, diffopts if several else diffopts[0]
