"""Hyperparameters learned by descending their hypergradient over whole training runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, check_at_least
from metaopt.hypergrad import Problem, unrolled
from metaopt.hypergrad._differentiate import fill, moving
from metaopt.optim._adam import adam
from metaopt.progress import progress
from metaopt.step import check_optimizer
from metaopt.types import Hypergrad, Meta, Optimizer

__all__ = ["LearnedHParams", "learn_hparams"]

Coordinate = Literal["log", "logit", "linear"]
# the value that a coordinate z stands for, and back
VALUE: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.exp,
    "logit": torch.sigmoid,
    "linear": torch.clone,
}
BACK: dict[str, Callable[[Tensor], Tensor]] = {"log": torch.log, "logit": torch.logit, "linear": torch.clone}
RATES = {"lr": "log", "beta1": "logit", "beta2": "logit", "momentum": "logit"}


class LearnedHParams(NamedTuple):
    """``hparams`` as learned; ``values`` [meta-step], the outer loss before each."""

    hparams: Any
    values: Tensor


def learn_hparams(
    problem: Problem,
    hparams: Any = None,
    *,
    meta_steps: int,
    coordinates: Mapping[str, Coordinate] | None = None,
    meta_opt: Optimizer | None = None,
    estimator: Callable[[Problem, Any], Hypergrad] = unrolled,
) -> LearnedHParams:
    """Learn any hyperparameters of any optimizer: rates, betas, momentum, decay, a value a leaf or a step.

    ::

        φ = value(z),   ĝ = d outer_loss(θ_J(φ)) / dφ,   z ← meta_opt(z, (∂φ/∂z)ᵀ ĝ)

    Rates move on a log scale and stay positive; betas move as logits and stay in (0, 1).

    Args: problem: the training run, with ``params`` θ_0; ``per_step_hparams`` for schedules.
          hparams: φ to start from; ``problem.opt.hparams`` where None. Its tensors are learned, its
              numbers stay.
          meta_steps: outer steps.
          coordinates: field -> "log", "logit" or "linear". By default lr is "log", the betas and momentum
              are "logit", and the rest "linear".
          meta_opt: of z, a list; Adam with 0.05 where None.
          estimator: any of `metaopt.hypergrad`, with its options bound.
    Returns: LearnedHParams(hparams, values [meta_steps]).
    Raises: ArgumentError if nothing is to be learned, for a coordinate or a field that is not known, or for a
            value outside its coordinate's range: a rate of 0, which on a log scale would stay there.
    Cost: meta_steps hypergradients.
    Source: Bengio 2000, Neural Computation 12(8); Maclaurin et al. 2015, arXiv:1502.03492.

    >>> import metaopt as mo
    >>> lr = torch.tensor(0.1)
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=lr), (), 1, params=torch.tensor(1.0))
    >>> round(learn_hparams(problem, meta_steps=200).hparams.lr.item(), 2)
    1.0
    """
    check_at_least("learn_hparams(meta_steps)", meta_steps, 0)
    outer = meta_opt or adam(0.05)
    check_optimizer("learn_hparams(meta_opt)", outer)
    phi = problem.opt.hparams if hparams is None else hparams
    fields = list(map(_fields, tree.paths(phi)))
    scales, known = RATES | dict(coordinates or {}), {field for path in fields for field in path}
    for field, scale in scales.items():
        if scale not in ("log", "logit", "linear") or field not in known | RATES.keys():
            expected = f"'log', 'logit' or 'linear' for one of {', '.join(sorted(known))}"
            raise ArgumentError("learn_hparams(coordinates)", expected, f"{field}: {scale!r}")
    index, leaves, _ = moving("learn_hparams(hparams)", phi)
    kinds = [next((scales[f] for f in reversed(fields[i]) if f in scales), "linear") for i in index]

    def value_of(*z: Tensor) -> tuple[Tensor, ...]:
        return tuple(VALUE[kind](x) for kind, x in zip(kinds, z, strict=True))

    def whole(some: tuple[Tensor, ...]) -> Any:
        return fill(phi, index, some)

    z = [BACK[kind](leaves[i].detach()) for kind, i in zip(kinds, index, strict=True)]
    for i, kind, x in zip(index, kinds, z, strict=True):
        _check_inside(kind, x, leaves[i], tree.paths(phi)[i])
    state, values = outer.init(z), []
    for _ in progress(range(meta_steps), "learn_hparams"):
        some, pull, *_ = torch.func.vjp(value_of, *z)
        estimate = estimator(problem, Meta(None, whole(some)))
        found = tree.leaves(estimate.grad.hparams)
        z, state = outer.update(z, state, list(pull(tuple(found[i] for i in index))), outer.hparams)
        values.append(estimate.value)
    return LearnedHParams(whole(value_of(*z)), torch.stack(values) if values else torch.zeros(0))


def _check_inside(kind: str, z: Tensor, value: Tensor, path: str) -> None:
    """Raise where z is infinite: there it would stay."""
    if not z.isfinite().all():
        inside = "numbers > 0" if kind == "log" else "numbers inside (0, 1)"
        remedy = "Start inside, or learn it in the coordinate 'linear'."
        raise ArgumentError("learn_hparams(hparams)", inside, str(value.tolist()), path, remedy)


def _fields(path: str) -> list[str]:
    """The names in the path of a leaf: lr of ``[1].lr['weight']``."""
    return [name for name in re.sub(r"\[[^]]*\]", "", path).split(".") if name]
