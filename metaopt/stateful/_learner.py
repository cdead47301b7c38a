"""``clone()`` and ``adapt()``, as learn2learn's MAML and MetaSGD have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metaopt import optim
from metaopt.stateful.optim import get_diff_optim
from metaopt.stateful.patch import monkeypatch
from metaopt.step import check_optimizer
from metaopt.types import Optimizer

__all__ = ["MAML", "Learner", "MetaSGD"]


class Learner:
    """A model on its way away from the meta-parameters: call it, `adapt` it, `clone` it."""

    def __init__(self, module: Any, opt: Optimizer, first_order: bool) -> None:
        self.module, self.opt, self.first_order = module, opt, first_order
        self.diffopt = get_diff_optim(opt, module.parameters(), module, order=1 if first_order else 2)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def adapt(self, loss: Tensor) -> None:
        """One inner step."""
        self.diffopt.step(loss)

    def clone(self) -> Learner:
        """A learner that begins here, and stays connected."""
        new = Learner(self.module.clone(), self.opt, self.first_order)
        new.diffopt.state = self.diffopt.state
        return new

    def parameters(self, time: int | None = None) -> Iterator[Tensor]:
        return self.module.parameters(time=time)


class MAML(nn.Module):
    """A model whose clones adapt, and send their gradients back to it.

    Args: model: the meta-parameters are its own.
          lr: the inner step size.
          first_order: take inner gradients for constants.
          opt: another inner optimizer; SGD with ``lr`` where None.
    Source: Finn et al. 2017, arXiv:1703.03400.

    >>> maml = MAML(nn.Linear(1, 1, bias=False), lr=0.25)
    >>> learner = maml.clone()
    >>> learner.adapt(learner(torch.ones(1, 1)).square().sum())
    >>> learner(torch.ones(1, 1)).sum().backward()
    >>> maml.module.weight.grad
    tensor([[0.5000]])
    """

    def __init__(
        self, model: nn.Module, lr: float = 0.1, first_order: bool = False, opt: Optimizer | None = None
    ) -> None:
        super().__init__()
        if opt is not None:
            check_optimizer("MAML(opt)", opt)
        self.module, self.first_order = model, first_order
        self.opt = optim.sgd(lr=lr) if opt is None else opt

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def hparams(self) -> Any:
        """φ^opt of a clone."""
        return self.opt.hparams

    def clone(self, first_order: bool | None = None) -> Learner:
        """A learner at the meta-parameters."""
        first_order = self.first_order if first_order is None else first_order
        fmodel = monkeypatch(self.module, copy_initial_weights=False)
        return Learner(fmodel, self.opt._replace(hparams=self.hparams()), first_order)


class MetaSGD(MAML):
    """MAML with a learned step size for every entry of every parameter: ``lrs`` are trained with it.

    Source: Li et al. 2017, arXiv:1707.09835.
    """

    def __init__(self, model: nn.Module, lr: float = 0.1, first_order: bool = False) -> None:
        super().__init__(model, lr, first_order)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.lrs = nn.ParameterList([torch.full_like(p, lr) for p in trained])

    def hparams(self) -> Any:
        return self.opt.hparams._replace(lr=list(self.lrs))
