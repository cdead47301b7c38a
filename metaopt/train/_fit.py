"""The outer loop as a function of any meta-loss and any optimizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metaopt import optim, tree
from metaopt.errors import ArgumentError, DivergenceError
from metaopt.optim.schedule import Schedule
from metaopt.train._distributed import from_first, ranks, sum_over_ranks
from metaopt.train._estimate import Estimate, Estimator, by_autograd, over_ranks
from metaopt.train._fit_checks import check_carry, check_fit, sampler_of, scheduled_hparams
from metaopt.train._progress import Progress, interruptible
from metaopt.train._randomness import drawing
from metaopt.train._run import Resume, Run, Store, Watch
from metaopt.train._shards import gather_params, placed_like
from metaopt.train._writers import JSONLWriter, Writer
from metaopt.types import Optimizer

__all__ = ["Fitted", "Step", "fit"]


class Step(NamedTuple):
    """What a callback sees after an outer step: ``line`` holds the numbers that are logged."""

    step: int
    run: Run
    losses: Tensor
    scores: dict[str, Tensor]
    line: dict[str, float]


class Fitted(NamedTuple):
    """What `fit` returns.

    ``stopped`` is "done", "early", "callback" or "interrupted"; ``notes`` say what was out of order, a
    damaged checkpoint that was passed over say.
    """

    meta_params: Any
    run: Run
    step: int
    stopped: str
    notes: tuple[str, ...]


def fit(
    meta_loss: Callable[[Any, Any], Any] | Estimator,
    meta_params: Any,
    tasks: Any = None,
    opt: Optimizer | None = None,
    *,
    num_steps: int,
    meta_batch: int | None = None,
    seed: int = 0,
    hparams: Any = None,
    schedule: Schedule | None = None,
    clip: float = 0.0,
    chunk_size: int | None = None,
    autocast: torch.dtype | None = None,
    on_nan: Literal["stop", "skip"] = "stop",
    validate: Callable[[Any], float | dict[str, float]] | None = None,
    validate_every: int = 0,
    patience: int = 0,
    callbacks: Sequence[Callable[[Step], Any]] = (),
    writers: Sequence[Writer] = (),
    out: Path | str | None = None,
    resume: Resume = False,
    checkpoint_every: int = 200,
    about: Any = None,
    progress: bool = False,
) -> Fitted:
    """Meta-train: sample episodes, take an outer step, log, checkpoint, go on where it stopped.

    ::

        φ ← opt(φ, clip(∇ mean over tasks of ℓ(φ, episode)))

    Every step is a function of the run's state and of (seed, step) alone: it seeds torch's, Python's and
    numpy's generators anew. A run that was killed and resumed therefore ends in the same bytes as one
    that was not. Under torchrun the tasks are shared out over the ranks and the gradient is reduced once;
    rank 0 writes, and callbacks are called on every rank. With ``map_tasks(seed=)`` a task's dropout and
    noise too are the same for any number of ranks and any ``chunk_size``; without it ranks draw their own.

    Args: meta_loss: ``(meta_params, episodes) -> losses [task]``, as `map_tasks` makes it, or ``(losses,
              scores)`` with scores a dict of [task]; or an `Estimator`.
          meta_params: any tree of floating-point tensors; it is not written to.
          tasks: what has ``sample(num_tasks, seed, step)``, or ``step -> episodes``; None for an Estimator
              that needs none. With ``state_dict`` and ``load_state_dict`` its position is saved too.
          opt: the outer Optimizer; Adam where None.
          num_steps: outer steps in all, those of resumed runs among them.
          meta_batch: tasks of a step, for ``tasks.sample``.
          hparams: of the optimizer; its own where None.
          schedule: a factor of ``hparams.lr`` at step t = 0, 1, …
          clip: largest norm of the outer gradient; 0: any.
          chunk_size, autocast: as in `by_autograd`: tasks in memory at a time, and torch.bfloat16.
          on_nan: "stop" raises, naming step, task or leaf; "skip" leaves the run as it is and counts.
          validate: ``meta_params -> value`` to be small, or a dict whose first value is monitored, every
              ``validate_every`` steps and after the last. The best goes to ``out/best.pt``.
          patience: validations without a better value before the run stops; 0: any number.
          callbacks: ``Step -> None``; one that returns True stops the run after this step.
          writers: where the numbers go; ``out/metrics.jsonl`` besides, where there is a folder.
          out: folder for checkpoints; none are written where None.
          resume: True goes on from the checkpoint; "auto" starts where there is none.
          about: a dict for json, kept in the checkpoint.
    Returns: Fitted.
    Raises: ArgumentError; StructureError; CheckpointError; DivergenceError where a number stops being finite.
    Cost: the estimate's; one all-reduce a step.

    >>> import metaopt as mo
    >>> task_loss = mo.maml(lambda p, b: (p - b) ** 2 / 2, mo.optim.sgd(lr=0.5))
    >>> draw = lambda step: mo.Episode(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0]))
    >>> fitted = fit(mo.map_tasks(task_loss), torch.tensor(0.0), draw, mo.optim.sgd(lr=1.0), num_steps=60)
    >>> fitted.meta_params.round(decimals=4)
    tensor(2.)
    """
    opt = optim.adam() if opt is None else opt
    check_fit(locals())
    out = None if out is None else Path(out)
    estimator = meta_loss
    if not isinstance(estimator, Estimator):
        estimator = by_autograd(estimator, chunk_size=chunk_size, autocast=autocast)
    hparams_at = scheduled_hparams(opt.hparams if hparams is None else hparams, schedule)
    draw, sampler_state, set_sampler = sampler_of(tasks, meta_batch, seed)
    store = Store(out, about)
    run, first = store.open(start_run(meta_params, opt, estimator.carry, sampler_state()), resume)
    set_sampler(run.sampler)
    here = ranks()
    own: list[Writer] = [] if out is None else [JSONLWriter(out / "metrics.jsonl")]
    logs = [*own, *writers] if here.rank == 0 else []
    shown = Progress(first, num_steps, progress and here.rank == 0)
    notes, step, stopped = [store.note] if store.note else [], first, "done"
    with ExitStack() as stack:
        stack.enter_context(shown.bar)
        asked = stack.enter_context(interruptible())
        for log in logs:
            log.begin(first)
            stack.callback(log.close)
        for note in notes:
            shown.say(note)
        if first == 0:
            store.save(0, run)
        for step in range(first + 1, num_steps + 1):
            with drawing(seed, step):
                episodes = draw(step)
            with drawing(seed, step, here.rank):
                whole = gather_params(run.learned)
                found, interrupted = over_ranks(estimator, asked, whole, episodes, step - 1, run.carry)
            run = _outer_step(opt, hparams_at(step - 1), clip, on_nan, run, found, step)
            run = run._replace(sampler=sampler_state())
            line = {"loss": found.losses.double().mean().item()}
            line |= {k: v.double().mean().item() for k, v in found.scores.items()}
            if int(run.watch.skipped):
                line["skipped"] = int(run.watch.skipped)
            if validate is not None and (step % validate_every == 0 or step == num_steps):
                with drawing(seed, step, "validate"):
                    values = _agreed(validate(gather_params(run.learned)))
                line |= {f"val_{k}": v for k, v in values.items()}
                run, better = _watched(run, next(iter(values.values())))
                if better:
                    store.save(step, run, best=True)
                if patience and int(run.watch.stale) >= patience:
                    stopped = "early"
            for log in logs:
                log.write(step, line)
            shown.step(step, len(found.losses), line)
            event = Step(step, run, found.losses, found.scores, line)
            if callbacks and _any_rank([callback(event) is True for callback in callbacks]):
                stopped = "callback"
            if interrupted and step < num_steps:
                stopped = "interrupted"
            if step % checkpoint_every == 0 or step == num_steps or stopped != "done":
                for log in logs:
                    log.flush()
                store.save(step, run)
            if stopped != "done":
                break
    return Fitted(tree.detach(run.learned), run, step, stopped, tuple(notes))


def start_run(meta_params: Any, opt: Optimizer, carry: Any = (), sampler: Any = ()) -> Run:
    """The run before its first step, with meta-parameters of its own."""
    learned = tree.map(lambda p: p.detach().clone().requires_grad_(), meta_params)
    return Run(learned, opt.init(learned), carry, sampler, Watch.new())


def _outer_step(
    opt: Optimizer, hparams: Any, clip: float, on_nan: str, run: Run, found: Estimate, step: int
) -> Run:
    """φ ← opt(φ, clip(g)), or the run as it is where g or a loss is not finite."""
    check_carry(found.carry, run.carry)
    fault = _fault(found, run.learned)
    if fault is not None:
        if on_nan == "stop":
            remedy = "Lower the step sizes, clip, or skip such steps; the last checkpoint stands."
            raise DivergenceError(f"fit(step {step})", *fault, remedy=remedy)
        return run._replace(watch=run.watch._replace(skipped=run.watch.skipped + 1))
    with torch.no_grad():
        grads = found.grads
        if clip:  # g · min(1, c / ‖g‖)
            norm = tree.global_norm(grads)
            grads = tree.scale(grads, torch.where(norm > clip, clip / norm, 1.0))
        grads = tree.map(placed_like, grads, run.learned)
        learned, outer = opt.update(run.learned, run.outer, grads, hparams)
    learned = tree.map(lambda x: x.detach().requires_grad_(), learned)
    return run._replace(learned=learned, outer=outer, carry=tree.detach(found.carry))


def _fault(found: Estimate, learned: Any) -> tuple[str, str, str] | None:
    """What is not finite, as (expected, got, at)."""
    if not bool(torch.isfinite(found.losses).all()):
        task = int((~torch.isfinite(found.losses)).nonzero()[0])
        return "a finite loss", str(found.losses[task].item()), f"task {task}"
    total = torch.stack([g.sum() for g in tree.leaves(found.grads)]).sum()
    if bool(torch.isfinite(total)):
        return None
    for path, g in zip(tree.paths(learned), tree.leaves(found.grads), strict=True):
        if not bool(torch.isfinite(g).all()):
            return "a finite meta-gradient", "NaN or inf", path or "meta_params"
    return None


def _agreed(values: float | dict[str, float]) -> dict[str, float]:
    """Rank 0's numbers, so that all ranks stop alike."""
    given = values if isinstance(values, dict) else {"loss": values}
    if not given:
        raise ArgumentError("fit(validate)", "a number, or a dict with one", "{}")
    for k, v in given.items():
        if not (v.numel() == 1 if isinstance(v, Tensor) else isinstance(v, (int, float))):
            raise ArgumentError("fit(validate)", "a number, or a dict of them", repr(v), str(k))
    mine = {str(k): float(v.detach() if isinstance(v, Tensor) else v) for k, v in given.items()}
    return json.loads(from_first(lambda: json.dumps(mine).encode()))


def _watched(run: Run, value: float) -> tuple[Run, bool]:
    better = value < float(run.watch.best)
    best = torch.tensor(value, dtype=torch.float64) if better else run.watch.best
    stale = torch.tensor(0) if better else run.watch.stale + 1
    return run._replace(watch=run.watch._replace(best=best, stale=stale)), better


def _any_rank(flags: list[bool]) -> bool:
    return bool(sum_over_ranks(torch.tensor(float(any(flags)))) > 0)
