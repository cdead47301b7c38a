"""The two problems of the command line: tasks, model, loss and score."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaopt import tasks
from metaopt.errors import ArgumentError
from metaopt.functional import functional
from metaopt.tasks._tasks import check_device
from metaopt.train._config import Config

__all__ = ["Problem", "conv4", "make_problem", "mlp"]


class Problem(NamedTuple):
    """What is trained and on what.

    ``judge(outputs, y) -> (loss [], score [])`` tells how well outputs, logits say, fit; ``loss_fn(params,
    batch) -> []`` adapts, and ``judge_fn(params, batch)`` judges, in one forward pass of
    ``apply(params, x)``. ``module()`` builds the model anew, for those that change it. ``score`` names the
    score: "accuracy" or "mse".
    """

    train: Any
    test: Any
    apply: Callable[..., Tensor]
    params: dict[str, Tensor]
    judge: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    score: str
    note: str
    module: Callable[[], nn.Sequential]

    def loss_fn(self, params: Any, batch: Any) -> Tensor:
        """ℓ(apply(θ, x), y)."""
        return self.judge_fn(params, batch)[0]

    def judge_fn(self, params: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """ℓ and score of apply(θ, x), y."""
        x, y = batch
        return self.judge(self.apply(params, x), y)


def mlp(width: int = 40, depth: int = 2) -> nn.Sequential:
    """The regressor of Finn et al. 2017, 5.1: [example, 1] -> [example, 1]."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else 1, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def conv4(way: int = 5, width: int = 64, last_width: int = 0) -> nn.Sequential:
    """The Omniglot net of Finn et al. 2017, 5.2: [example, 1, 28, 28] -> [example, way].

    Four 3x3 convolutions of stride 2 with batch norm over the batch at hand (no running statistics:
    transductive), a mean over what space is left, and a linear head. The last may have a width of its own.
    """
    widths = (1, width, width, width, last_width or width)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
        layers += [conv, nn.BatchNorm2d(after, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], way))


def make_problem(config: Config, *, download: bool = False) -> Problem:
    """Build the problem that a configuration describes; the model's weights come from its seed.

    Args: download: fetch Omniglot's archives into ``config.data`` where they are missing.
    Raises: ArgumentError for a device that is not there, or Omniglot without a folder; DataError.
    """
    on: dict[str, Any] = {
        "device": check_device("train(device)", config.device),
        "dtype": getattr(torch, config.dtype),
    }
    sinusoid = config.problem == "sinusoid"

    def module() -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            made = mlp(config.width) if sinusoid else conv4(config.way, config.width, config.last_width)
            return made.to(**on)

    apply, params, _ = functional(module())
    if sinusoid:
        waves = tasks.sinusoid(config.train_shot or config.shot, config.query, **on)
        fresh = tasks.sinusoid(config.shot, config.query, **on)
        note = "sinusoids, new at every draw"
        return Problem(waves, fresh, apply, params, _mse, "mse", note, module)
    if not config.data:
        raise ArgumentError(
            "train(data)",
            "a folder with Omniglot's archives or omniglot_28_grey.npz",
            "none",
            remedy="Pass --data FOLDER; --download fetches the authors' archives into it.",
        )
    taught = (config.train_way or config.way, config.train_shot or config.shot, config.query)
    tested = (config.way, config.shot, config.query)
    train = tasks.omniglot(config.data, config.split, "train", *taught, **on, download=download)
    test = tasks.omniglot(config.data, config.split, "test", *tested, **on, download=download)
    note = f"Omniglot, {config.split} split, batch norm by the batch at hand (transductive)"
    return Problem(train, test, apply, params, _classified, "accuracy", note, module)


def _mse(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    error = ((outputs - y) ** 2).mean()
    return error, error.detach()


def _classified(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(logits, y), (logits.argmax(-1) == y).to(logits.dtype).mean()
