"""First-order model-agnostic meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaopt.algorithms._maml import maml
from metaopt.types import LossFn, Optimizer

__all__ = ["fomaml"]


def fomaml(
    loss_fn: LossFn,
    opt: Optimizer,
    num_steps: int = 1,
    *,
    query_loss_fn: Callable[..., Any] | None = None,
    per_step_hparams: bool = False,
) -> Callable[..., Any]:
    """First-order MAML: inner gradients are constants, ``(meta_params, episode) -> query loss []``.

    ::

        θ_{j+1} = θ_j − α stop(∇ℓ(θ_j, support))
        dℓ(θ_J, query)/dθ_0 = ∇ℓ(θ_J, query)

    Args: as in `maml`.
    Returns: a pure function for `map_tasks`.
    Raises: as `unroll`.
    Cost: J+1 forward and backward passes and memory of one; MAML's takes about twice that.
    Source: Finn et al. 2017, arXiv:1703.03400, section 5.2; Nichol et al. 2018, arXiv:1803.02999.

    >>> import torch, metaopt as mo
    >>> task_loss = mo.fomaml(lambda p, b: (p - b) ** 2 / 2, mo.optim.sgd(lr=0.5))
    >>> theta = torch.tensor(2.0, requires_grad=True)
    >>> task_loss(theta, mo.Episode(torch.tensor(0.0), torch.tensor(0.0))).backward()
    >>> theta.grad
    tensor(1.)
    """
    return maml(
        loss_fn,
        opt,
        num_steps,
        query_loss_fn=query_loss_fn,
        per_step_hparams=per_step_hparams,
        order=1,
    )
