"""The model kinds that come through the door, each small and in float64, with its data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

HIDDEN = 3


def same(out: Tensor) -> Tensor:
    return out


def mean(out: Tensor) -> Tensor:
    return out.mean(1)


def last(out: Any) -> Tensor:
    return out[0][:, -1]


class Wrapped(nn.Module):
    """A layer, and a head on what comes out of it: a model with a forward of its own."""

    def __init__(self, layer: nn.Module, width: int, take: Callable[[Any], Tensor] = same) -> None:
        super().__init__()
        self.layer, self.head, self.take = layer, nn.Linear(width, 2), take

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.take(self.layer(x)))


class Counting(nn.Module):
    """A buffer that is used and one that each call replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((HIDDEN,), 1.5))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.inner = nn.Sequential(
            nn.Linear(4, HIDDEN, bias=False),  # a bias would have no gradient but rounding
            nn.BatchNorm1d(HIDDEN),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.inner(x) * self.scale


def tied() -> nn.Module:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), nn.Linear(4, 2))


def twice() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 2))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2))
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    model[2].register_forward_hook(lambda module, args, out: out + out.sin())
    return model


def weight_normed() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, HIDDEN)), nn.Tanh(), nn.Linear(HIDDEN, 2))


def old_weight_norm() -> nn.Module:
    with torch.no_grad():
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls it deprecated, and scripts still use it
            layer = nn.utils.weight_norm(nn.Linear(4, HIDDEN))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(HIDDEN, 2))


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 2))
    model[2].requires_grad_(False)
    return model


VECTOR, SEQUENCE, IMAGE = (4,), (3, 4), (1, 5, 5)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2)), VECTOR),
    "cnn": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 2)),
        IMAGE,
    ),
    "tied": (tied, VECTOR),
    "registered twice": (twice, VECTOR),
    "nested": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(4, HIDDEN), nn.Sequential(nn.LayerNorm(HIDDEN), nn.Tanh())),
            nn.Sequential(nn.Linear(HIDDEN, 2)),
        ),
        VECTOR,
    ),
    "rnn": (lambda: Wrapped(nn.RNN(4, HIDDEN, batch_first=True), HIDDEN, last), SEQUENCE),
    "lstm": (lambda: Wrapped(nn.LSTM(4, HIDDEN, batch_first=True), HIDDEN, last), SEQUENCE),
    "gru": (lambda: Wrapped(nn.GRU(4, HIDDEN, batch_first=True), HIDDEN, last), SEQUENCE),
    "transformer": (
        lambda: Wrapped(nn.TransformerEncoderLayer(4, 2, 4, 0.0, batch_first=True, bias=False), 4, mean),
        SEQUENCE,
    ),
    "buffers": (lambda: Wrapped(Counting(), HIDDEN), VECTOR),
    "hooks": (hooked, VECTOR),
    "parametrized": (weight_normed, VECTOR),
    "old weight norm": (old_weight_norm, VECTOR),
    "frozen": (frozen, VECTOR),
}


def build(kind: str, seed: int = 0) -> tuple[nn.Module, Callable[[int], tuple[Tensor, Tensor]]]:
    """The model in float64, and its batch at a step."""
    make, shape = MODELS[kind]
    torch.manual_seed(seed)
    model = make().double()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
        return x, torch.randn(5, 2, generator=generator, dtype=torch.float64)

    return model, batch


def loss_of(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def train(model: nn.Module, opt: torch.optim.Optimizer, batches: Any) -> None:
    """torch's own training."""

    def closure(batch: Any) -> Tensor:
        opt.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    for batch in batches:
        opt.step(lambda batch=batch: closure(batch))


def twin(model: nn.Module, opt: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    return copy.deepcopy((model, opt))
