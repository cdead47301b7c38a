"""A module's structure, copied: the tensors are shared, the slots that hold them are not."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

__all__ = ["skeleton"]

_HOOKS = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
_ATOMS = (bool, int, float, str, type(None))


def skeleton(module: nn.Module) -> nn.Module:
    """A copy of the module that shares its tensors: swapping them there leaves the original alone."""
    memo: dict[int, Any] = {}
    for layer in module.modules():
        for value in (*layer._parameters.values(), *layer._buffers.values(), *vars(layer).values()):
            if isinstance(value, Tensor):
                memo[id(value)] = value
    return _copied(module, memo)


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy`` of a module in a third of its time: most attributes are numbers or empty dicts."""
    if id(module) in memo:
        return memo[id(module)]
    cls = type(module)
    home = nn.RNNBase if isinstance(module, nn.RNNBase) else nn.Module  # its hooks are about weak references
    if any(getattr(cls, name, None) is not getattr(home, name, None) for name in _HOOKS):
        return copy.deepcopy(module, memo)
    new = memo[id(module)] = cls.__new__(cls)
    table = vars(new)
    for name, value in vars(module).items():
        kind = type(value)
        if kind in _ATOMS or kind is Tensor or kind is nn.Parameter:
            table[name] = value
        elif kind in (dict, OrderedDict) and not value:
            table[name] = kind()
        elif name in ("_parameters", "_buffers"):
            table[name] = value.copy()
        elif name == "_modules":
            table[name] = kind((k, None if m is None else _copied(m, memo)) for k, m in value.items())
        elif name != "_compiled_call_impl":
            table[name] = copy.deepcopy(value, memo)
    return new
