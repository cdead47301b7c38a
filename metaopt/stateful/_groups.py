"""Parameter groups: a live optimizer's settings, what is laid over them, and the rule they stand for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt import tree
from metaopt.errors import ArgumentError
from metaopt.optim import from_torch
from metaopt.optim._torch import KNOWN, TUPLES, settings_of
from metaopt.types import Optimizer

__all__ = ["Groups", "ImperativeGroups", "PureGroups", "factory_of", "lay_over", "shadow"]

Dicts = list[dict[str, Any]]


def factory_of(opt_type: type) -> Callable[..., Optimizer] | None:
    """The pure optimizer's function for a class of torch.optim's, or for a subclass of one."""
    return next((KNOWN[cls] for cls in opt_type.__mro__ if cls in KNOWN), None)


def shadow(live: torch.optim.Optimizer, dicts: Dicts, state: Any) -> torch.optim.Optimizer:
    """An optimizer of the same class over the same parameters, with these settings and this state."""
    other = object.__new__(type(live))
    vars(other).update(vars(live), state=state)
    other.param_groups = [
        {"params": own["params"], **d} for own, d in zip(live.param_groups, dicts, strict=True)
    ]
    return other


def lay_over(where: str, dicts: Dicts, known: list[set[str]], override: Mapping[str, Any]) -> None:
    """Write ``{key: one value, [one for all groups] or [one a group]}`` into the groups."""
    if not isinstance(override, Mapping):
        raise ArgumentError(where, "a dict of settings", type(override).__name__)
    if override and not dicts:
        expected, remedy = "settings with names", "Give its hparams their values where it is made."
        raise ArgumentError(where, expected, "an optimizer whose hparams have none", remedy=remedy)
    for key, values in override.items():
        if not all(key in names for names in known):
            expected = f"one of {sorted(set().union(*known))}"
            raise ArgumentError(where, expected, repr(key), remedy="Flags about speed have no effect here.")
        alone = isinstance(values, (int, float, Tensor)) or (isinstance(values, tuple) and key in TUPLES)
        if not alone and not isinstance(values, (list, tuple)):
            raise ArgumentError(where, "a number, a tensor or a list", type(values).__name__, at=repr(key))
        listed = [values] if alone else list(values)
        if len(listed) not in (1, len(dicts)):
            expected = f"1 value, or one for each of {len(dicts)} groups"
            raise ArgumentError(where, expected, str(len(listed)), at=repr(key))
        size = len(TUPLES[key]) if key in TUPLES and isinstance(dicts[0].get(key), (tuple, list)) else 0
        for value in listed if size else ():
            if not isinstance(value, (tuple, list)) or len(value) != size:
                raise ArgumentError(where, f"a tuple of {size}", repr(value), at=repr(key))
        for i, d in enumerate(dicts):
            d[key] = listed[0] if len(listed) == 1 else listed[i]


class Groups:
    """The settings of an inner optimizer from torch.optim, and the pure rule that they stand for.

    ``dicts`` may be written to between steps: `rule` looks for what has changed.
    """

    def __init__(self, opt: torch.optim.Optimizer) -> None:
        self.opt = opt
        self.dicts = [{k: v for k, v in g.items() if k != "params"} for g in opt.param_groups]
        self.pure, self.trained, state = from_torch(shadow(opt, self.dicts, opt.state))
        self.state = tree.map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, state)
        self.hparams = self.pure.hparams
        factory: Any = factory_of(type(opt))
        self.known = [set(settings_of(factory))] * len(self.dicts)
        self.seen = [dict(d) for d in self.dicts]

    def rule(self, state: Any) -> tuple[Any, Any]:
        """The hyperparameters as the settings are now, and the state in the form that they need."""
        for i, (now, seen) in enumerate(zip(self.dicts, self.seen, strict=True)):
            changed = {k: v for k, v in now.items() if k not in seen or seen[k] is not v}
            if not changed:
                continue
            self.seen[i] = dict(now)
            fields = self._fields(i, changed)
            before = self.hparams[i]
            if fields is None or any(_off(getattr(before, k)) != _off(v) for k, v in fields.items()):
                state = self._rebuilt(state)
            else:
                self.hparams = (*self.hparams[:i], before._replace(**fields), *self.hparams[i + 1 :])
        return self.hparams, state

    def _fields(self, i: int, changed: dict[str, Any]) -> dict[str, Any] | None:
        """The hyperparameters behind torch's names; None where a setting is none, but part of the rule."""
        fields: dict[str, Any] = {}
        for key, value in changed.items():
            names = TUPLES.get(key, (key,))
            if not all(name in self.hparams[i]._fields for name in names):
                names = (key,)
            if not all(name in self.hparams[i]._fields for name in names):
                return None
            value = self._spread(i, value)
            fields |= dict(zip(names, value if len(names) > 1 else (value,), strict=True))
        return None if any(v is None for v in fields.values()) else fields

    def _rebuilt(self, state: Any) -> Any:
        """The rule anew, and its state from the old one: a field that was not kept starts at zero."""
        dicts = [{k: self._spread(i, v) for k, v in d.items()} for i, d in enumerate(self.dicts)]
        self.pure, _, fresh = from_torch(shadow(self.opt, dicts, {}))
        self.hparams = self.pure.hparams

        def grown(old: Any, new: Any) -> Any:
            return type(new)(*(b if _absent(a) or _absent(b) else a for a, b in zip(old, new, strict=True)))

        return tuple(grown(old, new) for old, new in zip(state, fresh, strict=True))

    def _spread(self, i: int, value: Any) -> Any:
        """One value a parameter as the pure rule takes it; a tensor of one entry as a 0-d one."""
        if isinstance(value, tuple):
            return tuple(self._spread(i, v) for v in value)
        if isinstance(value, Tensor) and value.ndim and value.numel() == 1:
            return value.reshape(())
        if not isinstance(value, list):
            return value
        sizes = [sum(p.requires_grad for p in g["params"]) for g in self.opt.param_groups]
        if len(value) != sizes[i]:
            expected = f"{sizes[i]} values, one for each parameter of the group"
            raise ArgumentError("step(override)", expected, str(len(value)), at=f"param_groups[{i}]")
        return [()] * sum(sizes[:i]) + value + [()] * sum(sizes[i + 1 :])


