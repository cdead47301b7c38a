"""Regression of sine waves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.errors import ArgumentError, check_at_least
from metaopt.tasks._random import key_of, normal, uniform
from metaopt.tasks._tasks import check_device, check_draw, check_floating
from metaopt.types import Episode

__all__ = ["SinusoidTasks", "sinusoid"]

Range = tuple[float, float]


@dataclass(frozen=True)
class SinusoidTasks:
    """What `sinusoid` returns."""

    shot: int
    query: int
    amplitude: Range
    phase: Range
    x_range: Range
    noise: float
    device: torch.device
    dtype: torch.dtype

    def __repr__(self) -> str:
        waves = f"amplitude {_interval(self.amplitude)}, phase {_interval(self.phase)}"
        return (
            f"sinusoid({self.shot}-shot, query {self.query}, {waves}, x {_interval(self.x_range)}, "
            f"noise {self.noise:g}, {self.dtype}, {self.device})"
        )

    def sample(self, num_tasks: int, seed: int, step: int = 0) -> Episode:
        """Return an Episode: x and y [task, shot, 1] in support, [task, query, 1] in query.

        Drawn and evaluated in float64 on the CPU, then moved: every device gets the same numbers.
        """
        check_draw(num_tasks, seed, step)

        def draw(name: str, bounds: Range, count: int) -> Tensor:
            low, high = bounds
            u = uniform(key_of("sinusoid", name, seed, step), num_tasks, count)
            return low + (high - low) * u

        count = self.shot + self.query
        a, phi = draw("amplitude", self.amplitude, 1), draw("phase", self.phase, 1)
        x = draw("x", self.x_range, count)
        y = a * torch.sin(x - phi)
        if self.noise:
            y = y + self.noise * normal(key_of("sinusoid", "noise", seed, step), num_tasks, count)
        x, y = (z.unsqueeze(-1).to(self.device, self.dtype) for z in (x, y))
        k = self.shot
        return Episode((x[:, :k], y[:, :k]), (x[:, k:], y[:, k:]))


def sinusoid(
    shot: int = 10,
    query: int = 10,
    *,
    amplitude: Range = (0.1, 5.0),
    phase: Range = (0.0, math.pi),
    x_range: Range = (-5.0, 5.0),
    noise: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SinusoidTasks:
    """Sine waves of random amplitude and phase.

    ::

        y = a sin(x − φ) + σε,   a, φ, x uniform,   ε standard normal

    Args:    shot, query: examples to adapt on, and to be judged by; >= 1.
             amplitude, phase, x_range: bounds (low, high) of a, φ [rad] and x.
             noise: σ >= 0, in support and query.
             device, dtype: of the tensors that ``sample`` returns.
    Returns: `Tasks`; ``sample(T, seed, step)`` has x and y of [T, shot, 1] and [T, query, 1].
    Raises:  ArgumentError if a number is out of range.
    Source:  Finn et al. 2017, arXiv:1703.03400, section 5.1.

    >>> (x, y), _ = sinusoid(shot=5).sample(num_tasks=25, seed=0)
    >>> x.shape, y.shape
    (torch.Size([25, 5, 1]), torch.Size([25, 5, 1]))
    """
    check_at_least("sinusoid(shot)", shot, 1)
    check_at_least("sinusoid(query)", query, 1)
    for name, bounds in (("amplitude", amplitude), ("phase", phase), ("x_range", x_range)):
        if len(bounds) != 2 or not -math.inf < bounds[0] <= bounds[1] < math.inf:
            raise ArgumentError(f"sinusoid({name})", "finite bounds (low, high), low <= high", repr(bounds))
    if not 0 <= noise < math.inf:
        raise ArgumentError("sinusoid(noise)", "a standard deviation >= 0", repr(noise))
    check_floating("sinusoid(dtype)", dtype)
    device = check_device("sinusoid(device)", device)
    return SinusoidTasks(shot, query, amplitude, phase, x_range, noise, device, dtype)


def _interval(bounds: Range) -> str:
    return f"[{bounds[0]:.3g}, {bounds[1]:.3g}]"
