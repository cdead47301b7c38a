"""Trees of parameters and gradients for the laws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt import tree


def make_params(dtype: torch.dtype = torch.float64, matrices: bool = False, seed: int = 0) -> dict[str, Any]:
    """A nested tree: matrix, vector, scalar and a 3-d leaf; or matrices alone."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    if matrices:
        return {"tall": draw(5, 3), "wide": [draw(2, 4)]}
    return {"w": draw(4, 3), "b": draw(3), "inner": [draw(2, 3, 2), (draw(),)]}


def grads_at(params: Any, step: int) -> Any:
    """A gradient that depends on the parameters, has changing signs, and differs from step to step."""
    leaves, structure = tree.flatten(params)
    g = torch.Generator().manual_seed(step + 1)
    noise = [torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype) for p in leaves]
    return tree.unflatten(structure, [0.3 * p + n for p, n in zip(leaves, noise, strict=True)])


def run(opt: Any, params: Any, num_steps: int, hparams: Any = None) -> tuple[Any, Any]:
    """The optimizer's params and state after some steps along `grads_at`."""
    state = opt.init(params)
    for step in range(num_steps):
        grads = grads_at(params, step)
        params, state = opt.update(params, state, grads, opt.hparams if hparams is None else hparams)
    return params, state
