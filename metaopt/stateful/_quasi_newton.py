"""torch.optim.LBFGS with one gradient a step, which is what a step of an inner loop has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt.errors import ArgumentError
from metaopt.optim import LBFGSState, lbfgs
from metaopt.types import Optimizer

__all__ = ["from_lbfgs"]


def from_lbfgs(opt: torch.optim.LBFGS) -> tuple[Optimizer, list[Tensor], LBFGSState]:
    """The pure rule of a live LBFGS(max_iter=1), its trained parameters and its state.

    Raises: ArgumentError where a step of the live optimizer evaluates the loss more than once.
    """
    (group,) = opt.param_groups
    if group["max_iter"] != 1 or group["line_search_fn"] is not None:
        raise ArgumentError(
            "get_diff_optim(opt)",
            "LBFGS(max_iter=1, line_search_fn=None)",
            f"max_iter={group['max_iter']}, line_search_fn={group['line_search_fn']!r}",
            remedy="A step has one gradient: the loss that it is given.",
        )
    params = [p for p in group["params"] if p.requires_grad]
    rule = lbfgs(group["lr"], group["history_size"])
    state = rule.init(params)
    saved = opt.state.get(group["params"][0], {})
    if saved.get("d") is not None:
        keep = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in group["params"]])
        some = len(saved["ro"])  # pairs that are there; those that are not yet stand first, and are 0

        def padded(rows: list[Tensor], empty: Tensor) -> Tensor:
            return torch.cat([empty[some:], torch.stack([r[keep] for r in rows])]) if some else empty

        state = LBFGSState(
            state.step + saved["n_iter"],
            (saved["d"] * saved["t"])[keep],
            saved["prev_flat_grad"][keep],
            padded(saved["old_stps"], state.old_steps),
            padded(saved["old_dirs"], state.old_diffs),
            torch.cat([state.ro[some:], torch.stack(saved["ro"])]) if some else state.ro,
            torch.as_tensor(saved["H_diag"]).to(state.h_diag),
        )

    def update(params: Any, state: Any, grads: Any, hparams: Any) -> tuple[Any, Any]:
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
        return rule.update(params, state, filled, hparams)

    return rule._replace(update=update), params, state
