"""The unrolled inner loop: steps composed, and how much of them is remembered."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import torch

from metaopt import tree
from metaopt.compiled import Compile, Loop, as_compile, count_steps, current_compile
from metaopt.errors import ArgumentError, CompileError, StructureError, check_at_least
from metaopt.exact import paused
from metaopt.heap import keep_freed
from metaopt.memory import Memory, check_memory, run
from metaopt.recompute import check_captured
from metaopt.step import Order, check_loss, check_optimizer, check_order, check_phi, inner_step
from metaopt.types import LossFn, Optimizer, Unrolled

__all__ = ["Memory", "unroll"]


def unroll(
    loss_fn: LossFn,
    opt: Optimizer,
    params: Any,
    batch: Any,
    num_steps: int | None = None,
    hparams: Any = None,
    phi: tuple[Any, ...] = (),
    *,
    state: Any = None,
    per_step_hparams: bool = False,
    order: Order = 2,
    memory: Memory = "all",
    buffers: Any = None,
    compile: Literal["step", False] | Compile | None = None,
) -> Unrolled:
    """Compose inner steps; the outer gradient is plain autograd through the result.

    ::

        θ_{j+1}, s_{j+1} = step(θ_j, s_j, batch_j, φ),   j = 0 … J−1

    Args: loss_fn: ``(params, batch, *phi) -> []``.
          opt: the optimizer; its state starts at ``opt.init(params)`` unless ``state`` is given.
          params: θ_0, pytree of floating-point tensors.
          batch: pytree; repeated ``num_steps`` times, or [step, ...] where ``num_steps`` is None.
          num_steps: J >= 0.
          hparams: φ^opt, ``opt.hparams`` where None.
          phi: φ^loss, the further arguments of ``loss_fn``.
          per_step_hparams: tensors in ``hparams`` with an axis have [step, ...] for one value a step;
              numbers and 0-d tensors are shared by all.
          order: 2, or 1 to take every inner gradient for a constant (first-order MAML).
          buffers: threaded through the steps, as in `inner_step`: the loss takes and returns them.
          memory: "all" keeps every step for the backward pass; an integer K keeps one carry every K
              steps and computes the steps between again; "sqrt" is K = ⌈√J⌉; `Offload` keeps the
              carries on the CPU; `Binomial` keeps a given number of them. The gradient is the same.
          compile: "step" compiles one step and its derivative, whatever J is, and remembers of a step its
              carry alone; where that cannot be done the steps run as they are, and `compile_report` tells
              why. None is what the surrounding `map_tasks` says.
    Returns: Unrolled(params, state, losses [J], buffers), each loss taken before its step.
    Raises: ArgumentError, StructureError; CaptureError where steps are computed again and the loss
            captured a tensor that needs a gradient.
    Cost: J forward and backward passes. Memory O(J) graphs of a step with "all", O(J/K) carries and
          O(K) graphs with K, for one forward pass more; `Binomial`: its slots and one graph, for t
          forward passes more.
    Source: Maclaurin et al. 2015, arXiv:1502.03492; Chen et al. 2016, arXiv:1604.06174, for "sqrt";
            Griewank & Walther 2000 for `Binomial`.

    >>> import metaopt as mo
    >>> theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    >>> out = mo.unroll(lambda p, b: p**2 / 2, mo.optim.sgd(lr=0.5), theta, (), num_steps=3)
    >>> out.params.backward()
    >>> out.params.item(), theta.grad.item()
    (0.125, 0.125)
    """
    check_loss("unroll(loss_fn)", loss_fn)
    with paused():
        tree.check_parameters("unroll(params)", params)
    check_optimizer("unroll(opt)", opt)
    check_order("unroll(order)", order)
    check_phi("unroll(phi)", phi)
    if not isinstance(per_step_hparams, bool):
        raise ArgumentError("unroll(per_step_hparams)", "True or False", type(per_step_hparams).__name__)
    hparams = opt.hparams if hparams is None else hparams
    state = opt.init(params) if state is None else state
    stepped = num_steps is None
    if num_steps is None:
        remedy = "Pass num_steps=... to repeat one batch."
        num_steps = tree.axis_size("unroll(batch)", batch, noun="steps", remedy=remedy)
    check_at_least("unroll(num_steps)", num_steps, 0)
    check_memory(memory)
    if memory != "all":
        check_captured("unroll(loss_fn)", loss_fn)
    if per_step_hparams:
        _check_steps(hparams, num_steps)

    keep_freed()
    count_steps(num_steps)
    choice = current_compile() if compile is None else as_compile("unroll(compile)", compile, ("step",))
    if choice is not None and num_steps > 0:
        with suppress(CompileError):  # which is in the report; the loop below is the same loop
            loop = Loop(loss_fn, opt, order, stepped, per_step_hparams, num_steps, memory, choice.backend)
            return loop(params, state, buffers, batch, hparams, phi)

    def block(carry: Any, rest: Any, steps: range) -> Any:
        params, state, kept = carry
        batch, hparams, phi = rest
        losses = []
        for j in steps:
            step_batch = tree.index(batch, j) if stepped else batch
            step_hparams = _of_step(hparams, j) if per_step_hparams else hparams
            params, state, loss, *moved = inner_step(
                loss_fn, opt, params, state, step_batch, step_hparams, phi, order=order, buffers=kept
            )
            kept = moved[0] if moved else None
            losses.append(loss)
        return (params, state, kept), torch.stack(losses)

    carry = (params, state, buffers)
    if num_steps == 0:
        like = [x for x in tree.leaves(params) if isinstance(x, torch.Tensor)]
        return Unrolled(params, state, like[0].new_zeros(0) if like else torch.zeros(0), buffers)
    (params, state, buffers), losses = run(block, carry, (batch, hparams, phi), num_steps, memory)
    return Unrolled(params, state, torch.cat(losses), buffers)


def _of_step(hparams: Any, j: int) -> Any:
    """The hyperparameters of step j: row j of what has rows, the rest as it is."""
    rowed = [x[j] if isinstance(x, torch.Tensor) and x.ndim else x for x in tree.leaves(hparams)]
    return tree.unflatten(tree.structure(hparams), rowed)


def _check_steps(hparams: Any, num_steps: int) -> None:
    for i, leaf in enumerate(tree.leaves(hparams)):
        if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] != num_steps:
            raise StructureError(
                "unroll(hparams)",
                f"{num_steps} steps on axis 0",
                str(leaf.shape[0]),
                at=tree.paths(hparams)[i],
                remedy="Give one value a step, or per_step_hparams=False.",
            )
