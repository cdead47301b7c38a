"""From a live torch.optim.Optimizer to pure functions, and back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metaopt import tree
from metaopt.errors import ArgumentError, StructureError
from metaopt.optim import (
    _adadelta,
    _adafactor,
    _adagrad,
    _adam,
    _adamax,
    _adamw,
    _asgd,
    _muon,
    _nadam,
    _radam,
    _rmsprop,
    _rprop,
    _sgd,
)
from metaopt.optim._partition import partition
from metaopt.types import Optimizer

__all__ = ["FromTorch", "from_torch", "to_torch"]

_FACTORIES: dict[str, Callable[..., Optimizer]] = {
    "SGD": _sgd.sgd,
    "AdamW": _adamw.adamw,
    "Adam": _adam.adam,
    "NAdam": _nadam.nadam,
    "RAdam": _radam.radam,
    "Adamax": _adamax.adamax,
    "Adagrad": _adagrad.adagrad,
    "Adadelta": _adadelta.adadelta,
    "RMSprop": _rmsprop.rmsprop,
    "ASGD": _asgd.asgd,
    "Rprop": _rprop.rprop,
    "Adafactor": _adafactor.adafactor,
    "Muon": _muon.muon,
}
KNOWN = {getattr(torch.optim, name): f for name, f in _FACTORIES.items() if hasattr(torch.optim, name)}
# torch's tuples, and the fields of HParams that hold their entries
TUPLES = {
    "betas": ("beta1", "beta2"),
    "etas": ("eta1", "eta2"),
    "step_sizes": ("step_size1", "step_size2"),
    "eps": ("eps1", "eps2"),
    "ns_coefficients": ("ns_a", "ns_b", "ns_c"),
}


class FromTorch(NamedTuple):
    """``optimizer`` with one entry of state and hparams a parameter group, and its ``params``, ``state``."""

    optimizer: Optimizer
    params: Any
    state: Any


def from_torch(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> FromTorch:
    """Take a live optimizer's class, groups, hyperparameters and state.

    Tensors are shared with the live optimizer, whose own step would write to them: detach and clone
    to keep both. Parameters that need no gradient are left out, as `metaopt.functional` does.

    Args: optimizer: any of torch.optim's, or a subclass of one: its update rule is the known class's.
          model: names the parameters as `metaopt.functional` does; parameters of the model that are in
              no group stay as they are. Without a model params are a list, in the order of the groups.
    Returns: FromTorch(optimizer, params, state). ``optimizer.hparams`` and ``state`` are tuples with one
             entry a group.
    Raises: ArgumentError for a class that is not known, or an optimizer of another model.

    >>> import metaopt as mo
    >>> model = nn.Linear(2, 1)
    >>> sgd = torch.optim.SGD([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias]}], lr=0.1)
    >>> opt, params, state = mo.optim.from_torch(sgd, model)
    >>> [group.lr for group in opt.hparams], list(params)
    ([0.5, 0.1], ['weight', 'bias'])
    """
    factory = _factory("from_torch(optimizer)", optimizer)
    params, labels, keys = _layout("from_torch", optimizer, model)
    rules = [_rule(factory, group) for group in optimizer.param_groups]
    opt = partition(rules, labels)
    state = opt.init(params)
    if optimizer.state:
        groups = zip(optimizer.param_groups, keys, state, strict=True)
        state = tuple(_state_in(optimizer, group, names, fresh, params) for group, names, fresh in groups)
    return FromTorch(opt, params, state)


def to_torch(
    optimizer: torch.optim.Optimizer,
    params: Any,
    state: Any,
    hparams: Any = None,
    model: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """Write parameters, state and hyperparameters back into the optimizer they came from.

    What it held besides (closures, flags about speed, the groups themselves) stays as it is.

    Args: optimizer: the live optimizer given to `from_torch`, or one built in the same way.
          params, state, hparams: as the update of ``from_torch(optimizer).optimizer`` takes and returns
              them; hparams None leaves the hyperparameters alone.
          model: as in `from_torch`.
    Returns: the same optimizer, written in place.
    Raises: ArgumentError, StructureError as `from_torch`; ArgumentError for hyperparameters per leaf,
            which torch's groups cannot hold.

    >>> import metaopt as mo
    >>> p = nn.Parameter(torch.ones(1))
    >>> live = torch.optim.Adam([p], lr=0.1)
    >>> opt, params, state = mo.optim.from_torch(live)
    >>> params, state = opt.update(params, state, [torch.ones(1)], opt.hparams)
    >>> to_torch(live, params, state) is live, p, live.state[p]["step"]
    (True, Parameter containing:
    tensor([0.9000], requires_grad=True), tensor(1.))
    """
    _factory("to_torch(optimizer)", optimizer)
    own, _, keys = _layout("to_torch", optimizer, model)
    tree.check_same("to_torch(params)", params, own, shapes=True)
    if not isinstance(state, tuple) or len(state) != len(keys):
        expected = f"a state for each of {len(keys)} groups"
        raise StructureError("to_torch(state)", expected, type(state).__name__)
    with torch.no_grad():
        for p, q in zip(tree.leaves(own), tree.leaves(params), strict=True):
            if p is not q:
                p.copy_(q)
        for i, (group, names) in enumerate(zip(optimizer.param_groups, keys, strict=True)):
            if hparams is not None:
                _write_hparams(group, hparams[i])
            _state_out(optimizer, group, names, state[i], own)
    return optimizer


def _factory(where: str, optimizer: Any) -> Callable[..., Optimizer]:
    for cls in type(optimizer).__mro__:
        if cls in KNOWN:
            return KNOWN[cls]
    expected = f"one of torch.optim's {', '.join(sorted(c.__name__ for c in KNOWN))}, or a subclass"
    remedy = "Write its rule as a metaopt.Optimizer(init, update, hparams)."
    raise ArgumentError(where, expected, type(optimizer).__qualname__, remedy=remedy)


def _rule(factory: Callable[..., Optimizer], group: dict[str, Any]) -> Optimizer:
    """The group's hyperparameters under the same names; what is about speed alone is left out."""
    names = settings_of(factory)
    return factory(**{k: v for k, v in group.items() if k in names})


