"""Distributions of optimization problems, on which optimizers are trained and judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.algorithms._coordinatewise import dense
from metaopt.algorithms._learned_mlp import perceptron
from metaopt.errors import StructureError, check_at_least
from metaopt.tasks._random import key_of
from metaopt.types import LossFn

__all__ = ["OptimizationTasks", "classification", "quadratics"]


class OptimizationTasks(NamedTuple):
    """``loss_fn(params, batch) -> []`` and ``sample(num_tasks, seed, step=0) -> (params, batch)``.

    A sample has starting points θ_0 and data, [task, ...]; the same seed and step give the same tasks.
    Where ``stepped``, batches have a row for each step too, [task, step, ...].
    """

    loss_fn: LossFn
    sample: Callable[..., tuple[Any, Any]]
    stepped: bool = False


def quadratics(dim: int = 10, *, dtype: torch.dtype = torch.float32) -> OptimizationTasks:
    """Random quadratics.

    ::

        ℓ(θ) = ‖Wθ − y‖²,   W [dim, dim] and y [dim] standard normal,   θ_0 = 0.01 times that

    Args: dim: 10 in the paper; 1 is the one-variable quadratic.
    Source: Andrychowicz et al. 2016, arXiv:1606.04474, section 3.1.

    >>> tasks = quadratics(dim=10)
    >>> theta, (w, y) = tasks.sample(num_tasks=128, seed=0)
    >>> theta.shape, w.shape
    (torch.Size([128, 10]), torch.Size([128, 10, 10]))
    """
    check_at_least("quadratics(dim)", dim, 1)

    def loss_fn(params: Tensor, batch: Any) -> Tensor:
        w, y = batch
        return ((w @ params - y) ** 2).sum()

    def sample(num_tasks: int, seed: int, step: int = 0) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        drawn = torch.randn(num_tasks, dim, dim + 2, generator=_generator(seed, step), dtype=torch.float64)
        w, y, theta = drawn.to(dtype).split([dim, 1, 1], -1)
        return 0.01 * theta.squeeze(-1), (w, y.squeeze(-1))

    return OptimizationTasks(loss_fn, sample)


def classification(
    x: Tensor, y: Tensor, *, hidden: tuple[int, ...] = (20,), batch_size: int = 64, num_steps: int = 100
) -> OptimizationTasks:
    """A small ReLU MLP on one data set: tasks differ in their initialisation and in their batches.

    ::

        ℓ(θ) = mean cross-entropy of softmax(MLP_θ(x)) on a batch drawn with replacement

    Args: x, y: the data [example, feature] and its classes [example], int64.
          hidden: widths of the hidden layers.
          batch_size: examples of a batch.
          num_steps: J; the tasks have J + 1 batches, the last to judge by.
    Returns: OptimizationTasks, stepped; a batch is a row of indices into the data.

    >>> tasks = classification(torch.randn(50, 4), torch.arange(50) % 3, num_steps=7)
    >>> params, rows = tasks.sample(num_tasks=2, seed=0)
    >>> params[0][0].shape, rows.shape
    (torch.Size([2, 4, 20]), torch.Size([2, 8, 64]))
    """
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y):
        got = f"{list(x.shape)} and {list(y.shape)}"
        raise StructureError("classification(x, y)", "x [example, feature] and y [example]", got)
    sizes = (x.shape[1], *hidden, int(y.max()) + 1)

    def loss_fn(params: Any, rows: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(perceptron(params, x[rows]), y[rows])

    def sample(num_tasks: int, seed: int, step: int = 0) -> tuple[Any, Tensor]:
        generator = _generator(seed, step)
        layers = [dense(sizes, generator, x.dtype) for _ in range(num_tasks)]
        params = tuple(
            tuple(torch.stack(column) for column in zip(*layer, strict=True))
            for layer in zip(*layers, strict=True)
        )
        shape = (num_tasks, num_steps + 1, batch_size)
        return params, torch.randint(len(x), shape, generator=generator)

    return OptimizationTasks(loss_fn, sample, stepped=True)


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(key_of("optimization", seed, step) % 2**32)
