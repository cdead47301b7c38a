"""Does one learned weight an example find the labels that were flipped?

    python -m benchmarks.hyper_cleaning [--flipped 0.5] [--seeds 3] [--picture cleaning.png]

scikit-learn's 1,797 digits of 8 x 8 pixels and a softmax regression, as Franceschi et al. 2017 have it on
MNIST (section 5.1): half of the training labels are replaced by another class, and a clean set of the same
size judges. Rows, tested on the same unseen digits; where labels are thrown away, the rest is joined with the
clean set and the regression trained anew:

clean set only   the training set left aside
baseline         every label believed
reweight         Ren et al. 2018: weights anew in every step, by a single look ahead
cleaned          lambda by `mo.hyper_cleaning`; labels of weight below 1/2 are thrown away
oracle           the flipped labels thrown away, as if they were known

F1 is that of the labels thrown away as a detector of the flipped ones. Accuracies are means over the seeds,
which draw the split and the flips; ± is one standard deviation. Needs the extra [bench].
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import metaopt as mo
from metaopt import linsolve
from metaopt.errors import MissingExtraError
from metaopt.plot._figure import BLUE, GREEN, GREY, ORANGE, figure

Batch = tuple[Tensor, Tensor]
TRAIN, CLEAN, CLASSES = 600, 600, 10  # the other 597 digits are the test


class Split(NamedTuple):
    """The three sets; ``flipped`` [TRAIN] tells which labels of ``train`` are wrong."""

    train: Batch
    clean: Batch
    test: Batch
    flipped: Tensor


def digits() -> Batch:
    """All digits, pixels in [0, 1] and a constant 1, and their classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "benchmarks.hyper_cleaning",
            "scikit-learn",
            "no such module",
            remedy="pip install 'metaopt-torch[bench]'.",
        ) from error
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    return torch.cat([x, torch.ones(len(x), 1)], 1), torch.tensor(data.target)


