"""One run of a function on tensors without numbers: what it captures, computes and draws."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from metaopt.errors import CompileError
from metaopt.replay import bare, scaled_zero

__all__ = ["Captured", "Count", "draws", "dry_run", "example"]


def dry_run(
    fn: Callable[..., Any], tensors: Sequence[Tensor], track: bool = False
) -> tuple[Any, list[Tensor]]:
    """Run on fake tensors; return what came out, and which real tensors were captured.

    ``track``: what needs a gradient is tracked, so that what comes out tells whether it does.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    capture, dice = Captured({}), _Dice()
    with torch.set_grad_enabled(track), mode:
        fake = [example(x, track) for x in tensors]
        with capture:
            out = fn(*fake)
    if dice.put_back():
        raise draws("random's or numpy's")
    return out, list(capture.found.values())


def draws(whose: str) -> CompileError:
    remedy = "Pass map_tasks(seed=), and draw by torch."
    return CompileError("compile", "draws from a seed", f"a generator's ({whose})", "", remedy)


class _Dice:
    """Python's and numpy's generators, whose draws would be constants of compiled code."""

    def __init__(self) -> None:
        self.numpy: Any = sys.modules.get("numpy")
        self.before = self.state()

    def state(self) -> tuple[Any, ...]:
        drawn = self.numpy.random.get_state() if self.numpy else ()
        return random.getstate(), tuple(x.tobytes() if hasattr(x, "tobytes") else x for x in drawn), drawn

    def put_back(self) -> bool:
        """Undo what was drawn; tell whether anything was."""
        rolled = self.state()[:2] != self.before[:2]
        if rolled:
            random.setstate(self.before[0])
            if self.numpy:
                self.numpy.random.set_state(self.before[2])
        return rolled


def example(x: Tensor, track: bool) -> Tensor:
    """A tensor of the same kind without a history, nor a base with one."""
    new = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return new.requires_grad_(track and x.requires_grad)


class Scaled(TorchFunctionMode):
    """Writes a + α b out: inductor makes an addmm of a sum with a product, and forgets α (torch 2.13)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _SUMS or "alpha" not in kwargs or len(args) != 2:
            return func(*args, **kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "alpha"}
        return func(args[0], args[1] * kwargs["alpha"], **rest)


_SUMS = {torch.add, torch.sub, Tensor.add, Tensor.sub, Tensor.add_, Tensor.sub_}


class Captured(TorchFunctionMode):
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
        if isinstance(bare(x), FakeTensor):
            return False
        raise CompileError("compile", "captured tensors that are plain", "one of a map or derivative")
    return not isinstance(x, FakeTensor)


class Count(TorchDispatchMode):
    """Counts operations, and names one that draws from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.random = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random = str(func)
        if scaled_zero(func, args):  # and the compiled code would be
            raise CompileError("compile", "tangents that torch can compile", "one of known zeros, scaled")
        return func(*args, **(kwargs or {}))
