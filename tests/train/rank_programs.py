"""What the processes of the distributed and of the kill tests run, forked from one that knows torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import metaopt as mo
from metaopt import train

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
SERVER = multiprocessing.get_context("forkserver")
# what torch imports at its first derivative or shard takes longer than the programs here
SERVER.set_forkserver_preload(["metaopt", "torch._dynamo", "torch.distributed.tensor", "tqdm.auto"])

TINY: dict[str, Any] = {"iterations": 12, "meta_batch": 5, "inner_steps": 2, "shot": 5, "query": 5}
TINY |= {"width": 8, "dtype": "float64"}


def run_tiny(out: Path, checkpoint_every: int = 3, resume: train.Resume = False, **options: Any) -> Any:
    """A few steps of the command's run; an odd number of tasks, so that shares are uneven."""
    config = train.config_for("sinusoid", **(TINY | options))
    problem = train.make_problem(config)
    return train.train(config, problem, out, progress=False, checkpoint_every=checkpoint_every, resume=resume)


def start(program: Callable[..., None], *args: Any) -> Any:
    """A process that runs ``program(*args)``."""
    process = SERVER.Process(target=program, args=args)
    process.start()
    return process


def on_ranks(size: int, folder: Path, program: Callable[..., Any], *args: Any) -> list[Any]:
    """Run ``program(*args)`` on ranks that meet at a file, and return what each returned."""
    folder.mkdir(exist_ok=True)
    processes = [start(_rank, r, size, folder, program, args) for r in range(size)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, f"a rank ended with {process.exitcode}"
    return [torch.load(folder / f"result{r}.pt", weights_only=False) for r in range(size)]


def _rank(rank: int, size: int, folder: Path, program: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    torch.save(program(*args), folder / f"result{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def trained(out: Path, **options: Any) -> dict[str, torch.Tensor]:
    """The parameters after a tiny run."""
    return mo.tree.detach(run_tiny(out, **options).meta_params.params)


def noisy(chunk_size: int | None = None) -> dict[str, torch.Tensor]:
    """The parameters after `fit` with dropout and noise in every inner step, of 5, 3 and 5 tasks."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.4), torch.nn.Linear(8, 1)).double()
    apply, params, _ = mo.functional(net)

    def draw(step: int) -> mo.Episode:
        x = torch.randn((5, 3, 5)[step - 1], 4, 3, dtype=torch.float64)
        return mo.Episode(x, x)

    def loss_fn(p: Any, x: torch.Tensor) -> torch.Tensor:
        return (apply(p, x + 0.1 * torch.randn_like(x)) - x.sum(-1, keepdim=True)).square().mean()

    meta_loss = mo.map_tasks(mo.maml(loss_fn, mo.optim.sgd(lr=0.1), num_steps=2), seed=3)
    fitted = train.fit(meta_loss, params, draw, num_steps=3, chunk_size=chunk_size)
    return mo.tree.detach(fitted.meta_params)


def trained_with_noise(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The command's run, and `fit` with dropout: two programs for one start of the ranks."""
    return trained(out), noisy()


def trained_on(out: Path) -> dict[str, torch.Tensor]:
    """The parameters of a run that goes on."""
    return trained(out, resume=True)


def uneven(folder: Path) -> dict[str, Any]:
    """`fit` with batches of 5, 4, 1, 5, 2 tasks: with one task some ranks have none."""
    counts = [5, 4, 1, 5, 2]

    def draw(step: int) -> mo.Episode:
        x = torch.randn(counts[step - 1], 3, dtype=torch.float64)
        return mo.Episode(x, x + 1)

    task_loss = mo.maml(lambda p, b: ((p["w"] - b) ** 2).mean() + p["b"] ** 2, mo.optim.sgd(lr=0.1))
    params = {"w": torch.zeros(3, dtype=torch.float64), "b": torch.tensor(1.0, dtype=torch.float64)}
    seen: list[list[float]] = []
    fitted = train.fit(
        mo.map_tasks(task_loss),
        params,
        draw,
        num_steps=5,
        out=folder / "run",
        callbacks=[lambda step: seen.append(step.losses.tolist())],
    )
    return {"params": mo.tree.detach(fitted.meta_params), "losses": seen, "rank": train.ranks().rank}


def by_hand(batch: torch.Tensor) -> torch.Tensor:
    """A loop of one's own: share out, differentiate, reduce."""
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    mine = train.shard_tasks(batch)
    losses = ((batch[:1] if len(mine) == 0 else mine) * w).sum(1) ** 2
    (grad,) = torch.autograd.grad(losses.mean(), [w])
    return train.reduce_gradients({"w": grad}, len(mine))["w"]


def refusals() -> list[str]:
    """What `functional` says to modules that torch.distributed has wrapped."""
    from torch.distributed.fsdp import fully_shard

    def refusal(module: torch.nn.Module) -> str:
        with pytest.raises(mo.errors.ArgumentError) as caught:
            mo.functional(module)
        return str(caught.value)

    linear = torch.nn.Linear(2, 1)
    ddp = torch.nn.parallel.DistributedDataParallel(linear)
    return [refusal(m) for m in (ddp, fully_shard(torch.nn.Linear(2, 1)), torch.nn.DataParallel(linear))]


def sharded(folder: Path) -> dict[str, Any]:
    """Meta-parameters as DTensor shards, saved and resumed; beside them the plain ones."""
    torch.manual_seed(0)
    params = {"w": torch.randn(5, 2, dtype=torch.float64), "b": torch.randn((), dtype=torch.float64)}

    def draw(step: int) -> mo.Episode:
        x = torch.randn(3, 4, 5, dtype=torch.float64)
        return mo.Episode(x, x)

    task_loss = mo.maml(lambda p, x: ((x @ p["w"] + p["b"]) ** 2).mean(), mo.optim.sgd(lr=0.05))
    run: dict[str, Any] = {"clip": 0.5, "checkpoint_every": 2}
    plain = train.fit(mo.map_tasks(task_loss), params, draw, num_steps=4, **run).meta_params
    shards = train.shard_params(params)
    train.fit(mo.map_tasks(task_loss), shards, draw, num_steps=2, out=folder / "s", **run)
    fitted = train.fit(
        mo.map_tasks(task_loss), shards, draw, num_steps=4, out=folder / "s", resume=True, **run
    )
    return {
        "plain": mo.tree.detach(plain),
        "whole": mo.tree.detach(train.gather_params(fitted.meta_params)),
        "rows": fitted.meta_params["w"].to_local().shape[0],
        "moment rows": fitted.run.outer.exp_avg["w"].to_local().shape[0],
    }


def carried(folder: Path, steps: int, resume: train.Resume) -> list[torch.Tensor]:
    """PES, whose particles every rank carries on its own."""
    fitted = train.fit(*pes_problem(), num_steps=steps, out=folder / "run", resume=resume, checkpoint_every=1)
    return [*mo.tree.leaves(mo.tree.detach(fitted.meta_params)), *mo.tree.leaves(fitted.run.carry)]


def pes_problem() -> tuple[train.Estimator, torch.Tensor, None]:
    """A learned log step size by PES, one window of an inner loop at each outer step."""
    problem = mo.hypergrad.Problem(
        lambda p, b: (p**2).sum() / 2,
        mo.optim.sgd(lr=0.1),
        params=torch.tensor([1.0, 2.0], dtype=torch.float64),
        num_steps=6,
        outer_every=1,
    )
    opt = mo.optim.sgd()

    def phi_of(lr: torch.Tensor) -> mo.Meta:
        return mo.Meta(None, opt.hparams._replace(lr=lr))

    def estimate(lr: torch.Tensor, episodes: None, step: int, carry: Any) -> train.Estimate:
        fresh = int(carry.start) == problem.num_steps
        with torch.no_grad():
            found = mo.hypergrad.pes(
                problem,
                phi_of(lr.detach()),
                window=2,
                num_windows=1,
                num_samples=4,
                particles=None if fresh else carry,
            )
        return train.Estimate(found.value.detach()[None], found.grad.hparams.lr, {}, found.aux.particles)

    lr = torch.tensor(0.05, dtype=torch.float64)
    first = mo.hypergrad.pes(problem, phi_of(lr), window=2, num_windows=1, num_samples=4).aux.particles
    return train.Estimator(estimate, first), lr, None


def train_and_die(out: Path, moment: int, options: dict[str, Any]) -> None:
    """Train, and be killed by SIGKILL at the ``moment``-th system call that writes a checkpoint."""
    torch.set_num_threads(1)
    calls = 0
    if moment:

        def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return counted

        os.fsync, os.replace, os.link = mortal(os.fsync), mortal(os.replace), mortal(os.link)
    run_tiny(out, resume="auto", **options)
