"""Do learned optimizers beat tuned ones on new tasks? ``python -m benchmarks.learned_optimizer``.

Random 10-d quadratics and one-variable ones as in Andrychowicz et al. 2016, and a small MLP on scikit-learn's
digits (skipped where scikit-learn is not installed). SGD and Adam get the best of 20 log-spaced rates, the
learned ones the best of 10 stops of their training, both by the final loss on the same tuning tasks of that
distribution. All are then judged on the same new tasks. Draws pictures/learned_optimizer.png.
"""

from __future__ import annotations

import math
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import metaopt as mo
from metaopt.algorithms import OptimizationTasks
from metaopt.plot import figure

STEPS, TUNING, HELD_OUT = 100, 1, 10**6  # seeds; training has 0
PICTURE = Path(__file__).parent / "pictures" / "learned_optimizer.png"
COLOURS = {"SGD": "#7F7F7F", "Adam": "#D55E00", "learned LSTM": "#0072B2", "learned MLP": "#009E73"}


class Setting(NamedTuple):
    """A distribution, how many of its tasks tune and judge, and the rates of the grids (log10)."""

    title: str
    tasks: OptimizationTasks
    tuning: int
    held_out: int
    grids: dict[str, tuple[Any, float, float]]


def curves(tasks: OptimizationTasks, opt: mo.Optimizer, hparams: Any, count: int, seed: int) -> Tensor:
    """Losses [task, step]: ℓ(θ_0), …, ℓ(θ_J), each on a batch that its step has not seen."""

    def run(hparams: Any, task: Any) -> Tensor:
        params, batch = task
        steps = None if tasks.stepped else STEPS + 1
        return mo.unroll(tasks.loss_fn, opt, params, batch, steps, hparams).losses

    with torch.no_grad():
        return mo.map_tasks(run, how="vmap")(hparams, tasks.sample(count, seed))


def interval(values: Tensor) -> str:
    """Mean and 95 % interval."""
    return f"{values.mean():.4f} ± {1.96 * values.std() / len(values) ** 0.5:.4f}"


def final(losses: Tensor) -> Tensor:
    """Mean over tasks of the last loss; inf where one has diverged."""
    mean = losses[:, -1].mean()
    return mean if bool(mean.isfinite()) else torch.tensor(math.inf)


def tuned(setting: Setting, make: Any, low: float, high: float) -> tuple[float, Any, str]:
    """The best of 20 rates, its hyperparameters, and a remark if it is the first or the last of them."""
    rates = torch.logspace(low, high, 20)
    run = lambda lr: curves(setting.tasks, make(), make(lr=lr).hparams, setting.tuning, TUNING)[:, -1]
    last = mo.map_tasks(lambda _, lr: run(lr), how="vmap")((), rates)
    best = int(last.mean(1).nan_to_num(math.inf, math.inf).argmin())
    lr = float(rates[best])
    return lr, make(lr=lr).hparams, "" if 0 < best < 19 else " (at the edge of the grid)"


def trained(setting: Setting, opt: mo.Optimizer, meta_steps: int, lr: float, **options: Any) -> Any:
    """φ after windows with a cosine schedule for the outer rate: the best of 10 stops on the tuning tasks."""
    hparams = carry = None
    best, chosen, parts = math.inf, opt.hparams, 10
    for k in range(parts):
        rate = lr * (1 + math.cos(math.pi * k / parts)) / 2
        out = mo.train_learned_optimizer(
            opt,
            setting.tasks,
            meta_steps=meta_steps // parts,
            hparams=hparams,
            carry=carry,
            meta_opt=mo.optim.chain(mo.optim.clip_by_global_norm(1.0), mo.optim.adam(rate)),
            **options,
        )
        hparams, carry = out.hparams, out.carry
        now = float(final(curves(setting.tasks, opt, hparams, setting.tuning, TUNING)))
        if now < best:
            best, chosen = now, hparams
    return chosen


