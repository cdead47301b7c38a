"""The outer loop of a bilevel problem, by any hypergradient estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import check_at_least
from metaopt.hypergrad import Problem, unrolled
from metaopt.hypergrad._differentiate import fill
from metaopt.progress import progress
from metaopt.step import check_optimizer
from metaopt.types import Hypergrad, Optimizer

__all__ = ["Bilevel", "bilevel"]


class Bilevel(NamedTuple):
    """What an outer loop leaves behind.

    ``phi`` after the last update; ``params`` θ_J of the last estimate; ``values`` [update], the outer
    loss before each update.
    """

    phi: Any
    params: Any
    values: Tensor


def bilevel(
    problem: Problem,
    phi: Any,
    opt: Optimizer,
    num_updates: int,
    *,
    estimator: Callable[[Problem, Any], Hypergrad] = unrolled,
    project: Callable[[Any], Any] | None = None,
    warm_start: bool = False,
) -> Bilevel:
    """Minimise the outer loss over φ by projected gradient descent.

    ::

        φ ← Π(opt(φ, dF/dφ)),   F(φ) = outer_loss(θ_J(φ), φ)

    Args: problem: the inner problem; `hyper_cleaning` and its siblings make one.
          phi: φ, initial parameters or a Meta; its floating-point tensors are learned.
          opt: the outer optimizer; ``metaopt.optim.adam(0.1)``, say.
          num_updates: outer steps >= 0.
          estimator: ``(problem, phi) -> Hypergrad``, of `metaopt.hypergrad`; bind its options with
              functools.partial. Its aux holds ``params``, as all but es and pes have it.
          project: Π, from φ to φ; the identity where None.
          warm_start: each inner loop starts where the one before has ended, not at ``problem.params``:
              the alternating descent that goes with ``implicit``.
    Returns: Bilevel(phi, params, values). No derivative runs through it: what comes in is detached.
    Raises: ArgumentError if num_updates is negative; whatever the estimator raises.
    Cost: ``num_updates`` estimates; memory of one.
    Source: Franceschi et al. 2017, arXiv:1703.01785; Lorraine et al. 2020, arXiv:1911.02590, Algorithm 1.

    >>> import metaopt as mo
    >>> problem = mo.hypergrad.Problem(lambda p, b: (p - b) ** 2, mo.optim.sgd(0.1), torch.tensor(3.0), 1)
    >>> mo.bilevel(problem, torch.tensor(0.0), mo.optim.sgd(0.5), 20).phi
    tensor(3.)
    """
    check_optimizer("bilevel(opt)", opt)
    check_at_least("bilevel(num_updates)", num_updates, 0)
    phi = tree.detach(phi)
    params, values = problem.params, []
    index = [i for i, x in enumerate(tree.leaves(phi)) if isinstance(x, Tensor) and x.is_floating_point()]

    def learned(values: Any) -> list[Tensor]:
        leaves = tree.leaves(values)
        return [leaves[i] for i in index]

    state = opt.init(learned(phi))
    for _ in progress(range(num_updates), "bilevel"):
        grad, value, aux = estimator(problem, phi)
        new, state = opt.update(learned(phi), state, learned(grad), opt.hparams)
        phi = fill(phi, index, new) if project is None else project(fill(phi, index, new))
        params = aux.params
        if warm_start:
            problem = problem._replace(params=params)
        values.append(value)
    return Bilevel(phi, params, torch.stack(values) if values else torch.zeros(0))
