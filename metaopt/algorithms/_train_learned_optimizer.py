"""Meta-training of an optimizer over a distribution of tasks, window after window."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.algorithms._episodes import Inner, advance, begin, renew, spread
from metaopt.algorithms._optimization_tasks import OptimizationTasks
from metaopt.algorithms._windows import pes_window, truncated_window
from metaopt.errors import ArgumentError, check_at_least, is_count
from metaopt.hypergrad._differentiate import fill, moving
from metaopt.optim._adam import adam
from metaopt.optim._chain import chain
from metaopt.optim._clip import clip_by_global_norm
from metaopt.progress import progress
from metaopt.step import check_optimizer, check_order
from metaopt.types import Optimizer

__all__ = ["MetaCarry", "TrainedOptimizer", "train_learned_optimizer"]


class MetaCarry(NamedTuple):
    """Where meta-training stands: pass it on to go on.

    ``inner`` the tasks under way, of each sign with PES; ``noise`` ξ [task, ...] like φ; ``step`` the
    number of meta-steps taken; ``meta_state`` the outer optimizer's.
    """

    inner: tuple[Inner, ...]
    noise: Any
    step: int
    meta_state: Any


class TrainedOptimizer(NamedTuple):
    """The learned ``hparams`` φ; ``losses`` [meta-step], mean over tasks and window; ``carry``."""

    hparams: Any
    losses: Tensor
    carry: MetaCarry


def train_learned_optimizer(
    opt: Optimizer,
    tasks: OptimizationTasks,
    *,
    meta_steps: int,
    num_steps: int = 100,
    window: int = 20,
    num_tasks: int = 16,
    hparams: Any = None,
    estimator: Literal["truncated", "pes"] = "truncated",
    sigma: float = 0.01,
    objective: Any = torch.mean,
    order: Literal[1, 2] = 1,
    meta_opt: Optimizer | None = None,
    seed: int = 0,
    carry: MetaCarry | None = None,
) -> TrainedOptimizer:
    """Train φ over a vmapped distribution of tasks, each at a phase of its own.

    ::

        θ_i, s_i, F_i ← window of steps from (θ_i, s_i) with φ,   F_i = objective(ℓ after each step)
        φ ← meta_opt(φ, ĝ)
        tasks that have made num_steps start again as new ones

    truncated: ĝ = mean_i ∂F_i/∂φ, the carry a constant. pes: each task is a pair φ ± ε with the noise
    ξ_i = Σ ε of its episode, ĝ = mean_i (F_i⁺ − F_i⁻) ξ_i / 2σ², unbiased whatever the window. The first
    episodes are cut at a random length, so that at any time the tasks are spread over all phases.

    Args: opt: the optimizer to train: every floating-point tensor of its hparams is learned.
          tasks: what to train it on.
          meta_steps: windows to process.
          num_steps: steps of an episode, a multiple of ``window``.
          window: steps between two updates of φ.
          num_tasks: tasks, or pairs, in a batch.
          hparams: φ to start from; ``opt.hparams`` where None.
          sigma: σ of the noise.
          objective: ``(losses [window]) -> []``; ``lambda l: l.log().mean()`` weighs all scales alike.
          order: 1 takes the inner gradient for a constant of φ, as Andrychowicz et al. do; 2 does not.
          meta_opt: of φ's tensors, a list; by default Adam with 1e-3 behind a clipping by the norm 1.
          carry: ``TrainedOptimizer.carry`` to go on from, with its hparams.
    Returns: TrainedOptimizer. A task whose loss is not finite adds nothing and starts again.
    Raises: ArgumentError.
    Cost: a meta-step is ``num_tasks`` unrolls of a window; memory of one window's graph, or none with PES.
    Source: Andrychowicz et al. 2016, arXiv:1606.04474; Vicol et al. 2021, arXiv:2112.13835, Algorithm 2;
            phases: Metz et al. 2022, arXiv:2203.11860.

    >>> import metaopt as mo
    >>> opt, tasks = mo.learned_lstm(), mo.quadratics(dim=2)
    >>> out = train_learned_optimizer(opt, tasks, meta_steps=3, window=5, num_steps=10)
    >>> out.losses.shape
    torch.Size([3])
    """
    _check(num_steps, window, estimator, sigma, meta_steps)
    check_optimizer("train_learned_optimizer(opt)", opt)
    check_order("train_learned_optimizer(order)", order)
    outer = meta_opt or chain(clip_by_global_norm(1.0), adam(1e-3))
    check_optimizer("train_learned_optimizer(meta_opt)", outer)
    start = opt.hparams if hparams is None else hparams
    index, leaves, _ = moving("train_learned_optimizer", start)
    phi = [leaves[i].detach().clone() for i in index]
    estimate = truncated_window if estimator == "truncated" else partial(pes_window, sigma=sigma)

    def run(phi: list[Tensor], inner: Inner) -> tuple[Tensor, Inner]:
        return advance(tasks, opt, fill(start, index, phi), inner, window, objective, order)

    if carry is None:
        first = spread(begin(tasks, opt, num_tasks, seed, 0), num_steps, window, seed)
        xi = [x.new_zeros(num_tasks, *x.shape) for x in phi]
        carry = MetaCarry((first,) * (1 + (estimator == "pes")), xi, 0, outer.init(phi))
    losses = []
    for step in progress(range(carry.step + 1, carry.step + 1 + meta_steps), "train_learned_optimizer"):
        grad, value, inner, xi = estimate(run, phi, carry.inner, carry.noise, _key(seed, step))
        phi, meta_state = outer.update(phi, carry.meta_state, grad, outer.hparams)
        phi, finite = tree.detach(phi), value.isfinite()
        losses.append(value[finite].mean())
        done = (inner[0].age >= num_steps) | ~finite
        if bool(done.any()):
            new = begin(tasks, opt, num_tasks, seed, step)
            inner, xi = renew(done, ((new,) * len(inner), tree.zeros_like(xi)), (inner, xi))
        carry = MetaCarry(inner, xi, step, meta_state)
    mean = torch.stack(losses) if losses else torch.zeros(0)
    return TrainedOptimizer(fill(start, index, phi), mean, carry)


def _key(seed: int, step: int) -> int:
    """The seed of a meta-step's noise."""
    return (seed * 1_000_003 + step) % 2**31


def _check(num_steps: Any, window: Any, estimator: Any, sigma: Any, meta_steps: Any) -> None:
    if not is_count(window) or num_steps % window:
        expected = f"a divisor of num_steps={num_steps}"
        raise ArgumentError("train_learned_optimizer(window)", expected, repr(window))
    if estimator not in ("truncated", "pes"):
        raise ArgumentError("train_learned_optimizer(estimator)", "'truncated' or 'pes'", repr(estimator))
    if estimator == "pes" and not sigma > 0:
        raise ArgumentError("train_learned_optimizer(sigma)", "a number > 0", repr(sigma))
    check_at_least("train_learned_optimizer(num_steps)", num_steps, 1)
    check_at_least("train_learned_optimizer(meta_steps)", meta_steps, 0)
