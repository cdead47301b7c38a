"""One pure function of tensors, and its derivative, compiled once for every kind of argument.

The function is traced as it runs, through ``vmap`` and ``grad`` and whatever is rewritten in them, so
that the compiled derivative is the eager one to the last operation. Python is not analysed: what the
function captured is compared from call to call by `fingerprint`, and tensors that it captured are
arguments of the compiled code.
"""

from __future__ import annotations

import itertools
import logging
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.errors import CompileError
from metaopt.exact import exact
from metaopt.fingerprint import fingerprint, forget_fingerprints

__all__ = ["Compiled", "Owner", "compile_report", "compiled", "forget_compiled", "owner"]

logger = logging.getLogger("metaopt")
Flat = Callable[..., tuple[Sequence[Tensor], Any]]
_LIMIT = 128  # compiled functions kept; the one that was not called for longest goes first
_cache: OrderedDict[Any, Compiled] = OrderedDict()


class Compiled(NamedTuple):
    """A compiled function and what became of it: a row of `compile_report`."""

    name: str
    run: Callable[..., Any] | None  # None where it stayed eager
    captured: list[Tensor]
    aux: Any
    backend: Any
    seconds: float
    operations: int
    reason: str

    def __repr__(self) -> str:
        state = f"{self.backend}, {self.seconds:.1f} s" if self.run else f"eager: {self.reason}"
        return f"{self.name} ({self.operations} operations): {state}"


class Owner(NamedTuple):
    """What a compiled function depends on beside tensors, as a number that is equal where that is."""

    token: int
    anchors: list[Any]  # what was compared by identity must live as long as the token


_tokens: OrderedDict[Any, Owner] = OrderedDict()
_numbers = itertools.count()


def owner(static: Any, *values: Any) -> Owner:
    """The owner that stands for a hashable and for values (functions among them) by `fingerprint`."""
    prints = [fingerprint(value) for value in values]
    key = (static, *(found for found, _ in prints))
    if key not in _tokens:
        _tokens[key] = Owner(next(_numbers), [x for _, anchors in prints for x in anchors])
        while len(_tokens) > _LIMIT:
            _tokens.popitem(last=False)
    _tokens.move_to_end(key)
    return _tokens[key]


def compiled(
    name: str, fn: Flat, tensors: Sequence[Tensor], owner: Owner, backend: Any, more: Any = None
) -> tuple[tuple[Tensor, ...], Any]:
    """Return ``fn(*tensors) -> (tensors, aux)``, compiled at the first call of its kind.

    Args: name: for `compile_report`.
          fn: pure; ``aux`` is whatever is known of the result without its numbers.
          owner: what else ``fn`` depends on.
          backend: of torch.compile.
          more: hashable, a further part of the key.
    Raises: CompileError where ``fn`` cannot be traced or compiled; said once, remembered after.
    Cost: the first call takes seconds to minutes; later ones, some ten microseconds to look it up.
    """
    track = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    kinds = tuple(_kind(x, track) for x in tensors)
    key = (name, owner.token, more, backend, torch.is_grad_enabled(), kinds, exact.always_on(), _autocast())
    entry = _cache.get(key)
    if entry is None:
        entry = _cache[key] = _compile(name, fn, tensors, backend, track)
        while len(_cache) > _LIMIT:
            _cache.popitem(last=False)
    else:
        _cache.move_to_end(key)
    if entry.run is None:
        raise CompileError(f"compile({name})", "a function that can be traced", entry.reason)
    return tuple(entry.run(*tensors, *entry.captured)), entry.aux


def compile_report() -> list[Compiled]:
    """What was compiled so far, or stayed eager and why; the last used last."""
    return list(_cache.values())


def forget_compiled() -> None:
    """Drop every compiled function, and the tensors and modules that they hold."""
    _cache.clear()
    _tokens.clear()
    forget_fingerprints()


def _kind(x: Tensor, track: bool) -> tuple[Any, ...]:
    needed = track and x.requires_grad
    return x.shape, x.stride(), x.dtype, x.device, needed, type(x) if type(x) is not Tensor else None


def _autocast() -> tuple[Any, ...]:
    if not torch._C._is_any_autocast_enabled():
        return ()
    devices = ("cpu", "cuda")
    return tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices)


