"""The whole loss: loop and vmap, first and second order, finite differences, forward mode, compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.doctor._compare import Problem, double, relative, said
from metaopt.doctor._report import Row

__all__ = ["checks"]


def _episodes(episode: Any) -> Any:
    """Two tasks: the episode, and the episode with support and query swapped where they are alike."""
    support, query = episode
    alike = tree.structure(support) == tree.structure(query) and all(
        getattr(a, "shape", None) == getattr(b, "shape", None)
        for a, b in zip(tree.leaves(support), tree.leaves(query), strict=True)
    )
    return tree.stack([(support, query), (query, support) if alike else (support, query)])


def _check(subject: str, kind: str, remedy: str, run: Callable[[], float], tolerance: float) -> Row:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            error = run()
    except Exception as failure:  # what fails is the finding
        return Row(subject, kind, "unsupported", f"{said(failure)} {remedy}".strip())
    if error > tolerance:
        return Row(subject, kind, "wrong", f"differs by {error:.0e}. {remedy}".strip())
    return Row(subject, kind, "works", f"to {error:.0e}")


def _problem(loss_fn: Callable[..., Tensor], params: Any, episode: Any) -> Problem:
    """In float64 where the loss takes it; a loss that holds float32 constants may not."""
    episodes = _episodes(episode)
    problem = Problem(loss_fn, double(params), double(episodes))
    try:
        problem.gradient(how="loop")
    except Exception:
        return Problem(loss_fn, tree.detach(params), episodes)
    return problem


def checks(loss_fn: Callable[..., Tensor], params: Any, episode: Any, compiled: bool) -> list[Row]:
    """All checks; each runs whether or not another failed."""
    problem = _problem(loss_fn, params, episode)
    tight = 1e-8 if problem.exact else 1e-3
    rows = []
    loops: dict[Any, list[Tensor]] = {}
    for order in (1, 2):
        subject = "first order" if order == 1 else "second order"

        def loop(order: int = order) -> float:
            loops[order] = problem.gradient(order, how="loop")
            return 0.0 if all(torch.isfinite(g).all() for g in loops[order]) else float("inf")

        rows.append(_check(subject, "loop", "", loop, tight))
        if order in loops:
            for kind, size in (("vmap", None), ("vmap in chunks", 1)):

                def compare(order: int = order, size: int | None = size) -> float:
                    return relative(problem.gradient(order, how="vmap", chunk_size=size), loops[order])

                rows.append(_check(subject, kind, "Use map_tasks(how='loop').", compare, tight))
    if 2 not in loops:
        return rows
    v = problem.direction()
    slope = problem.slope(loops[2], v)
    if problem.exact:
        numeric = lambda: abs(problem.numeric(v) - slope) / (abs(slope) + 1e-8)
        cut = "A kink, a .detach() or a read value would do that."
        rows.append(_check("second order", "finite differences", cut, numeric, 1e-4))

    def forward() -> float:
        meta_loss = lambda p: problem.meta_loss(p, how="vmap")
        return abs(torch.func.jvp(meta_loss, (problem.params,), (v,))[1].item() - slope) / (abs(slope) + 1e-8)

    rows.append(_check("second order", "forward mode", "Use reverse mode.", forward, max(tight, 1e-7)))
    if compiled:

        def compiled_run() -> float:
            params = tree.map(lambda p: p.detach().requires_grad_(), problem.params)
            meta_loss = lambda p: problem.meta_loss(p, how="vmap")
            loss = torch.compile(meta_loss, backend="aot_eager", fullgraph=True, dynamic=False)(params)
            leaves = tree.leaves(params)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            pairs = zip(found, leaves, strict=True)
            return relative([torch.zeros_like(p) if g is None else g for g, p in pairs], loops[2])

        remedy = "Run it eagerly; dynamo does not trace recurrent modules."
        rows.append(_check("second order", "compiled", remedy, compiled_run, tight))
    return rows
