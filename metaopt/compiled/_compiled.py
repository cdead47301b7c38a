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
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode

from metaopt.compiled._fingerprint import fingerprint
from metaopt.compiled._table import Table
from metaopt.compiled._trace import Captured, Count, Scaled, draws, dry_run, example
from metaopt.errors import CompileError
from metaopt.exact import exact

__all__ = [
    "Compiled",
    "Owner",
    "compile_report",
    "compiled",
    "find",
    "forget_compiled",
    "kind_of",
    "owner",
]

logger = logging.getLogger("metaopt")
Flat = Callable[..., tuple[Sequence[Tensor], Any]]
_cache = Table()


class Compiled(NamedTuple):
    """A compiled function and what became of it: a row of `compile_report`."""

    name: str
    run: Callable[..., Any] | None  # None where it stayed eager
    captured: list[Tensor]
    taken: Any  # the kinds of what was captured
    aux: Any
    backend: Any
    seconds: float
    operations: int
    reason: str
    joint: bool = False  # whether the gradient is compiled with the value

    def code(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the function returns."""
        assert self.run is not None
        return tuple(self.run(*tensors, *self.captured))

    @staticmethod
    def eager(run: Callable[..., Any]) -> Compiled:
        """What runs as it is."""
        return Compiled("", run, [], (), None, None, 0.0, 0, "")

    def __repr__(self) -> str:
        state = f"{self.backend}, {self.seconds:.1f} s" if self.run else f"eager: {self.reason}"
        return f"{self.name} ({self.operations} operations): {state}"


class Owner(NamedTuple):
    """What a compiled function depends on beside tensors, as a number that is equal where that is."""

    token: int
    anchors: list[Any]  # what was compared by identity must live as long as the token


_tokens = Table()
_numbers = itertools.count()


def owner(static: Any, *values: Any) -> Owner:
    """The owner that stands for a hashable and for values (functions among them) by `fingerprint`."""
    found, anchors = fingerprint(*values)
    key = (static, found)
    return _tokens.keep(key, _tokens.get(key) or Owner(next(_numbers), anchors))


def find(
    name: str, fn: Flat, tensors: Sequence[Tensor], owner: Owner, backend: Any, more: Any = None
) -> Compiled:
    """``fn(*tensors) -> (tensors, aux)``, compiled where no call of its kind was before.

    Args: name: for `compile_report`.
          fn: pure; ``aux`` is whatever is known of the result without its numbers.
          owner: what else ``fn`` depends on.
          backend: of torch.compile.
          more: hashable, a further part of the key.
    Raises: CompileError where ``fn`` cannot be traced or compiled; said once, remembered after.
    Cost: the first call takes seconds to minutes; later ones, some ten microseconds.
    """
    key = kind_of(name, tensors, owner, backend, more)
    entry = _cache.get(key)
    if entry is None or entry.taken != _kinds(entry.captured):
        track = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        entry = _compile(name, fn, tensors, backend, track)._replace(joint=more == "gradients")
    _cache.keep(key, entry)
    if entry.run is None:
        raise CompileError(f"compile({name})", "a function that can be traced", entry.reason)
    return entry


def compiled(
    name: str, fn: Flat, tensors: Sequence[Tensor], owner: Owner, backend: Any, more: Any = None
) -> tuple[tuple[Tensor, ...], Any]:
    """Return ``fn(*tensors)`` by the code that `find` finds."""
    entry = find(name, fn, tensors, owner, backend, more)
    return entry.code(*tensors), entry.aux


def compile_report() -> list[Compiled]:
    """What was compiled so far, or stayed eager and why; the last used last."""
    return list(_cache.values())


def forget_compiled() -> None:
    """Drop every compiled function, and the tensors and modules that they hold."""
    for table in Table.all:
        table.clear()


def kind_of(name: str, tensors: Sequence[Tensor], owner: Owner, backend: Any, more: Any = None) -> Any:
    """A key that is equal for calls which the same compiled code can serve."""
    track = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    kinds = tuple(_kind(x, track) for x in tensors)
    return name, owner.token, more, backend, torch.is_grad_enabled(), kinds, exact.always_on(), _ambient()


def _kind(x: Tensor, track: bool) -> tuple[Any, ...]:
    needed = track and x.requires_grad
    return x.shape, x.stride(), x.dtype, x.device, needed, type(x) if type(x) is not Tensor else None


def _kinds(captured: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple(_kind(x, torch.is_grad_enabled()) for x in captured)


def _ambient() -> tuple[Any, ...]:
    """What torch is set to, which code may read without a name for it."""
    here = torch.get_default_dtype(), torch.get_default_device()
    if not torch._C._is_any_autocast_enabled():
        return here
    devices = ("cpu", "cuda")
    return here + tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices)


def _compile(name: str, fn: Flat, tensors: Sequence[Tensor], backend: Any, track: bool) -> Compiled:
    start, count, aux, reason = time.perf_counter(), Count(), None, ""
    captured: list[Tensor] = []
    run: Callable[..., Any] | None
    try:
        if backend == "aot_eager" and torch._C._is_any_autocast_enabled():
            # kernels under autocast give strides that the trace does not foresee: torch's view error
            raise CompileError(
                f"compile({name})", "a backend that lays tensors out anew", "aot_eager, autocast"
            )
        with count:
            (outputs, aux), captured = dry_run(fn, tensors)
        if count.random:
            raise draws(count.random)
        track = track or (torch.is_grad_enabled() and any(x.requires_grad for x in captured))
        run = _as_generated(_backend(fn, tensors, captured, len(outputs), backend, track))
    except Exception as error:  # whatever the tracer or the compiler could not do, eager code can
        run, reason = None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        logger.warning("metaopt: %s stays eager. %s", name, reason)
    seconds = time.perf_counter() - start
    return Compiled(name, run, captured, _kinds(captured), aux, backend, seconds, count.operations, reason)


def _as_generated(code: Callable[..., Any]) -> Callable[..., Any]:
    """``code`` out of the modes it stands in, which have no say in what was traced under them."""

    def run(*xs: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return code(*xs)

    return run


def _backend(
    fn: Flat, tensors: Sequence[Tensor], captured: list[Tensor], size: int, backend: Any, track: bool
) -> Callable[..., Any]:
    """Let the backend trace ``fn`` as the one node of a graph."""
    number = len(tensors)

    def node(*given: Tensor) -> list[Tensor]:
        swapped = {id(x): y for x, y in zip(captured, given[number:], strict=True)}
        with Scaled(), Captured(swapped) if captured else nullcontext():
            return list(fn(*given[:number])[0])

    graph = fx.Graph()
    inputs = [graph.placeholder(f"x{i}") for i in range(number + len(captured))]
    out = graph.call_function(node, tuple(inputs))
    graph.output(tuple(graph.call_function(_item, (out, i)) for i in range(size)))
    # _dynamo's table of backends; dynamo itself, which cannot follow torch.func into modules, is not used
    from torch._dynamo.backends.registry import lookup_backend
    from torch._functorch import config
    from torch._functorch._aot_autograd import graph_compile

    examples = [example(x, track) for x in (*tensors, *captured)]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with (
        torch.set_grad_enabled(track),
        tracing(TracingContext(mode)),
        # torch's cache keys graphs, and ours has one opaque node; the backward is compiled now, not later
        config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
        # and takes what was saved as it finds it: it may be called again, by retain_graph=True
        patch.object(graph_compile, "collect_bw_donated_buffer_idxs", lambda *_: []),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of torch's compiler, about itself
        return lookup_backend(backend)(fx.GraphModule({}, graph), examples)


def _item(xs: Sequence[Tensor], i: int) -> Tensor:
    return xs[i]
