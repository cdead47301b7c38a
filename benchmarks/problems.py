"""The work that every peer is given: the rows of TARGETS' speed table."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import metaopt as mo

Batch = tuple[Tensor, Tensor]


class Work(NamedTuple):
    """One meta-gradient: d/dθ of the mean query loss of ``tasks`` after ``steps`` of SGD, second order."""

    name: str
    net: nn.Module
    loss: Any  # (prediction, target) -> []
    episodes: Any
    tasks: int
    steps: int
    lr: float
    conv: bool
    repetitions: int


def sinusoid(tasks: int, steps: int, repetitions: int) -> Work:
    """The regressor of Finn et al. 2017: MLP 40-40, ten shots."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    episodes = mo.tasks.sinusoid(shot=10, query=10).sample(num_tasks=tasks, seed=0)
    name = f"sinusoid T={tasks} J={steps}"
    return Work(name, net, nn.functional.mse_loss, episodes, tasks, steps, 0.01, False, repetitions)


def omniglot(tasks: int, steps: int, repetitions: int) -> Work:
    """The Omniglot net of Finn et al. 2017: four strided convolutions of 64, 5-way 1-shot, 15 queries."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(4):
        conv = nn.Conv2d(64 if i else 1, 64, 3, stride=2, padding=1)
        layers += [conv, nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))

    def part(examples: int) -> Batch:
        x = torch.rand(tasks, 5 * examples, 1, 28, 28).round()
        return x, torch.arange(5).repeat(tasks, examples)

    episodes = mo.Episode(part(1), part(15))
    name = f"omniglot conv-64 T={tasks} J={steps}"
    return Work(name, net, nn.functional.cross_entropy, episodes, tasks, steps, 0.4, True, repetitions)


WORKS = {
    "sinusoid-25-5": lambda: sinusoid(25, 5, 30),
    "sinusoid-25-50": lambda: sinusoid(25, 50, 9),
    "sinusoid-400-5": lambda: sinusoid(400, 5, 9),
    "omniglot-16-1": lambda: omniglot(16, 1, 5),
    "omniglot-16-5": lambda: omniglot(16, 5, 3),
}