def split(data: Batch, seed: int, rate: float) -> Split:
    """Shuffle, divide, and replace a share of the training labels by another class each."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        part[torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))] for part in data
    )
    train, clean, test = (
        (x[a:b], y[a:b]) for a, b in ((0, TRAIN), (TRAIN, TRAIN + CLEAN), (TRAIN + CLEAN, None))
    )
    flipped = torch.zeros(TRAIN, dtype=torch.bool)
    flipped[torch.randperm(TRAIN, generator=generator)[: round(rate * TRAIN)]] = True
    other = (train[1] + torch.randint(1, CLASSES, (TRAIN,), generator=generator)) % CLASSES
    return Split((train[0], torch.where(flipped, other, train[1])), clean, test, flipped)


def losses_fn(w: Tensor, batch: Batch) -> Tensor:
    """Softmax regression, the loss of each example."""
    return F.cross_entropy(batch[0] @ w, batch[1], reduction="none")


def start() -> Tensor:
    return torch.zeros(65, CLASSES)


def fit(batch: Batch, num_steps: int = 300) -> Tensor:
    """A softmax regression on all of a batch, weakly regularised."""
    loss_fn = lambda w, batch: losses_fn(w, batch).mean()
    opt = mo.optim.sgd(1.0, momentum=0.9, weight_decay=1e-4)
    with torch.no_grad():
        return mo.unroll(loss_fn, opt, start(), batch, num_steps).params


def accuracy(w: Tensor, batch: Batch) -> float:
    return 100 * (((batch[0] @ w).argmax(1) == batch[1]).float().mean()).item()


def f1(found: Tensor, truth: Tensor) -> float:
    right = (found & truth).sum().item()
    return 2 * right / max(found.sum().item() + truth.sum().item(), 1)


def joined(data: Split, kept: Tensor) -> Batch:
    """The training examples that are kept, and the clean set."""
    return tuple(torch.cat([part[kept], sure]) for part, sure in zip(data.train, data.clean, strict=True))  # type: ignore[return-value]


ESTIMATORS: dict[str, tuple[Callable[..., Any], float, bool]] = {  # and inner L2 penalty, warm start
    "unrolled": (mo.hypergrad.unrolled, 1e-3, False),
    "implicit": (functools.partial(mo.hypergrad.implicit, solve=linsolve.cg(30, 1e-3)), 3e-3, True),
}


def clean(data: Split, estimator: str, num_steps: int, updates: int) -> mo.Bilevel:
    """λ by projected Adam, all ½ at first."""
    estimate, decay, warm_start = ESTIMATORS[estimator]
    opt = mo.optim.sgd(1.0, momentum=0.9)
    penalty = lambda w: decay / 2 * w.square().sum()
    problem = mo.hyper_cleaning(losses_fn, opt, start(), data.train, data.clean, num_steps, penalty=penalty)
    phi = mo.Meta(None, None, (torch.full((TRAIN,), 0.5),))
    outer = mo.optim.adam(0.05)
    project = mo.project_weights
    return mo.bilevel(
        problem, phi, outer, updates, estimator=estimate, project=project, warm_start=warm_start
    )


def reweighted(data: Split, num_steps: int = 2000) -> Tensor:
    """Softmax regression, every minibatch reweighted by the clean set."""
    opt, w, generator = mo.optim.sgd(0.1), start(), torch.Generator().manual_seed(0)
    state = opt.init(w)
    for _ in range(num_steps):
        some = torch.randint(TRAIN, (100,), generator=generator)
        w, state, *_ = mo.reweight(losses_fn, opt, w, state, mo.tree.index(data.train, some), data.clean)
    return w


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flipped", type=float, default=0.5, help="share of wrong training labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="inner steps of an estimate")
    parser.add_argument("--updates", type=int, default=100, help="outer steps")
    parser.add_argument("--picture", help="write the weights and ten digits to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(args.seeds):
        some = split(data, seed, args.flipped)
        every = torch.ones(TRAIN, dtype=torch.bool)
        nothing = {"clean set only": ~every, "baseline": every, "oracle": ~some.flipped}
        for name, kept in nothing.items():
            began = time.process_time()
            score = accuracy(fit(joined(some, kept)), some.test)
            rows.setdefault(name, []).append((score, f1(~kept, some.flipped), time.process_time() - began))
        began = time.process_time()
        score = accuracy(reweighted(some), some.test)
        rows.setdefault("reweight", []).append((score, float("nan"), time.process_time() - began))
        for name in ESTIMATORS:
            began = time.process_time()
            found = clean(some, name, args.steps, args.updates)
            kept = found.phi.phi[0] >= 0.5
            spent = time.process_time() - began
            score = accuracy(fit(joined(some, kept)), some.test)
            rows.setdefault(f"cleaned, {name}", []).append((score, f1(~kept, some.flipped), spent))
            if seed == 0 and name == "unrolled":
                first = (some, found)
    report(rows, args)
    if args.picture:
        draw(*first).savefig(args.picture)


def report(rows: dict[str, list[tuple[float, float, float]]], args: argparse.Namespace) -> None:
    versions = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    print(f"{versions}; {args.seeds} seeds, {args.flipped:.0%} of {TRAIN} labels flipped, {CLEAN} clean")
    print(f"{'':24} {'test accuracy':>16} {'F1':>6} {'gap closed':>11} {'CPU s':>6}")
    mean = {name: [statistics.fmean(column) for column in zip(*some)] for name, some in rows.items()}
    low, high = mean["baseline"][0], mean["oracle"][0]
    for name in sorted(rows, key=lambda name: mean[name][0]):
        score, found, spent = mean[name]
        spread = statistics.pstdev([row[0] for row in rows[name]])
        closed = (score - low) / (high - low)
        print(f"{name:24} {score:8.2f} ± {spread:4.2f} % {found:6.3f} {closed:10.0%} {spent:6.1f}")


def draw(data: Split, found: mo.Bilevel) -> Any:
    """The learned weights by kind of label, the outer loss, and ten digits with label and weight."""
    weights = found.phi.phi[0]
    fig = figure(figsize=(9.6, 4.8))
    above, below = fig.subfigures(2, 1, height_ratios=(5, 3))
    left, right = above.subplots(1, 2)
    groups = [weights[~data.flipped].tolist(), weights[data.flipped].tolist()]
    left.hist(groups, bins=20, range=(0, 1), color=[BLUE, ORANGE], label=["right label", "flipped label"])
    left.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
    left.set(xlabel="learned weight λ", ylabel="training examples", yscale="log")
    left.legend(frameon=False, loc=(0.53, 0.8))
    right.plot(range(len(found.values)), found.values.tolist(), color=GREEN)
    right.set(xlabel="outer step", ylabel="loss on the clean set", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("{x:.1g}")
    right.grid(alpha=0.3, which="both")
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(1))[:10]
    below.suptitle("ten training examples: given label, learned weight", fontsize=10)
    for axis, i in zip(below.subplots(1, len(order)), order.tolist(), strict=True):
        axis.imshow(1 - data.train[0][i, :64].reshape(8, 8), cmap="gray", vmin=0, vmax=1)
        wrong = bool(data.flipped[i])
        text = f"“{int(data.train[1][i])}”\nλ = {weights[i]:.2f}\n{'flipped' if wrong else 'right'}"
        axis.set_title(text, fontsize=9, color=ORANGE if wrong else BLUE)
        axis.set_axis_off()
    return fig


if __name__ == "__main__":
    main()