@functools.lru_cache(maxsize=64)
def settings_of(factory: Callable[..., Optimizer]) -> frozenset[str]:
    """The names of what an optimizer is built with."""
    return frozenset(inspect.signature(factory).parameters)


def _layout(
    call: str, optimizer: torch.optim.Optimizer, model: nn.Module | None
) -> tuple[Any, Any, list[list[Any]]]:
    """params; the group of each; and for every group its parameters' keys, None for frozen ones."""
    groups = [group["params"] for group in optimizer.param_groups]
    if model is None:
        found = [p for group in groups for p in group if p.requires_grad]
        labels = [i for i, group in enumerate(groups) for p in group if p.requires_grad]
        index = {id(p): i for i, p in enumerate(found)}
        return found, labels, [[index.get(id(p)) for p in group] for group in groups]
    named = dict(getattr(model, "_orig_mod", model).named_parameters())  # a tied one once, as functional
    params = {name: p for name, p in named.items() if p.requires_grad}
    names = {id(p): name for name, p in params.items()}
    frozen = {id(p) for p in named.values() if not p.requires_grad}
    label_of: dict[str, Any] = dict.fromkeys(params)
    keys: list[list[Any]] = []
    for i, group in enumerate(groups):
        keys.append([])
        for j, p in enumerate(group):
            if id(p) not in names and id(p) not in frozen:
                got = f"one of shape {list(p.shape)} that is not"
                at = f"param_groups[{i}]['params'][{j}]"
                raise ArgumentError(f"{call}(model)", "parameters that are in the model", got, at)
            name = names.get(id(p))
            keys[-1].append(name)
            if name is not None:
                label_of[name] = i
    return params, label_of, keys


def _step_of(saved: dict[str, Any], device: Any) -> Tensor:
    """Steps taken. SGD and Muon count none: a buffer tells that the first is past."""
    default = 1.0 if saved.get("momentum_buffer") is not None else 0.0
    step = saved.get("step", default)
    return torch.as_tensor(step, dtype=torch.float64).detach().clone().to(device)


