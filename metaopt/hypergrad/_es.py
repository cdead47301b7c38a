"""Evolution strategies: hypergradients from values of the outer loss alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, DivergenceError, check_at_least
from metaopt.hypergrad._differentiate import is_plain, moving, shaped
from metaopt.hypergrad._problem import Problem, complete, rollout
from metaopt.peek import peek, readable
from metaopt.types import Hypergrad

__all__ = ["Sampled", "check_sigma", "draw", "es", "es_antithetic", "estimate", "noise", "perturbed"]


class Sampled(NamedTuple):
    """``values`` [sample], of which the estimate is made; ``stderr`` like φ, its standard error."""

    values: Tensor
    stderr: Any


def noise(phi: Any, num_samples: int, seed: int | None = None) -> Any:
    """Standard normal ε, a tree like φ with a leading sample axis; 0 where φ holds a constant.

    Args: seed: of a generator of its own; torch's global one where None.

    >>> noise(torch.zeros(2), 3, seed=0).shape
    torch.Size([3, 2])
    """
    check_at_least("noise(num_samples)", num_samples, 1)
    index, leaves, structure = moving("noise", phi)
    generator = None if seed is None else torch.Generator(leaves[index[0]].device).manual_seed(seed)
    drawn = [torch.zeros(num_samples, *(x.shape if isinstance(x, Tensor) else ())) for x in leaves]
    for i in index:
        x = leaves[i]
        shape = (num_samples, *x.shape)
        drawn[i] = torch.randn(shape, dtype=x.dtype, device=x.device, generator=generator)
    return tree.unflatten(structure, drawn)


def es(
    problem: Problem,
    phi: Any,
    *,
    sigma: float = 0.1,
    num_samples: int = 64,
    noise: Any = None,
    chunk_size: int | None = None,
) -> Hypergrad:
    """Evolution strategies: the gradient of the Gaussian-smoothed outer loss, without bias.

    ::

        ĝ = 1/N Σ_i (F(φ + σε_i) − F(φ)) ε_i / σ,    E ĝ = ∇ E_ε F(φ + σε)

    F(φ) is a control variate. No derivative of the inner loop is taken: F may be flat, rough, or chaotic.

    Args: problem, phi: as in `unrolled`.
          sigma: σ > 0.
          num_samples: N, mapped.
          noise: ε from `hypergrad.noise`, for common or reproducible draws; drawn here where None.
          chunk_size: samples held at a time.
    Returns: Hypergrad(grad, value F(φ), aux Sampled (values [N], stderr)).
    Raises: ArgumentError; DivergenceError where a sample is not finite.
    Cost: N+1 inner loops forward; memory of one for each sample held.
    Source: Rechenberg 1973; Salimans et al. 2017, arXiv:1703.03864.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=1)
    >>> unit = torch.tensor([1.0, -1.0])
    >>> es(problem, torch.tensor(4.0), noise=unit).grad.round(decimals=4)
    tensor(1.)
    """
    drawn, run = _sampler("es", problem, phi, sigma, num_samples, noise, chunk_size)
    base = run(tree.map(lambda x: x[:1] * 0, drawn))[0]
    values = run(drawn)
    grad, stderr = estimate(phi, drawn, (values - base) / sigma)
    return Hypergrad(grad, base, Sampled(values, stderr))


def es_antithetic(
    problem: Problem,
    phi: Any,
    *,
    sigma: float = 0.1,
    num_samples: int = 64,
    noise: Any = None,
    chunk_size: int | None = None,
) -> Hypergrad:
    """Evolution strategies with mirrored samples: even terms of F cancel.

    ::

        ĝ = 1/N Σ_i (F(φ + σε_i) − F(φ − σε_i)) ε_i / 2σ

    Args: as in `es`; N pairs.
    Returns: as `es`, with ``value`` the mean over the pairs, an estimate of the smoothed loss.
    Raises: as `es`.
    Cost: 2N inner loops forward.
    Source: Geweke 1988; Salimans et al. 2017, arXiv:1703.03864.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=1)
    >>> es_antithetic(problem, torch.tensor(4.0), noise=torch.tensor([1.0])).grad.round(decimals=4)
    tensor(1.)
    """
    drawn, run = _sampler("es_antithetic", problem, phi, sigma, num_samples, noise, chunk_size)
    up, down = run(drawn), run(tree.scale(drawn, -1.0))
    grad, stderr = estimate(phi, drawn, (up - down) / (2 * sigma))
    values = (up + down) / 2
    return Hypergrad(grad, values.mean(), Sampled(values, stderr))


def _sampler(
    where: str, problem: Problem, phi: Any, sigma: float, num_samples: int, noise: Any, chunk_size: int | None
) -> tuple[Any, Callable[[Any], Tensor]]:
    check_sigma(where, sigma)
    if chunk_size is not None:
        check_at_least(f"{where}(chunk_size)", chunk_size, 1)
    complete(where, problem, phi)
    drawn = draw(where, phi, num_samples, noise)

    def value(some: Any) -> Tensor:
        return rollout(problem, complete(where, problem, perturbed(phi, some, sigma))).value

    def run(drawn: Any) -> Tensor:
        plain = is_plain(phi, problem.batch, problem.outer_batch, problem.params)
        leaves, structure = tree.flatten(drawn)
        with torch.no_grad() if plain else contextlib.nullcontext():
            mapped = torch.vmap(
                lambda *xs: value(tree.unflatten(structure, xs)),
                chunk_size=chunk_size,
                randomness="different",
            )
            values = mapped(*leaves)
        check_samples(where, values)
        return values

    return drawn, run


def check_sigma(where: str, sigma: Any) -> None:
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not sigma > 0:
        raise ArgumentError(f"{where}(sigma)", "a number > 0", repr(sigma))


def check_samples(where: str, values: Tensor) -> None:
    """Raise DivergenceError where the value of a sample is not finite."""
    if not readable():
        return
    finite = peek(values)[0].isfinite()
    if not bool(finite.all()):
        at = (~finite).nonzero()[0].tolist()
        raise DivergenceError(
            f"{where}(problem)",
            "finite outer values",
            "nan or inf",
            at=f"sample {at[0]}" + (f" of task {at[1]}" if len(at) > 1 else ""),
            remedy="Lower sigma or the inner learning rate.",
        )


def draw(where: str, phi: Any, num_samples: int, given: Any) -> Any:
    """The noise that was given, checked, or fresh noise."""
    if given is None:
        return noise(phi, num_samples)
    tree.check_same(f"{where}(noise)", given, phi)
    tree.axis_size(f"{where}(noise)", given, noun="samples", remedy="Use metaopt.hypergrad.noise.")
    return given


def perturbed(phi: Any, some: Any, sigma: float) -> Any:
    """φ + σε, where φ is meta-learned."""
    index, leaves, structure = moving("es", phi)
    rows = tree.leaves(some)
    for i in index:
        leaves[i] = leaves[i] + sigma * rows[i]
    return tree.unflatten(structure, leaves)


def estimate(phi: Any, drawn: Any, weights: Tensor) -> tuple[Any, Any]:
    """(mean, standard error) of weight_i ε_i."""
    index, _, _ = moving("es", phi)
    rows, count = tree.leaves(drawn), weights.shape[0]
    terms = [weights.reshape(-1, *[1] * (rows[i].ndim - 1)) * rows[i] for i in index]
    means = [t.mean(0) for t in terms]
    spread = [((t - m) ** 2).sum(0) / max(count - 1, 1) / count for t, m in zip(terms, means, strict=True)]
    return shaped(phi, index, means), shaped(phi, index, [s.sqrt() for s in spread])
