"""A learned optimizer: a small MLP that looks at every coordinate."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.algorithms._coordinatewise import coordinatewise, dense
from metaopt.errors import ArgumentError
from metaopt.types import Optimizer

__all__ = ["LearnedMLPHParams", "LearnedMLPMemory", "learned_mlp"]

HORIZONS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
TINY = 1e-12  # under the root of a second moment


class LearnedMLPHParams(NamedTuple):
    """φ: ``layers``, (W [in, out], b [out]) of each."""

    layers: Any


class LearnedMLPMemory(NamedTuple):
    """Of one leaf: momenta m [..., decay] and the second moment v [...]."""

    momenta: Tensor
    second: Tensor


def learned_mlp(
    hidden: tuple[int, ...] = (32, 32),
    decays: tuple[float, ...] = (0.5, 0.9, 0.99),
    *,
    second_decay: float = 0.99,
    step_scale: float = 0.1,
    exp_scale: float = 1.0,
    nominal: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Optimizer:
    """A coordinate-wise MLP; its weights φ are hyperparameters like any other.

    ::

        m_k ← β_k m_k + (1−β_k)g,   v ← β v + (1−β)g²,   m̂, v̂ corrected by 1 − βᵗ
        x   = [ĝ, p̂, m̂_k, g/√v̂, m̂_k/√v̂, log rms g, log v̂ ⁄ mean v̂, tanh(t/τ − 1)],   ẑ = z/rms z in a leaf
        (d, e) = MLP_φ(x)
        p   ← p − λ₁ exp(λ₂ e) (d + ν mean_k m̂_k/√v̂)

    Args: hidden: widths of the hidden layers, ReLU between.
          decays: β_k of the momenta, in [0, 1).
          second_decay: β.
          step_scale, exp_scale: λ₁, λ₂.
          nominal: ν. With 1 an untrained φ is nearly Adam with rate λ₁, from which training starts fast
              and stays stable; with 0 the rule is Metz et al.'s.
          seed: of the untrained φ. The last layer starts at a tenth, so that the first steps are small.
          dtype: of φ; that of the parameters it is to train.
    Returns: Optimizer with hparams LearnedMLPHParams: train them with `train_learned_optimizer`, or by any
             hypergradient.
    Raises: ArgumentError if a decay is out of range, or there is none.
    Cost: (inputs + Σ hidden²) multiplications a coordinate a step; memory of len(decays) + 1 parameters.
    Source: Metz et al. 2019, arXiv:1810.10180; Metz et al. 2020, arXiv:2009.11243 (features);
            Harrison et al. 2022, arXiv:2209.11208 (the nominal term).

    >>> opt = learned_mlp(hidden=(8,))
    >>> params = [torch.ones(3)]
    >>> moved, state = opt.update(params, opt.init(params), [torch.ones(3)], opt.hparams)
    >>> moved[0].shape, state.memory[0].momenta.shape
    (torch.Size([3]), torch.Size([3, 3]))
    """
    if not decays:
        raise ArgumentError("learned_mlp(decays)", "at least one decay", "none")
    for beta in (*decays, second_decay):
        if isinstance(beta, bool) or not 0 <= beta < 1:
            raise ArgumentError("learned_mlp(decays)", "numbers in [0, 1)", repr(beta))
    inputs = 5 + 2 * len(decays) + len(HORIZONS)
    layers = dense((inputs, *hidden, 2), torch.Generator().manual_seed(seed), dtype)
    *inner, (weight, bias) = layers
    hparams = LearnedMLPHParams((*inner, (weight / 10, bias)))

    def start(p: Tensor) -> LearnedMLPMemory:
        return LearnedMLPMemory(p.new_zeros(*p.shape, len(decays)), torch.zeros_like(p))

    def rule(
        p: Tensor, g: Tensor, s: LearnedMLPMemory, t: Tensor, h: LearnedMLPHParams
    ) -> tuple[Tensor, LearnedMLPMemory]:
        beta = p.new_tensor(decays)
        m = beta * s.momenta + (1 - beta) * g[..., None]
        v = second_decay * s.second + (1 - second_decay) * g * g
        m_hat, v_hat = m / (1 - beta**t), v / (1 - second_decay**t)
        d, e = perceptron(h.layers, features(p, g, m_hat, v_hat, t)).unbind(-1)
        d = d + nominal * m_hat.mean(-1) / (v_hat + TINY).sqrt()
        return p - step_scale * torch.exp(exp_scale * e) * d, LearnedMLPMemory(m, v)

    return coordinatewise("learned_mlp", rule, start, hparams)


def features(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x [..., input], every entry of order one whatever the scale of the loss and of the parameters."""
    entries = tuple(range(p.ndim))
    root = (v + TINY).sqrt()[..., None]
    raw = torch.cat([g[..., None], p[..., None], m], -1)
    square = raw * raw
    mean = (square.mean(entries, keepdim=True) if entries else square) + TINY  # () would mean all axes
    level = torch.log(mean[..., :1]) / 10
    among = torch.log((v + TINY) / (v.mean() + TINY))[..., None] / 10
    steps = torch.tanh(t / p.new_tensor(HORIZONS) - 1)
    own = [raw * mean.rsqrt(), g[..., None] / root, m / root, among]
    return torch.cat([*own, level.expand_as(among), steps.to(p.dtype).expand(*p.shape, -1)], -1)


def perceptron(layers: Any, x: Tensor) -> Tensor:
    """relu(… relu(xW₁ + b₁) …)W_L + b_L."""
    for weight, bias in layers[:-1]:
        x = torch.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias
