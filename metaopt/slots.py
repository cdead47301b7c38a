"""Where a module keeps its tensors, and other tensors put there for the time of a call.

``torch.func.functional_call`` finds every slot anew, by name and with checks, at every call. A slot is
its layer's own table and a name in it, so that a call needs to assign, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["Slot", "lent", "slots_of", "tables_of"]

Slot = tuple[dict[str, Any], str, Any]  # a layer's table, the attribute, and the key of what stands there


def slots_of(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every (module, attribute) slot that holds a tensor, once, and the name its tensor goes by.

    >>> list(slots_of(nn.Linear(2, 1))[0])
    ['weight', 'bias']
    """
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    first: dict[int, str] = {}
    for path, layer in module.named_modules():  # a module registered twice comes once
        for table in (layer._parameters, layer._buffers):
            for attribute, tensor in table.items():
                if tensor is None:
                    continue
                slot = f"{path}.{attribute}" if path else attribute
                names[slot] = first.setdefault(id(tensor), slot)
                tensors.setdefault(names[slot], tensor)
    return tensors, names


def tables_of(module: nn.Module, names: Mapping[str, str]) -> list[Slot]:
    """The slots of a module that is like the one with these ``names``."""
    layers = dict(module.named_modules())
    found: list[Slot] = []
    for slot, key in names.items():
        path, _, attribute = slot.rpartition(".")
        layer = layers[path]
        table: Any = layer._parameters if attribute in layer._parameters else layer._buffers
        found.append((table, attribute, key))
    return found


@contextmanager
def lent(slots: Sequence[Slot], values: Mapping[str, Tensor] | Sequence[Tensor]) -> Iterator[None]:
    """The tensors of ``values`` in the slots, and afterwards what stood there before.

    >>> import torch
    >>> layer = nn.Linear(1, 1)
    >>> slots = tables_of(layer, slots_of(layer)[1])
    >>> with lent(slots, {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}):
    ...     layer(torch.ones(1))
    tensor([1.])
    """
    before = [table[name] for table, name, _ in slots]
    try:
        for table, name, key in slots:
            table[name] = values[key]
        yield
    finally:
        for (table, name, _), old in zip(slots, before, strict=True):
            table[name] = old
