"""MAML++: step sizes a layer and step, losses after every step, order annealed, norms a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError, check_at_least
from metaopt.exact import exact
from metaopt.optim import SGDHParams, sgd
from metaopt.step import Order, inner_step
from metaopt.types import LossFn, Meta

__all__ = ["maml_plus_plus", "maml_plus_plus_init", "multi_step_weights"]


def maml_plus_plus_init(params: Any, num_steps: int, lr: float = 0.1, per_step: Any = ()) -> Meta:
    """What MAML++ learns: params, a step size a leaf and step, and copies of ``per_step`` a step.

    Args: per_step: a tree of which θ_j has an own copy for every j = 0 … J, batch norm's affine weights
              say; its leaves become [num_steps + 1, ...].

    >>> maml_plus_plus_init([torch.zeros(2)], num_steps=2, lr=0.5).hparams.lr
    [tensor([0.5000, 0.5000])]
    """
    rates = tree.map(lambda p: p.new_full((num_steps,), lr), params)
    rows = tree.map(lambda p: torch.stack([p] * (num_steps + 1)), per_step)
    return Meta(params, SGDHParams(lr=rates), (rows,))


def multi_step_weights(num_steps: int, progress: float) -> Tensor:
    """w [J]: what the loss after each step weighs; equal at first, 0.03/J for all but the last at the end.

    ::

        w_j = max(1/J − p/J, 0.03/J) for j < J,    w_J = 1 − Σ_{j<J} w_j

    Args: progress: p >= 0, the fraction of the annealing that has passed.
    Source: Antoniou et al. 2019, arXiv:1810.09502, "multi-step loss optimization"; the floor is their code's.

    >>> multi_step_weights(4, 0.0), multi_step_weights(2, 0.5)
    (tensor([0.2500, 0.2500, 0.2500, 0.2500]), tensor([0.2500, 0.7500]))
    """
    check_at_least("multi_step_weights(num_steps)", num_steps, 1)
    if not progress >= 0:
        raise ArgumentError("multi_step_weights(progress)", "a number >= 0", repr(progress))
    early = max(1 - progress, 0.03) / num_steps
    return torch.tensor([early] * (num_steps - 1) + [1 - early * (num_steps - 1)])


def _check(meta: Any, weights: Tensor, num_steps: int) -> None:
    if not isinstance(meta, Meta) or len(meta.phi) != 1:
        remedy = "Start from maml_plus_plus_init(params, num_steps)."
        raise ArgumentError("maml_plus_plus(meta_params)", "a Meta", type(meta).__name__, remedy=remedy)
    rows = tree.axis_size("maml_plus_plus(meta_params.hparams.lr)", meta.hparams.lr, noun="steps")
    for what, found in (("meta_params.hparams.lr", rows), ("weights", len(weights))):
        if found != num_steps:
            raise StructureError(f"maml_plus_plus({what})", f"{num_steps} steps on axis 0", str(found))


def maml_plus_plus(
    loss_fn: LossFn,
    num_steps: int = 5,
    *,
    query_loss_fn: Callable[..., Any] | None = None,
    order: Order = 2,
) -> Callable[..., Any]:
    """MAML++: rates, losses and norms a step, order annealed, ``(meta_params, episode, weights) -> loss []``.

    ::

        θ_{j+1} = θ_j − α_j ∘ ∇ℓ(θ_j, support, ψ_j)        α a leaf and step, ψ a step
        L = Σ_{j=1}^{J} w_j ℓ(θ_j, query, ψ_j)

    Derivative-order annealing is ``order=1`` for the first part of training and 2 after it; the cosine
    schedule is the outer optimizer's.

    Args: loss_fn: ``(params, batch, psi) -> []``; with ``buffers`` as in `inner_step`.
          num_steps: J >= 1.
          query_loss_fn: ``(params, batch, psi) -> tree``, (loss, score) say, of which every leaf is weighed.
          order: as in `unroll`.
    Returns: a pure function for `map_tasks(in_dims=(None, 0, None))`; ``meta_params`` from
             `maml_plus_plus_init`, ``weights`` [J] from `multi_step_weights`. With buffers as a fourth
             argument (``functional(module, batch_norm="per_step")``) it returns (loss, buffers).
    Raises: ArgumentError if num_steps < 1; as `inner_step`.
    Cost: MAML's, and J−1 forward and backward passes of the query.
    Source: Antoniou et al. 2019, arXiv:1810.09502, section 4.

    >>> import metaopt as mo
    >>> task_loss = mo.maml_plus_plus(lambda p, b, _: (p - b) ** 2, num_steps=2)
    >>> meta = mo.algorithms.maml_plus_plus_init(torch.tensor(8.0), 2, lr=0.25)
    >>> task_loss(meta, mo.Episode(torch.tensor(0.0), torch.tensor(0.0)), torch.tensor([0.5, 0.5]))  # 4, 2
    tensor(10.)
    """
    check_at_least("maml_plus_plus(num_steps)", num_steps, 1)
    judge, opt = query_loss_fn or loss_fn, sgd()

    def task_loss(meta: Meta, episode: Any, weights: Tensor, buffers: Any = None) -> Any:
        _check(meta, weights, num_steps)
        (support, query), (psi,) = episode, meta.phi
        params, losses = meta.params, []
        for j in range(num_steps):
            hparams = SGDHParams(lr=tree.index(meta.hparams.lr, j))
            params, _, _, *moved = inner_step(
                loss_fn,
                opt,
                params,
                opt.init(params),
                support,
                hparams,
                (tree.index(psi, j),),
                order=order,
                buffers=buffers,
            )
            buffers = moved[0] if moved else None
            threaded: Any = {} if buffers is None else {"buffers": buffers}
            with exact():
                judged = judge(params, query, tree.index(psi, j + 1), **threaded)
            losses.append(judged if buffers is None else judged[0])
        total = tree.map(lambda *ls: weights.to(ls[0]) @ torch.stack(ls), *losses)
        return total if buffers is None else (total, judged[1])

    return task_loss