class PureGroups:
    """The same face for a `metaopt.Optimizer`: one group, whose settings are its hyperparameters."""

    def __init__(self, opt: Optimizer, params: Sequence[Tensor], state: Any = None) -> None:
        self.pure, self.trained, self.hparams = opt, list(params), opt.hparams
        self.state = opt.init(self.trained) if state is None else state
        self.dicts: Dicts = [dict(opt.hparams._asdict())] if hasattr(opt.hparams, "_asdict") else []
        self.known = [set(d) for d in self.dicts]

    def rule(self, state: Any) -> tuple[Any, Any]:
        if self.dicts and any(v is not getattr(self.hparams, k) for k, v in self.dicts[0].items()):
            self.hparams = type(self.hparams)(**self.dicts[0])
        return self.hparams, state


class ImperativeGroups:
    """The same face for ``_update(grouped_grads)``, the form in which `higher` had rules written."""

    def __init__(self, opt: torch.optim.Optimizer, owner: Any) -> None:
        self.owner, self.hparams = owner, None
        self.dicts = [{k: v for k, v in g.items() if k != "params"} for g in opt.param_groups]
        self.known = [set(d) for d in self.dicts]
        columns = [[p for p in g["params"] if p.requires_grad] for g in opt.param_groups]
        self.sizes = [len(column) for column in columns]
        self.trained = [p for column in columns for p in column]
        self.pure = Optimizer(lambda params: (), self._update, None)
        self.state: Any = [defaultdict(dict) for _ in columns]
        for state, column in zip(self.state, columns, strict=True):
            for i, p in enumerate(column):
                if p in opt.state:
                    copied = {
                        k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in opt.state[p].items()
                    }
                    state[i] = copied

    def rule(self, state: Any) -> tuple[Any, Any]:
        return None, state

    def _update(self, params: Any, state: Any, grads: Any, _: Any) -> tuple[Any, Any]:
        moving, slopes = iter(params), iter(grads)
        for d, size in zip(self.dicts, self.sizes, strict=True):
            d["params"] = [next(moving) for _ in range(size)]
        self.owner._update([[next(slopes) for _ in range(size)] for size in self.sizes])
        return [p for d in self.dicts for p in d["params"]], self.owner.state


def _off(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _absent(value: Any) -> bool:
    return isinstance(value, tuple) and value == ()
