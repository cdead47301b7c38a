"""torch.rand and its family by `seeded` draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt.exact._random import Draws, current_draws

__all__ = ["NOISE"]


def _draws() -> Draws:
    found = current_draws()
    assert found is not None, "the table asks for these functions under `seeded` only"
    return found


def _shape(size: tuple[Any, ...], named: Any) -> tuple[int, ...]:
    """The shape of ``f(2, 3)``, ``f((2, 3))`` or ``f(size=(2, 3))``."""
    if named is not None:
        size = (named,)
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size


def rand(*size: Any, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
    """U(0, 1)."""
    return _draws().uniform(_shape(size, options.get("size")), dtype, device)


def randn(*size: Any, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
    """N(0, 1)."""
    return _draws().normal(_shape(size, options.get("size")), dtype, device)


def rand_like(input: Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _draws().uniform(input.shape, dtype or input.dtype, device or input.device)


def randn_like(input: Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _draws().normal(input.shape, dtype or input.dtype, device or input.device)


def normal(mean: Any, std: Any = 1.0, size: Any = None, **options: Any) -> Tensor:
    """mean + std · N(0, 1)."""
    like = [x for x in (mean, std) if isinstance(x, Tensor)]
    shape = size if size is not None else torch.broadcast_shapes(*(x.shape for x in like))
    dtype = options.get("dtype") or (like[0].dtype if like else None)
    device = options.get("device") or (like[0].device if like else None)
    return mean + std * _draws().normal(shape, dtype, device)


def bernoulli(input: Tensor, p: Any = None, **_: Any) -> Tensor:
    """1 with probability p, which is the input where it is not given."""
    return _draws().bernoulli(input if p is None else p, input)


def randint(*args: Any, dtype: Any = torch.int64, device: Any = None, **options: Any) -> Tensor:
    """U{low, …, high − 1}."""
    size = options.get("size", args[-1])
    bounds = args if "size" in options else args[:-1]
    low, high = bounds if len(bounds) == 2 else (options.get("low", 0), options.get("high", (*bounds, 0)[0]))
    u = _draws().uniform(tuple(size), torch.float64, device)
    return (low + (u * (high - low)).floor()).to(dtype)


def randperm(n: int, *, dtype: Any = torch.int64, device: Any = None, **_: Any) -> Tensor:
    """A permutation of 0, …, n − 1."""
    return _draws().uniform((n,), torch.float64, device).argsort().to(dtype)


def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return self.copy_(mean + std * _draws().normal(self.shape, self.dtype, self.device))


def uniform_(self: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return self.copy_(low + (high - low) * _draws().uniform(self.shape, self.dtype, self.device))


def exponential_(self: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:
    """−log(u) / λ."""
    return self.copy_(-_draws().uniform(self.shape, self.dtype, self.device).log() / lambd)


def bernoulli_(self: Tensor, p: Any = 0.5, **_: Any) -> Tensor:
    return self.copy_(_draws().bernoulli(p, self))


NOISE: dict[Any, Callable[..., Tensor]] = {
    torch.rand: rand,
    torch.randn: randn,
    torch.rand_like: rand_like,
    torch.randn_like: randn_like,
    torch.normal: normal,
    torch.bernoulli: bernoulli,
    torch.Tensor.bernoulli: bernoulli,
    torch.randint: randint,
    torch.randperm: randperm,
    torch.Tensor.normal_: normal_,
    torch.Tensor.uniform_: uniform_,
    torch.Tensor.exponential_: exponential_,
    torch.Tensor.bernoulli_: bernoulli_,
}
