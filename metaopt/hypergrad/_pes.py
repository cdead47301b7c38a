"""Evolution strategies on windows of the inner loop: PES, ES-Single, and the truncated ES they correct."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, is_count
from metaopt.hypergrad._differentiate import is_plain
from metaopt.hypergrad._es import check_samples, check_sigma, draw, estimate, perturbed
from metaopt.hypergrad._problem import Problem, complete, count_steps, rollout
from metaopt.types import Hypergrad

__all__ = ["Particles", "Windows", "es_single", "pes", "truncated_es"]

Memory = Literal["sum", "shared", "none"]


class Particles(NamedTuple):
    """Where the inner loops of N mirrored pairs stand: pass it on to go on with the next windows.

    ``carries`` (params, state) of each sign, [sample, ...]; ``noise`` [sample, ...] like φ, what the
    estimator remembers of its perturbations; ``start`` the next step.
    """

    carries: Any
    noise: Any
    start: Tensor


class Windows(NamedTuple):
    """``values`` [window], shares of the outer value; ``stderr`` like φ; ``particles`` to go on with."""

    values: Tensor
    stderr: Any
    particles: Particles


def pes(
    problem: Problem,
    phi: Any,
    *,
    window: int,
    sigma: float = 0.1,
    num_samples: int = 64,
    noise: Any = None,
    particles: Particles | None = None,
    num_windows: int | None = None,
    chunk_size: int | None = None,
) -> Hypergrad:
    """Persistent evolution strategies: unbiased from truncated windows.

    ::

        ξ_w = Σ_{v ≤ w} ε_v,    ĝ = 1/N Σ_i Σ_w (F_w⁺ − F_w⁻) ξ_w / 2σ

    F_w is the share of window w in the outer value; each window perturbs φ anew, each pair keeps its own
    θ, and ξ accounts for the perturbations that led there. E ĝ is the gradient of the outer value
    smoothed over independent ε in each window. Set ``outer_every`` in the problem for windows to have
    shares; else only the last has.

    Args: problem, phi, sigma, num_samples, chunk_size: as in `es_antithetic`.
          window: steps of a window, a divisor of J.
          noise: ε [sample, window, ...] like φ.
          particles: ``aux.particles`` of the estimate before, to go on from; the start where None.
          num_windows: windows to process now; all that remain where None.
    Returns: Hypergrad(grad, value, aux Windows); grad and value sum over the windows processed.
    Raises: ArgumentError; DivergenceError.
    Cost: 2N inner loops forward in all, one window's at a time; N pairs of carries.
    Source: Vicol et al. 2021, arXiv:2112.13835, Algorithm 2.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=2)
    >>> torch.round(pes(problem, torch.tensor(4.0), window=2, noise=torch.tensor([[1.0]])).grad, decimals=5)
    tensor(0.2500)
    """
    options = (window, sigma, num_samples, noise, particles, num_windows, chunk_size)
    return _run("pes", "sum", problem, phi, *options)


def es_single(
    problem: Problem,
    phi: Any,
    *,
    window: int,
    sigma: float = 0.1,
    num_samples: int = 64,
    noise: Any = None,
    particles: Particles | None = None,
    num_windows: int | None = None,
    chunk_size: int | None = None,
) -> Hypergrad:
    """ES-Single: one perturbation along the whole episode, from truncated windows.

    ::

        ĝ = 1/N Σ_i Σ_w (F_w⁺ − F_w⁻) ε_i / 2σ

    Unbiased for the loss smoothed as in `es_antithetic`, to which it sums up over an episode, with a
    variance that does not grow with the number of windows as that of `pes`.

    Args: as in `pes`; ``noise`` [sample, 1, ...] like φ.
    Returns, Raises, Cost: as `pes`.
    Source: Vicol 2023, ICML, "Low-Variance Gradient Estimation in Unrolled Computation Graphs with
            ES-Single", arXiv:2304.11153.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=2)
    >>> es_single(problem, torch.tensor(4.0), window=1, noise=torch.tensor([[1.0]])).grad
    tensor(0.2500)
    """
    options = (window, sigma, num_samples, noise, particles, num_windows, chunk_size)
    return _run("es_single", "shared", problem, phi, *options)


def truncated_es(
    problem: Problem,
    phi: Any,
    *,
    window: int,
    sigma: float = 0.1,
    num_samples: int = 64,
    noise: Any = None,
    particles: Particles | None = None,
    num_windows: int | None = None,
    chunk_size: int | None = None,
) -> Hypergrad:
    """Truncated ES: each window answers for its own perturbation alone. Biased, and here to show it.

    ::

        ĝ = 1/N Σ_i Σ_w (F_w⁺ − F_w⁻) ε_w / 2σ

    Args, Returns, Raises, Cost: as `pes`.
    Source: Metz et al. 2019, arXiv:1810.10180; its bias: Vicol et al. 2021, arXiv:2112.13835.

    >>> import torch, metaopt as mo
    >>> problem = Problem(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), num_steps=2)
    >>> truncated_es(problem, torch.tensor(4.0), window=2, noise=torch.tensor([[1.0]])).grad
    tensor(0.2500)
    """
    options = (window, sigma, num_samples, noise, particles, num_windows, chunk_size)
    return _run("truncated_es", "none", problem, phi, *options)


def _run(
    where: str,
    memory: Memory,
    problem: Problem,
    phi: Any,
    window: int,
    sigma: float,
    num_samples: int,
    noise: Any,
    particles: Particles | None,
    num_windows: int | None,
    chunk_size: int | None,
) -> Hypergrad:
    check_sigma(where, sigma)
    total = count_steps(problem)
    if not is_count(window) or total % window:
        raise ArgumentError(f"{where}(window)", f"a divisor of num_steps={total}", repr(window))
    first = 0 if particles is None else int(particles.start)
    left = (total - first) // window
    count = left if num_windows is None else num_windows
    if not is_count(count) or count > left:
        raise ArgumentError(f"{where}(num_windows)", f"1 to the {left} windows left", repr(num_windows))
    rows = _noise(where, phi, num_samples, 1 if memory == "shared" else count, noise)
    plain = is_plain(phi, problem.batch, problem.outer_batch, problem.params)

    def advance(start: int, sign: float, some: Any, carry: Any) -> tuple[Tensor, Any]:
        meta = complete(where, problem, perturbed(phi, some, sign * sigma))
        params, state = (None, None) if carry is None else carry
        out = rollout(problem, meta, start, start + window, params, state)
        return out.value, (out.params, out.state)

    shares, terms = [], []
    carries: Any = None if particles is None else particles.carries
    kept: Any = None if particles is None else particles.noise
    with torch.no_grad() if plain else contextlib.nullcontext():
        for w in range(count):
            fresh = tree.map(lambda x, w=w: x[:, min(w, x.shape[1] - 1)], rows)
            if memory == "shared":
                fresh = fresh if kept is None else kept
            kept = tree.add(kept, fresh) if memory == "sum" and kept is not None else fresh
            values, moved = [], []
            for side, sign in enumerate((1.0, -1.0)):
                carry = None if carries is None else carries[side]
                value, carry = _mapped(advance, first + w * window, sign, fresh, carry, chunk_size)
                check_samples(where, value)
                values.append(value)
                moved.append(carry)
            carries = tuple(moved)
            up, down = values
            slope = (up - down) / (2 * sigma)
            terms.append(tree.map(lambda e, g=slope: e * g.reshape(-1, *[1] * (e.ndim - 1)), kept))
            shares.append(((up + down) / 2).mean())
        per_sample = tree.map(lambda *gs: torch.stack(gs).sum(0), *terms)
        grad, stderr = estimate(phi, per_sample, torch.ones_like(slope))
    now = Particles(carries, kept, torch.tensor(first + count * window))
    return Hypergrad(grad, torch.stack(shares).sum(), Windows(torch.stack(shares), stderr, now))


def _mapped(
    advance: Any, start: int, sign: float, fresh: Any, carry: Any, chunk_size: int | None
) -> tuple[Tensor, Any]:
    """``advance`` over the sample axis of the noise and of the carry."""
    leaves, structure = tree.flatten((fresh, carry))
    shape: list[tree.Structure] = []

    def flat(*xs: Tensor) -> Any:
        value, moved = advance(start, sign, *tree.unflatten(structure, xs))
        found, out = tree.flatten(moved)
        shape[:] = [out]
        return value, found

    value, found = torch.vmap(flat, chunk_size=chunk_size, randomness="different")(*leaves)
    return value, tree.unflatten(shape[0], found)


def _noise(where: str, phi: Any, num_samples: int, windows: int, given: Any) -> Any:
    """[sample, window, ...] like φ."""
    if given is None:
        flat = draw(where, phi, num_samples * windows, None)
        return tree.map(lambda x: x.reshape(num_samples, windows, *x.shape[1:]), flat)
    drawn = draw(where, phi, num_samples, given)
    found = tree.axis_size(f"{where}(noise)", drawn, 1, "windows")
    if found != windows:
        raise ArgumentError(f"{where}(noise)", f"{windows} windows on axis 1", str(found))
    return drawn
