"""Limited-memory BFGS with a fixed history."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError, check_at_least
from metaopt.optim._entries import check_bounds, check_type
from metaopt.optim._leafwise import RATE, wide
from metaopt.optim._smooth import like
from metaopt.types import Optimizer

__all__ = ["LBFGSHParams", "LBFGSState", "lbfgs"]


class LBFGSHParams(NamedTuple):
    """A number or a 0-d tensor."""

    lr: Any = 1.0


class LBFGSState(NamedTuple):
    """Steps taken, the step s and gradient g before, flat; the history of s, y [m, n] and 1/sᵀy [m],
    oldest first and 0 where there is none yet; and the scale γ of the first Hessian."""

    step: Tensor
    previous_step: Tensor
    previous_grad: Tensor
    old_steps: Tensor
    old_diffs: Tensor
    ro: Tensor
    h_diag: Tensor


def lbfgs(lr: Any = 1.0, history_size: int = 10) -> Optimizer:
    """L-BFGS without a line search: quasi-Newton steps from the last m pairs of steps and gradients.

    ::

        s, y = last step, g − g_prev;   kept where yᵀs > 1e-10, with γ = yᵀs/yᵀy
        d = −H g by the two-loop recursion over the pairs, H₀ = γI
        p ← p + αd,   at the first step α min(1, 1/|g|₁)

    The loop has m turns whatever the data, so that it maps over tasks and compiles; pairs that are not
    there yet weigh 0.

    Args: lr: step size α >= 0.
          history_size: m >= 1 (torch's default is 100, optax's 10).
    Returns: Optimizer with hparams LBFGSHParams; one update for all leaves together.
    Raises: ArgumentError if an argument is out of range.
    Cost: 4m products of flat vectors of all parameters; memory 2m such vectors.
    Source: Nocedal & Wright 2006, Algorithm 7.4; as torch.optim.LBFGS(max_iter=1), but for its stopping.

    >>> opt = lbfgs()
    >>> p, state = torch.tensor([4.0]), opt.init(torch.tensor([4.0]))
    >>> for _ in range(2):  # of the loss 2p²: the second step is Newton's
    ...     p, state = opt.update(p, state, 4 * p, opt.hparams)
    >>> p
    tensor([0.])
    """
    check_at_least("lbfgs(history_size)", history_size, 1)
    hparams = LBFGSHParams(lr)
    check_bounds("lbfgs", hparams, {"lr": RATE})

    def flat(leaves: list[Tensor]) -> Tensor:
        return torch.cat([wide(x).reshape(-1) for x in leaves]) if leaves else torch.zeros(0)

    def init(params: Any) -> LBFGSState:
        tree.check_parameters("lbfgs.init(params)", params, real=True)
        zero = torch.zeros_like(flat([p.detach() for p in tree.leaves(params)]))
        history = zero.new_zeros(history_size, zero.numel())
        count = zero.new_zeros((), dtype=torch.float64)
        ro = zero.new_zeros(history_size)
        return LBFGSState(count, zero, zero, history, history, ro, zero.new_ones(()))

    def update(params: Any, state: Any, grads: Any, h: Any) -> tuple[Any, LBFGSState]:
        tree.check_same("lbfgs.update(grads)", grads, params, shapes=True)
        remedy = "Start from what init(params) returns."
        check_type("lbfgs.update(state)", state, LBFGSState(*[torch.zeros(())] * 7), remedy)
        check_type("lbfgs.update(hparams)", h, hparams, "Start from this optimizer's hparams.")
        check_bounds("lbfgs", h, {"lr": RATE})
        if not isinstance(h.lr, (int, float)) and not (isinstance(h.lr, Tensor) and h.lr.ndim == 0):
            expected = "a number or a 0-d tensor"
            raise ArgumentError("lbfgs.update(hparams.lr)", expected, type(h.lr).__name__)
        leaves, structure = tree.flatten(params)
        if not leaves:
            return params, state
        g = flat(tree.leaves(grads))
        step = state.step + 1
        s, y = state.previous_step, g - state.previous_grad
        ys, yy = y @ s, y @ y
        kept = (ys > 1e-10) & (step > 1)
        safe_ys, safe_yy = torch.where(kept, ys, 1.0), torch.where(kept, yy, 1.0)
        push = lambda old, new: torch.where(kept, torch.cat([old[1:], new[None]]), old)
        steps, diffs = push(state.old_steps, s), push(state.old_diffs, y)
        ro = push(state.ro, 1 / safe_ys)
        gamma = torch.where(kept, safe_ys / safe_yy, state.h_diag)
        q, al = -g, [ro[0]] * history_size
        for i in reversed(range(history_size)):
            al[i] = (steps[i] @ q) * ro[i]
            q = q - al[i] * diffs[i]
        d = gamma * q
        for i in range(history_size):
            d = d + steps[i] * (al[i] - (diffs[i] @ d) * ro[i])
        size = g.abs().sum()
        first = torch.where(size > 1, 1 / torch.where(size > 1, size, 1.0), 1.0)
        move = like(h.lr, g) * torch.where(step == 1, first, 1.0) * d
        parts = move.split([p.numel() for p in leaves])
        new = [(wide(p) + part.reshape(p.shape)).to(p.dtype) for p, part in zip(leaves, parts, strict=True)]
        return tree.unflatten(structure, new), LBFGSState(step, move, g, steps, diffs, ro, gamma)

    return Optimizer(init, update, hparams)
