"""Dataset distillation: a few learned examples that train a net in a few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import softplus

from metaopt import tree
from metaopt.errors import check_at_least
from metaopt.exact import exact
from metaopt.optim import sgd
from metaopt.types import LossFn
from metaopt.unroll import Memory, unroll

__all__ = ["Distilled", "distillation"]


class Distilled(NamedTuple):
    """The learned data set.

    ``inputs`` x̃ [step, example, ...] and ``targets`` ỹ [step, example, ...]; ``rates`` [step], the step
    sizes before softplus, which keeps them positive.
    """

    inputs: Tensor
    targets: Tensor
    rates: Tensor


def distillation(
    loss_fn: LossFn, *, epochs: int = 1, memory: Memory = "all"
) -> Callable[[Distilled, Any], Tensor]:
    """Return the loss of a distilled data set, ``(distilled, (θ_0, real batch)) -> []``.

    ::

        θ_{j+1} = θ_j − η̃_j ∇ℓ(θ_j, (x̃_j, ỹ_j)),    L(x̃, ỹ, η̃; θ_0) = ℓ(θ_J, real batch)

    The expectation over θ_0 is a mean over tasks: stack initialisations, and map.

    Args: loss_fn: ``(params, (inputs, targets)) -> []``.
          epochs: passes over the distilled steps, J = epochs · steps.
          memory: as in `unroll`.
    Returns: a pure function for `map_tasks`. Floating-point parts of `Distilled` may be learned:
             inputs and rates as in the paper, soft targets too.
    Raises: ArgumentError if epochs is not positive; StructureError if the parts disagree on the steps.
    Cost: J steps forward and backward on a handful of examples.
    Source: Wang et al. 2018, arXiv:1811.10959, Algorithm 1.

    >>> import torch, metaopt as mo
    >>> task_loss = mo.distillation(lambda p, b: ((p * b[0] - b[1]) ** 2).mean())
    >>> rates = torch.tensor([1 / 8]).expm1().log()  # softplus of it is 1/8: one step reaches θ = 3
    >>> one = Distilled(torch.tensor([[2.0]]), torch.tensor([[6.0]]), rates)
    >>> real = (torch.tensor([1.0, 5.0]), torch.tensor([3.0, 15.0]))
    >>> task_loss(one, (torch.tensor(0.0), real)).round(decimals=4)
    tensor(0.)
    """
    check_at_least("distillation(epochs)", epochs, 1)
    opt = sgd()

    def task_loss(distilled: Distilled, start: tuple[Any, Any]) -> Tensor:
        params, real = start
        steps = tree.axis_size("distillation(distilled)", distilled, noun="steps")
        order = [j for _ in range(epochs) for j in range(steps)]
        inputs, targets, rates = (x[order] for x in distilled)
        hparams = opt.hparams._replace(lr=softplus(rates))
        out = unroll(
            loss_fn, opt, params, (inputs, targets), None, hparams, per_step_hparams=True, memory=memory
        )
        with exact():
            return loss_fn(out.params, real)

    return task_loss