def _compile(name: str, fn: Flat, tensors: Sequence[Tensor], backend: Any, track: bool) -> Compiled:
    start, count, aux, reason = time.perf_counter(), _Count(), None, ""
    captured: list[Tensor] = []
    run: Callable[..., Any] | None
    try:
        captured, size, aux = _dry_run(fn, tensors, count)
        track = track or (torch.is_grad_enabled() and any(x.requires_grad for x in captured))
        run = _backend(fn, tensors, captured, size, backend, track)
    except Exception as error:  # whatever the tracer or the compiler could not do, eager code can
        run, reason = None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        logger.warning("metaopt: %s stays eager. %s", name, reason)
    seconds = time.perf_counter() - start
    return Compiled(name, run, captured, aux, backend, seconds, count.operations, reason)


def _dry_run(fn: Flat, tensors: Sequence[Tensor], count: _Count) -> tuple[list[Tensor], int, Any]:
    """Run on fake tensors: which tensors were captured, how many come out, and what is known of them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    capture = _Captured({})
    with torch.no_grad(), mode:
        fake = [_example(x, False) for x in tensors]
        with capture, count:
            outputs, aux = fn(*fake)
    if count.random:
        raise CompileError(
            "compile",
            "draws from a seed",
            f"torch's generator ({count.random})",
            "",
            "Pass map_tasks(seed=).",
        )
    return list(capture.found.values()), len(outputs), aux


def _backend(
    fn: Flat, tensors: Sequence[Tensor], captured: list[Tensor], size: int, backend: Any, track: bool
) -> Callable[..., Any]:
    """Let the backend trace ``fn`` as the one node of a graph."""
    number = len(tensors)

    def node(*given: Tensor) -> list[Tensor]:
        swapped = {id(x): y for x, y in zip(captured, given[number:], strict=True)}
        with _Captured(swapped) if captured else nullcontext():
            return list(fn(*given[:number])[0])

    graph = fx.Graph()
    inputs = [graph.placeholder(f"x{i}") for i in range(number + len(captured))]
    out = graph.call_function(node, tuple(inputs))
    graph.output(tuple(graph.call_function(_item, (out, i)) for i in range(size)))
    # _dynamo's table of backends; dynamo itself, which cannot follow torch.func into modules, is not used
    from torch._dynamo.backends.registry import lookup_backend
    from torch._functorch import config

    examples = [_example(x, track) for x in (*tensors, *captured)]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with (
        torch.set_grad_enabled(track),
        tracing(TracingContext(mode)),
        # torch's cache keys graphs, and ours has one opaque node; the backward is compiled now, not later
        config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of torch's compiler, about itself
        return lookup_backend(backend)(fx.GraphModule({}, graph), examples)


def _item(xs: Sequence[Tensor], i: int) -> Tensor:
    return xs[i]


def _example(x: Tensor, track: bool) -> Tensor:
    """A tensor of the same kind without a history, nor a base with one."""
    new = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return new.requires_grad_(track and x.requires_grad)


class _Captured(TorchFunctionMode):
    """Puts ``swap[id(x)]`` in the place of every real tensor x; collects those that have none."""

    def __init__(self, swap: dict[int, Tensor]) -> None:
        super().__init__()
        self.swap = swap
        self.found: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*self._of(args), **self._of(kwargs or {}))

    def _of(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            if id(x) in self.swap:
                return self.swap[id(x)]
            if not self.swap and _real(x):
                self.found[id(x)] = x
            return x
        if type(x) in (tuple, list):
            return type(x)(self._of(y) for y in x)
        if type(x) is dict:
            return {k: self._of(v) for k, v in x.items()}
        return x


def _real(x: Tensor) -> bool:
    """Whether the tensor was there before the run."""
    if is_functorch_wrapped_tensor(x):
        inner = x
        while is_functorch_wrapped_tensor(inner):
            inner = torch._C._functorch.get_unwrapped(inner)
        if isinstance(inner, FakeTensor):
            return False
        raise CompileError("compile", "captured tensors that are plain", "one of a map or derivative")
    return not isinstance(x, FakeTensor)


class _Count(TorchDispatchMode):
    """Counts operations, and names one that draws from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.random = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random = str(func)
        return func(*args, **(kwargs or {}))