def compare(setting: Setting, learned: dict[str, tuple[mo.Optimizer, dict[str, Any]]]) -> dict[str, Tensor]:
    """Print the table of one setting and return the curves on held-out tasks."""
    print(f"\n{setting.title}: {setting.held_out} new tasks, {STEPS} steps", flush=True)
    found: dict[str, Tensor] = {}

    def row(name: str, opt: mo.Optimizer, hparams: Any, note: str) -> None:
        losses = found[name] = curves(setting.tasks, opt, hparams, setting.held_out, HELD_OUT)
        last = losses[:, -1]
        numbers = f"final loss {interval(last)}, median {last.median():.4f}"
        print(f"  {name:13} {numbers}   {note}", flush=True)

    for name, (make, low, high) in setting.grids.items():
        start = time.process_time()
        rate, hparams, edge = tuned(setting, make, low, high)
        row(name, make(), hparams, f"best lr {rate:.3g}{edge}, {time.process_time() - start:.0f} s")
    for name, (opt, options) in learned.items():
        start = time.process_time()
        hparams = trained(setting, opt, **options)
        spent = time.process_time() - start
        row(name, opt, hparams, f"{options['meta_steps']} meta-steps, {spent:.0f} s")
        difference = interval(found[name][:, -1] - found["Adam"][:, -1])
        print(f"  {'':13} minus Adam, task by task: {difference}", flush=True)
    return found


def one_variable(epochs: int = 500) -> None:
    """x² from 1: epochs of 5 windows of 20 steps, outer rate 1e-2, until the cost of a run is below 1e-5."""
    one = lambda n, seed, step=0: (torch.ones(n), torch.zeros(n))
    tasks = OptimizationTasks(lambda p, b: p**2, one)
    opt, hparams, carry, epoch, cost = mo.learned_lstm(), None, None, 0, math.inf
    while cost >= 1e-5 and epoch < epochs:
        epoch += 1
        out = mo.train_learned_optimizer(
            opt,
            tasks,
            meta_steps=5,
            num_tasks=1,
            hparams=hparams,
            carry=carry,
            meta_opt=mo.optim.adam(1e-2),
        )
        hparams, carry = out.hparams, out.carry
        cost = float(final(curves(tasks, opt, hparams, 1, 0)))
    print(f"\nOne-variable quadratic, learned LSTM: cost {cost:.1e} after {epoch} epochs", flush=True)


def digits() -> Setting | None:
    """A 64-20-10 MLP on 1,297 of the 1,797 images, batches of 64; None without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        print("\nDigits: skipped, scikit-learn is not installed")
        return None
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:1297]
    tasks = mo.classification(x[order], y[order], hidden=(20,), batch_size=64, num_steps=STEPS)
    grids = {"SGD": (mo.optim.sgd, -2.0, 1.0), "Adam": (mo.optim.adam, -4.0, 0.0)}
    return Setting("MLP on digits", tasks, 8, 64, grids)


def draw(found: dict[str, dict[str, Tensor]]) -> None:
    fig = figure(figsize=(4.6 * len(found), 3.2))
    for axis, (title, rows) in zip(fig.subplots(1, len(found), squeeze=False)[0], found.items()):
        for name, losses in rows.items():
            axis.plot(losses.mean(0), color=COLOURS[name], label=name)
        axis.set(yscale="log", xlabel="step", ylabel="mean loss", title=title)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    fig.savefig(PICTURE)
    print(f"\n{PICTURE.relative_to(Path(__file__).parents[1])}")


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, seconds of CPU"
    )
    found: dict[str, dict[str, Tensor]] = {}
    setting = digits()
    if setting is not None:
        mlp = {"meta_steps": 150, "lr": 1e-2, "num_tasks": 4}
        found[setting.title] = compare(setting, {"learned MLP": (mo.learned_mlp(), mlp)})
    grids = {"SGD": (mo.optim.sgd, -4.0, 0.0), "Adam": (mo.optim.adam, -3.0, 1.0)}
    quadratics = Setting("10-d quadratics", mo.quadratics(10), 128, 512, grids)
    lstm = {"meta_steps": 500, "lr": 3e-3, "num_tasks": 64}
    # Adam's best rate is 0.9 here, from which the MLP's own 0.1 is far; at such steps order 2 matters
    mlp = {"meta_steps": 600, "lr": 3e-3, "num_tasks": 128, "order": 2}
    learned = {
        "learned LSTM": (mo.learned_lstm(), lstm),
        "learned MLP": (mo.learned_mlp(step_scale=0.5), mlp),
    }
    found[quadratics.title] = compare(quadratics, learned)
    draw(found)
    one_variable()


if __name__ == "__main__":
    main()
