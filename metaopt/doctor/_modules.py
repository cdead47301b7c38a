"""Every submodule that the loss calls, probed alone on the input that it got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_hook

from metaopt import tree
from metaopt.doctor._compare import Problem, double, far, said
from metaopt.doctor._report import GOOD, Row
from metaopt.errors import MetaoptError
from metaopt.exact import collecting, rewrites
from metaopt.functional import functional
from metaopt.progress import progress

__all__ = ["Call", "Calls", "probe_module", "record", "report"]


class Call(NamedTuple):
    """A module, the input of its first call, and whether every task would write its statistics there."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    writes: bool


Calls = dict[str, Call]


_WRITES = (
    "vmap: every task would write its running statistics. Use batch_norm='transductive' or 'frozen', "
    "apply.with_buffers, or map_tasks(how='loop')."
)


def record(run: Callable[[], Any]) -> Calls:
    """The modules that ``run`` calls, by path from the outermost, each with the input of its first call."""
    found: list[Call] = []

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        keeps = isinstance(module, _NormBase) and module.training and module.running_mean is not None
        found.append(Call(module, args, kwargs, writes=keeps and collecting() is None))

    handle = register_module_forward_hook(hook, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    if not found:
        return {}
    root = found[-1].module
    paths = {id(module): path or "(the model)" for path, module in root.named_modules()}
    calls: Calls = {}
    for call in found:
        path = paths.get(id(call.module), "parametrizations")
        fed = any(isinstance(x, Tensor) for x in tree.leaves((call.args, call.kwargs)))
        # a parametrization's input is a weight: it is probed with the module that owns it
        if fed and "parametrizations" not in path and not isinstance(call.module, nn.Sequential):
            calls.setdefault(path, call)
    order = {path: i for i, path in enumerate(paths.values())}
    return dict(sorted(calls.items(), key=lambda item: order[item[0]]))


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree.leaves(value) if isinstance(x, Tensor) and x.is_floating_point()]


def _problem(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
    """A loss of the module's output in its parameters and in a scale of its input, over two tasks."""
    apply, params, buffers = functional(module)
    fixed = {k: v for k, v in kwargs.items() if not isinstance(v, Tensor)}
    moving = (args, {k: v for k, v in kwargs.items() if isinstance(v, Tensor)})
    moving = double(moving)
    params, buffers = double(params), double(buffers)
    scaled = dict(params) | {"metaopt_scale": torch.ones((), dtype=torch.float64)}

    def loss_fn(values: Any, batch: Any) -> Tensor:
        scale = values["metaopt_scale"]
        args, named = tree.map(
            lambda x: x * scale if isinstance(x, Tensor) and x.is_floating_point() else x, batch
        )
        own = {k: v for k, v in values.items() if k != "metaopt_scale"}
        out = apply.with_buffers if tracking else apply
        result = out(own, buffers, *args, **named, **fixed)
        outputs = _tensors(result[0] if tracking else result)
        return torch.stack(
            [(y.sin() * (1 + torch.arange(y.numel()).view(y.shape).cos())).mean() for y in outputs]
        ).sum()

    tracking = bool(apply.tracking)
    noisy = tree.map(
        lambda x: (
            x + 0.1 * torch.linspace(-1, 1, x.numel()).to(x).view(x.shape)
            if isinstance(x, Tensor) and x.is_floating_point()
            else x
        ),
        moving,
    )
    stack = lambda a, b: torch.stack([a, b]) if isinstance(a, Tensor) else a
    episodes = tree.map(stack, (moving, noisy), (noisy, moving))
    return Problem(loss_fn, scaled, episodes)


def probe_module(path: str, call: Call) -> Row:
    """The verdict on one module: loop, vmap and finite differences, second order."""
    kind = type(call.module).__name__
    if call.writes:
        return Row(path, kind, "unsupported", _WRITES)
    try:
        with rewrites() as made:
            problem = _problem(call.module, call.args, call.kwargs)
            mapped = problem.gradient(how="vmap")
            looped = problem.gradient(how="loop")
    except MetaoptError as error:
        return Row(path, kind, "unsupported", said(error))
    except Exception as error:  # whatever a stranger's module may raise is the finding
        return Row(path, kind, "unsupported", f"{said(error)} Try map_tasks(how='loop').")
    if far(mapped, looped, problem.exact):
        return Row(path, kind, "wrong", "vmap and loop disagree: use map_tasks(how='loop')")
    names = sorted({f"{name}, {why}" for _, name, why in made})
    if names:
        return Row(path, kind, "works by rewrite", "in primitives: " + "; ".join(names))
    if problem.slow:
        return Row(path, kind, "works, slowly", "torch maps it by a loop: it has no batching rule")
    return Row(path, kind, "works")


def report(calls: Calls) -> list[Row]:
    """One row a module, in the model's order; a parent's failure points to the child that caused it."""
    rows = [probe_module(path, call) for path, call in progress(calls.items(), "doctor")]
    bad = [row.subject for row in rows if row.verdict not in GOOD]

    def below(row: Row) -> list[str]:
        inside = "" if row.subject == "(the model)" else row.subject + "."
        return [path for path in bad if path != row.subject and path.startswith(inside)]

    return [
        row._replace(remark=f"see {', '.join(below(row))}") if row.subject in bad and below(row) else row
        for row in rows
    ]