def _state_in(optimizer: Any, group: Any, names: list[Any], fresh: Any, params: Any) -> Any:
    """The group's state, in the fields of its rule: what torch has not begun yet is fresh."""
    saved = {k: optimizer.state.get(p, {}) for k, p in zip(names, group["params"]) if k is not None}
    own = _by_key(params)

    def field(name: str, start: Any) -> Any:
        if isinstance(start, tuple) and start == ():
            return start
        if name == "step":
            steps = {k: _step_of(s, own[k].device) for k, s in saved.items()}
            values = {float(t) for t in steps.values()}
            if len(values) <= 1:
                return start + values.pop() if values else start
            return _filled(params, steps)
        entries = _by_key(start)
        chosen = {}
        for k, before in entries.items():
            value = saved.get(k, {}).get(name)
            if value is None or not isinstance(before, Tensor):
                chosen[k] = before
            else:
                chosen[k] = torch.as_tensor(value).to(before.dtype).to(before.device)
        return _filled(params, chosen)

    return type(fresh)(*(field(name, getattr(fresh, name)) for name in fresh._fields))


def _state_out(optimizer: Any, group: Any, names: list[Any], state: Any, params: Any) -> None:
    for k, p in zip(names, group["params"], strict=True):
        if k is None:
            continue
        step = _entry(state.step, k, params) if "step" in state._fields and state.step != () else None
        begun = step is None or float(step) > 0
        saved: dict[str, Any] = dict(optimizer.state.get(p, {}))
        for name in state._fields:
            value = getattr(state, name)
            if isinstance(value, tuple) and value == ():
                continue
            entry = _entry(value, k, params)
            if not isinstance(entry, Tensor):
                continue
            entry = entry.detach().clone()
            if name in ("step", "eta", "mu_product") and entry.ndim == 0:
                if name in saved or not isinstance(optimizer, torch.optim.SGD):
                    saved[name] = _scalar_like(saved.get(name), entry)
            elif name in saved and isinstance(saved[name], Tensor):
                saved[name] = entry.to(saved[name].dtype)
            else:
                saved[name] = entry.to(p.dtype)
        if isinstance(optimizer, torch.optim.ASGD) and step is not None:
            mu = torch.as_tensor(1 / max(1.0, float(step) - float(group["t0"])))
            saved["mu"] = _scalar_like(saved.get("mu"), mu)
        if begun or p in optimizer.state:
            optimizer.state[p] = saved


def _scalar_like(old: Any, new: Tensor) -> Tensor:
    dtype = old.dtype if isinstance(old, Tensor) else torch.get_default_dtype()
    device = old.device if isinstance(old, Tensor) else torch.device("cpu")
    return new.to(device, torch.float64 if dtype == torch.float64 else torch.float32)


def _write_hparams(group: dict[str, Any], hparams: Any) -> None:
    """Numbers under torch's names, in the type that the group holds them in."""
    for name in list(group):
        fields = TUPLES.get(name, ())
        if not fields or not all(f in hparams._fields for f in fields):
            fields = (name,) if name in hparams._fields else ()
        if not fields:
            continue
        old = group[name] if len(fields) > 1 else (group[name],)
        new = tuple(_number(f, getattr(hparams, f), o) for f, o in zip(fields, old, strict=True))
        group[name] = new if len(fields) > 1 else new[0]


def _number(field: str, value: Any, old: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.detach().to(old.dtype) if isinstance(old, Tensor) else value.item()
    if not isinstance(value, (int, float)):
        raise ArgumentError(f"to_torch(hparams.{field})", "a number or a 0-d tensor", type(value).__name__)
    if old is None and value == 0:  # Adafactor's machine epsilon
        return None
    return torch.as_tensor(value).to(old) if isinstance(old, Tensor) else value


def _by_key(params: Any) -> dict[Any, Any]:
    return params if isinstance(params, dict) else dict(enumerate(params))


def _filled(params: Any, entries: dict[Any, Any]) -> Any:
    """A tree like params with these entries, and ``()`` in the other places."""
    if isinstance(params, dict):
        return {k: entries.get(k, ()) for k in params}
    return [entries.get(k, ()) for k in range(len(params))]


def _entry(value: Any, key: Any, params: Any) -> Any:
    return value if isinstance(value, Tensor) else value[key]
