"""The inner optimizer of the door: one shell over the pure rules of `metaopt.optim`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.optim import to_torch
from metaopt.stateful._groups import Groups, ImperativeGroups, PureGroups, lay_over, shadow
from metaopt.stateful._quasi_newton import from_lbfgs
from metaopt.stateful._recomputed import recomputed_step
from metaopt.types import Optimizer

__all__ = ["Callback", "DifferentiableOptimizer", "Override"]

Callback = Callable[[tuple[Tensor | None, ...]], Sequence[Tensor | None]]
Override = Mapping[str, Any]


class DifferentiableOptimizer:
    """An inner optimizer: ``step(loss)`` takes P[t] to P[t+1], differentiably.

    ::

        G = ∂loss/∂P[t],   P[t+1], s[t+1] = update(P[t], s[t], G, φ^opt)

    Args: other: a live torch optimizer, whose settings and state are copied, or a `metaopt.Optimizer`.
          reference_params: the parameters of the model, in the order of ``model.parameters()``.
          fmodel: whose fast weights are moved; without one every step takes ``params=``.
          device: where the state lives; where it is, if None.
          override: settings laid over the live ones, under torch's names: one value, [one value], or
              [one a group]; a value may be a tensor that needs a gradient, a tuple of them (betas), or a
              list with one a parameter.
          grad_callback: ``gradients -> gradients``, in the order of reference_params, None for unused.
          track_higher_grads: False detaches every new parameter.
          order: 2; or 1, which takes every G for a constant, and still reaches P[0] and φ^opt.
    A subclass that defines ``_update(grouped_grads)`` brings its own rule, as it did in `higher`.
    ``param_groups`` are the settings, which may be written to between steps, and ``state`` the state.
    """

    def __init__(
        self,
        other: torch.optim.Optimizer | Optimizer,
        reference_params: Iterable[Tensor],
        fmodel: Any = None,
        device: Any = None,
        override: Override | None = None,
        grad_callback: Callback | None = None,
        track_higher_grads: bool = True,
        *,
        order: int = 2,
    ) -> None:
        if order not in (1, 2):
            raise ArgumentError("get_diff_optim(order)", "1 or 2", repr(order))
        reference = list(reference_params)
        self._groups: Any
        if isinstance(other, Optimizer):
            self._groups = PureGroups(other, [p for p in reference if p.requires_grad])
        elif hasattr(self, "_update"):
            self._groups = ImperativeGroups(other, self)
        elif isinstance(other, torch.optim.LBFGS):
            self._groups = PureGroups(*from_lbfgs(other))
        elif isinstance(other, torch.optim.Optimizer):
            self._groups = Groups(other)
        else:
            expected = "a torch.optim.Optimizer or a metaopt.Optimizer"
            raise ArgumentError("get_diff_optim(opt)", expected, type(other).__name__)
        places = {id(p): i for i, p in enumerate(reference)}
        missing = [p for p in self._groups.trained if id(p) not in places]
        if missing:
            got = f"one of shape {list(missing[0].shape)} that is not"
            raise ArgumentError("get_diff_optim(reference_params)", "every parameter of the optimizer", got)
        self._number = len(reference)
        self._index = [places[id(p)] for p in self._groups.trained]
        self._opt: Any = other
        self._fmodel, self._callback = fmodel, grad_callback
        self._track_higher_grads, self.order = track_higher_grads, order
        self.skipped = 0  # steps that a scaler's infinities cancelled
        self.state = self._groups.state
        if device is not None:
            move = lambda x: x.to(device) if isinstance(x, Tensor) else x
            self.state = tree.map(move, self.state)
        if override is not None:
            self._lay_over(override)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The settings of each group, under torch's names."""
        return self._groups.dicts

    @property
    def hparams(self) -> Any:
        """φ^opt, as the pure rule takes it."""
        return self._groups.rule(self.state)[0]

    def step(
        self,
        loss: Tensor | Callable[..., Tensor],
        params: Iterable[Tensor] | None = None,
        override: Override | None = None,
        grad_callback: Callback | None = None,
        *,
        scaler: Any = None,
        recompute: bool = False,
        phi: tuple[Any, ...] = (),
    ) -> list[Tensor]:
        """Move the fast weights, and return them.

        Args: loss: a scalar computed with P[t]; or a function of ``phi`` that computes it.
              params: replaces P[t]; required without an fmodel.
              override: as at the beginning; it persists.
              grad_callback: in the place of the one given at the beginning.
              scaler: a torch.amp.GradScaler: the loss is scaled, the gradients are scaled back, and a
                  step with a gradient that is not finite is skipped and counted.
              recompute: forget the step, and compute it again for the outer gradient; ``loss`` is then a
                  function, and what it needs a gradient for is in ``phi``.
              phi: the arguments of ``loss``.
        Returns: P[t+1], in the order of ``model.parameters()``; what is unused or frozen stays.
        Raises: ArgumentError where the loss does not depend on P[t].
        """
        if override is not None:
            self._lay_over(override)
        old = self._params(params)
        callback = grad_callback or self._callback
        if recompute:
            if callback is not None or scaler is not None or not callable(loss) or self._fmodel is None:
                expected = "a function of the loss and an fmodel, without grad_callback or scaler"
                raise ArgumentError("step(recompute)", expected, "otherwise")
            hparams, state = self._groups.rule(self.state)
            part, self.state = recomputed_step(
                self._fmodel, self._groups.pure, old, self._index, state, hparams, phi, loss, self.order
            )
            return self._store(old, part)
        if callable(loss):
            loss = loss(*phi)
        grads = self._gradients(loss, old, callback, scaler)
        if scaler is not None and not _finite(grads):
            self.skipped += 1
            return old
        hparams, state = self._groups.rule(self.state)
        with torch.set_grad_enabled(self._track_higher_grads and torch.is_grad_enabled()):
            part, self.state = self._groups.pure.update(
                [old[i] for i in self._index], state, [grads[i] for i in self._index], hparams
            )
        return self._store(old, part)

    def _params(self, params: Iterable[Tensor] | None) -> list[Tensor]:
        if params is not None:
            given = list(params)
            if len(given) != self._number or not all(isinstance(p, Tensor) for p in given):
                got = f"{len(given)} entries of {sorted({type(p).__name__ for p in given})}"
                remedy = "Pass them in the order of reference_params."
                raise ArgumentError("step(params)", f"{self._number} tensors", got, remedy=remedy)
            return given
        now = None if self._fmodel is None else self._fmodel.fast_params
        if now is None:
            remedy = "Pass params=..., or an fmodel when the optimizer is made."
            raise ArgumentError("step(params)", "the fast weights", "none", remedy=remedy)
        return now

    def _gradients(self, loss: Tensor, params: list[Tensor], callback: Any, scaler: Any) -> list[Any]:
        """G, one entry a parameter, None where the loss does not depend on it."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ArgumentError("step(loss)", "a scalar", got, remedy="Reduce it, with .mean() say.")
        wanted = range(len(params)) if callback is not None else self._index
        wanted = [i for i in wanted if params[i].requires_grad]
        grads: list[Any] = [None] * len(params)
        if wanted and loss.requires_grad:
            scaled = loss if scaler is None else scaler.scale(loss)
            second = self._track_higher_grads and self.order == 2
            inputs = [params[i] for i in wanted]
            found = torch.autograd.grad(scaled, inputs, create_graph=second, allow_unused=True)
            for i, g in zip(wanted, found, strict=True):
                grads[i] = g if scaler is None or g is None else g / scaler.get_scale()
        if all(g is None for g in grads):
            remedy = "Compute it with the fmodel after the step before."
            expected = "a loss that depends on the current fast weights"
            raise ArgumentError("step(loss)", expected, "one that does not", remedy=remedy)
        if callback is None:
            return grads
        new = callback(tuple(grads))
        if not isinstance(new, (list, tuple)) or len(new) != len(grads):
            got = f"{len(new)}" if isinstance(new, (list, tuple)) else type(new).__name__
            raise ArgumentError("step(grad_callback)", f"{len(grads)} gradients from it", got)
        return list(new)

    def _store(self, old: list[Tensor], part: list[Tensor]) -> list[Tensor]:
        new = list(old)
        for i, p in zip(self._index, part, strict=True):
            new[i] = p
        if not self._track_higher_grads:
            new = [q.detach().requires_grad_(p.requires_grad) for p, q in zip(old, new, strict=True)]
        if self._fmodel is not None:
            self._fmodel.update_params(new)
        return new

    def _lay_over(self, override: Override) -> None:
        lay_over("step(override)", self._groups.dicts, self._groups.known, override)

    def truncate(self) -> None:
        """Cut the graph here: P[0] ← P[t] and the state, both detached, so that memory is let go."""
        self.state = tree.detach(self.state)
        if self._fmodel is not None:
            self._fmodel.truncate()

    def state_dict(self) -> dict[str, Any]:
        """State and settings in torch's form: ``opt.load_state_dict(diffopt.state_dict())``."""
        other = self._shadow("state_dict()", {})
        hparams, state = self._groups.rule(self.state)
        return to_torch(other, self._groups.trained, state, hparams).state_dict()

    def hand_back(self) -> None:
        """Write P[t] into the model's own parameters, and the state into the live optimizer."""
        self._shadow("hand_back()", {})
        now = self._params(None)
        _, state = self._groups.rule(self.state)
        to_torch(self._opt, [now[i] for i in self._index], state)

    def _shadow(self, where: str, state: Any) -> torch.optim.Optimizer:
        if not isinstance(self._groups, Groups):
            remedy = "Read diffopt.state, which is a tree of tensors."
            raise ArgumentError(where, "an optimizer of torch.optim's", "another rule", remedy=remedy)
        return shadow(self._opt, self._groups.dicts, state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._opt).__name__}, {len(self._index)} parameters)"


def _finite(grads: Sequence[Tensor | None]) -> bool:
    return all(bool(g.isfinite().all()) for g in grads if g is not None)
