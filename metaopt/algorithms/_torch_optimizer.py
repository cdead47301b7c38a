"""A pure optimizer, a learned one say, as a torch.optim.Optimizer for a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError
from metaopt.step import check_optimizer
from metaopt.types import Optimizer

__all__ = ["TorchOptimizer"]


class TorchOptimizer(torch.optim.Optimizer):
    """``metaopt.Optimizer`` behind torch's own interface.

    ::

        p ← p + η (update(p, s, ∇p, φ) − p)      for every parameter that has a gradient

    ``lr`` is η, 1 unless a schedule moves it. Parameters are moved one at a time, as by torch.optim's
    rules: a rule that couples leaves, clipping by the global norm say, sees each alone. ``state_dict`` has
    φ too, so that a checkpoint is whole; it holds tensors and numbers only (``weights_only=True``).

    Args: params: parameters or groups of them, as for any torch optimizer. A group may have an ``lr`` and
              ``hparams`` of its own.
          opt: the optimizer.
          hparams: φ, trained; ``opt.hparams`` where None.
          lr: η >= 0.
    Raises: ArgumentError if η is negative; StructureError for the hparams of another optimizer.
    Cost: that of ``opt.update``; nothing is differentiated.

    >>> import metaopt as mo
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> sgd = TorchOptimizer([p], mo.optim.sgd(lr=0.5))
    >>> p.sum().backward()
    >>> sgd.step()
    >>> p.data
    tensor([0.5000, 0.5000])
    """

    def __init__(self, params: Iterable[Any], opt: Optimizer, hparams: Any = None, lr: float = 1.0):
        check_optimizer("TorchOptimizer(opt)", opt)
        self.opt = opt
        hparams = opt.hparams if hparams is None else hparams
        super().__init__(params, {"lr": lr, "hparams": hparams})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = {**self.defaults, **param_group}
        if isinstance(group["lr"], bool) or not group["lr"] >= 0:
            raise ArgumentError("TorchOptimizer(lr)", "a number >= 0", repr(group["lr"]))
        hparams = group["hparams"]
        if not isinstance(hparams, dict):  # of a group copied from another one, they are flat already
            tree.check_same("TorchOptimizer(hparams)", hparams, self.opt.hparams)
            group["hparams"] = _flat(hparams)
        super().add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; return what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            hparams = _tree(self.opt.hparams, group["hparams"], "TorchOptimizer(hparams)")
            for p in group["params"]:
                if p.grad is None:
                    continue
                fresh = self.opt.init(p)
                saved = self.state[p]
                state = _tree(fresh, saved, "TorchOptimizer(state)") if saved else fresh
                moved, state = self.opt.update(p.detach(), state, p.grad, hparams)
                p.copy_(moved if group["lr"] == 1 else torch.lerp(p, moved, float(group["lr"])))
                saved.update(_flat(state))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, without casting float32 moments of half-precision parameters to half precision."""
        super().load_state_dict(state_dict)
        keys = (key for group in state_dict["param_groups"] for key in group["params"])
        params = (p for group in self.param_groups for p in group["params"])
        for key, p in zip(keys, params, strict=True):
            for name, x in state_dict["state"].get(key, {}).items():
                self.state[p][name] = x.detach().to(p.device, copy=True) if isinstance(x, Tensor) else x


def _flat(value: Any) -> dict[str, Any]:
    """Leaves by path: tensors and numbers in a dict, which torch saves and loads without pickled classes."""
    leaves = [x.detach() if isinstance(x, Tensor) else x for x in tree.leaves(value)]
    return dict(zip(tree.paths(value), leaves, strict=True))


def _tree(like: Any, flat: dict[str, Any], where: str) -> Any:
    """Undo `_flat`, in the dtypes of ``like``: torch casts what it loads to the parameter's."""
    paths, leaves = tree.paths(like), tree.leaves(like)
    if paths != list(flat):
        missing = sorted(set(paths) ^ set(flat))
        at = missing[0] if missing else paths[0]
        raise StructureError(where, f"{len(paths)} entries", f"{len(flat)}", at, "Load it into its own kind.")
    found = [
        x.to(y.dtype) if isinstance(x, Tensor) and isinstance(y, Tensor) else x
        for x, y in zip(flat.values(), leaves, strict=True)
    ]
    return tree.unflatten(tree.structure(like), found)
