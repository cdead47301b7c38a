"""Learning to learn by gradient descent by gradient descent: an LSTM that looks at every coordinate."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.algorithms._coordinatewise import coordinatewise, dense
from metaopt.errors import ArgumentError
from metaopt.types import Optimizer

__all__ = ["LearnedLSTMHParams", "LearnedLSTMMemory", "learned_lstm"]


class LearnedLSTMHParams(NamedTuple):
    """φ: ``cells``, (W [in + width, 4 width], b) of each layer, and ``output``, (W [width, 1], b)."""

    cells: Any
    output: Any


class LearnedLSTMMemory(NamedTuple):
    """Of one leaf and layer: the output h and the cell c, [..., width]."""

    hidden: Tensor
    cell: Tensor


def learned_lstm(
    hidden: tuple[int, ...] = (20, 20),
    *,
    step_scale: float = 0.1,
    clip: float = 10.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Optimizer:
    """A coordinate-wise LSTM with shared weights and a memory of its own for every coordinate.

    ::

        x = (log|g|/k, sign g) if |g| ≥ e⁻ᵏ else (−1, eᵏg)
        i, f, o, u = [x, h]W + b,   c ← σ(f)c + σ(i)tanh(u),   h ← σ(o)tanh(c)      layer by layer
        p ← p + λ (hW + b)

    Args: hidden: widths of the layers.
          step_scale: λ.
          clip: k, gradients below e⁻ᵏ are seen linearly.
          seed: of the untrained φ. The forget gates start open (b = 1), the output layer at a tenth.
          dtype: of φ; that of the parameters it is to train.
    Returns: Optimizer with hparams LearnedLSTMHParams.
    Raises: ArgumentError if k is not positive.
    Cost: 4 Σ (in + width)·width multiplications a coordinate a step; memory of 2 Σ width parameters.
    Source: Andrychowicz et al. 2016, arXiv:1606.04474, section 2.1 and appendix A.

    >>> opt = learned_lstm()
    >>> params = [torch.ones(3)]
    >>> moved, state = opt.update(params, opt.init(params), [torch.ones(3)], opt.hparams)
    >>> moved[0].shape, len(state.memory[0]), state.memory[0][0].cell.shape
    (torch.Size([3]), 2, torch.Size([3, 20]))
    """
    if isinstance(clip, bool) or not clip > 0:
        raise ArgumentError("learned_lstm(clip)", "a number > 0", repr(clip))
    generator = torch.Generator().manual_seed(seed)
    cells = []
    for fan_in, width in itertools.pairwise((2, *hidden)):
        ((weight, bias),) = dense((fan_in + width, 4 * width), generator, dtype)
        bias[width : 2 * width] = 1
        cells.append((weight, bias))
    ((weight, bias),) = dense((hidden[-1] if hidden else 2, 1), generator, dtype)
    hparams = LearnedLSTMHParams(tuple(cells), (weight / 10, bias))

    def start(p: Tensor) -> tuple[LearnedLSTMMemory, ...]:
        return tuple(LearnedLSTMMemory(*p.new_zeros(2, *p.shape, width)) for width in hidden)

    def rule(
        p: Tensor, g: Tensor, s: tuple[LearnedLSTMMemory, ...], t: Tensor, h: LearnedLSTMHParams
    ) -> tuple[Tensor, tuple[LearnedLSTMMemory, ...]]:
        x, memories = log_and_sign(g, clip), []
        for (weight, bias), (y, c) in zip(h.cells, s, strict=True):
            i, f, o, u = (torch.cat([x, y], -1) @ weight + bias).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(u)
            x = torch.sigmoid(o) * torch.tanh(c)
            memories.append(LearnedLSTMMemory(x, c))
        weight, bias = h.output
        return p + step_scale * (x @ weight + bias).squeeze(-1), tuple(memories)

    return coordinatewise("learned_lstm", rule, start, hparams)


def log_and_sign(g: Tensor, k: float) -> Tensor:
    """(log|g|/k, sign g) where |g| ≥ e⁻ᵏ, else (−1, eᵏg): [..., 2]."""
    size, edge = g.abs(), math.exp(-k)
    large = size >= edge
    log = torch.where(large, torch.where(large, size, 1.0).log() / k, -1.0)
    return torch.stack([log, torch.where(large, g.sign(), g * math.exp(k))], -1)
