"""The fast weights of an fmodel: P[0] … P[t], and the slots of the model in which P[t] stands."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from metaopt.errors import ArgumentError, is_count
from metaopt.slots import Slot, lent

__all__ = ["Weights"]


class Weights:
    """P[0], the latest lists of weights, and where they are placed.

    Tied slots share one entry. The tables are the layers' own dicts, and not the layers, so that
    nothing here points back to the model: a context is freed when its last name is.

    Args: names: of the parameters, in the order of ``model.parameters()``.
          slots: where each of them stands.
          buffers: where each buffer stands, its index counting buffers.
          tracking: False keeps the latest list alone.
          limit: how many of the latest lists are kept besides P[0]; None keeps all.
    """

    def __init__(
        self, names: list[str], slots: list[Slot], buffers: list[Slot], tracking: bool, limit: int | None
    ) -> None:
        if limit is not None and not is_count(limit):
            raise ArgumentError("monkeypatch(history)", "an integer >= 1 or None", repr(limit))
        self.names, self.slots, self.buffers = names, slots, buffers
        self.tracking, self.order = tracking, 2
        self.latest: deque[list[Tensor]] = deque(maxlen=limit)
        self.first: list[Tensor] = []
        self.count = -1  # updates since P[0]
        self.borrowed: list[Tensor] | None = None

    @property
    def twice(self) -> bool:
        """Whether the model's gradients will be differentiated, which the layers have to be fit for."""
        return self.tracking and self.order == 2

    @property
    def now(self) -> list[Tensor] | None:
        """P[t], with what was assigned to a layer's attribute since; None before there is any."""
        if self.borrowed is not None:
            return self.borrowed
        if not self.latest:
            return None
        values = self.latest[-1]
        for table, name, i in self.slots:
            if table[name] is not values[i]:
                values = list(values)
                values[i] = table[name]
                self.append(values)
        return values

    def read(self, where: str, params: Iterable[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        """One tensor for each parameter, from a sequence in their order or a mapping by name."""
        if isinstance(params, Mapping):
            odd = sorted(params.keys() ^ set(self.names))
            if odd:
                got = f"{'one more' if odd[0] in params else 'none'} at {odd[0]!r}"
                raise ArgumentError(where, f"the {len(self.names)} parameters by name", got)
            return [params[name] for name in self.names]
        values = list(params)
        if len(values) != len(self.names) or not all(isinstance(p, Tensor) for p in values):
            got = f"{len(values)} entries of {sorted({type(p).__name__ for p in values})}"
            remedy = "Pass them in the order of fmodel.parameters()."
            raise ArgumentError(where, f"{len(self.names)} tensors", got, remedy=remedy)
        return values

    def append(self, values: list[Tensor]) -> None:
        """P[t+1] ← values."""
        for table, name, i in self.slots:
            table[name] = values[i]
        if not self.tracking:
            self.latest.clear()
            self.count = -1
        if self.count < 0:
            self.first = values
        self.latest.append(values)
        self.count += 1

    def restart(self, values: list[Tensor]) -> None:
        """P[0] ← values: what was before is forgotten."""
        self.latest.clear()
        self.count = -1
        self.append(values)

    def at(self, time: int | None) -> list[Tensor]:
        """P[time]; the latest where None; negative times count from the latest."""
        now = self.now
        if now is None:
            raise ArgumentError(
                "fmodel.parameters()", "fast weights", "a stateless model", remedy="Call it with params=..."
            )
        if time is None:
            return now
        if not self.tracking:
            if time in (0, -1):
                return now
            remedy = "Only the latest parameters are kept with track_higher_grads=False."
            raise ArgumentError("fmodel.parameters(time)", "None, 0 or -1", repr(time), remedy=remedy)
        index = time if time >= 0 else time + self.count + 1
        if index == 0:
            return self.first
        back = self.count - index
        if 0 <= back < len(self.latest) and index > 0:
            return self.latest[-1 - back]
        kept = f"0, or from {self.count + 1 - len(self.latest)} to {self.count}"
        raise ArgumentError(
            "fmodel.parameters(time)", kept, repr(time), remedy="Raise history=... to keep more."
        )

    @contextmanager
    def lent(self, values: Sequence[Tensor], buffers: Sequence[Any]) -> Iterator[None]:
        """Other weights and buffers for the time of a call."""
        outer, self.borrowed = self.borrowed, list(values)
        try:
            with lent(self.slots, values), lent(self.buffers, buffers):
                yield
        finally:
            self.borrowed = outer

    def held(self) -> list[Tensor]:
        """The buffers as they stand, each once."""
        found = {i: table[name] for table, name, i in self.buffers}
        return [found[i] for i in sorted(found)]

    def put(self, buffers: Sequence[Tensor]) -> None:
        """Place buffers."""
        for table, name, i in self.buffers:
            table[name] = buffers[i]

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        slots, buffers = copy.deepcopy((self.slots, self.buffers), memo)
        new = Weights(list(self.names), slots, buffers, self.tracking, self.latest.maxlen)
        new.order = self.order
        if self.now is not None:
            new.restart(copy.deepcopy(self.now, memo))
        return new
