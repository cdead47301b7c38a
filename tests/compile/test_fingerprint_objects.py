"""What a loss may read of classes, objects and layers: a change is seen wherever a user would make it."""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import metaopt as mo
from metaopt.compiled._fingerprint import fingerprint

Change = Callable[[], Any]
SCALE = 1.0


class Config:
    scale = 1.0


class _Base:
    factor = 1.0

    def __init__(self) -> None:
        self._scale, self.steps, self.config = 1.0, 0, types.SimpleNamespace(scale=1.0)

    @property
    def scale(self) -> float:
        return self._scale

    def loss(self, x: Any) -> Any:
        return self.scale * x

    def of_config(self, x: Any) -> Any:
        return self.config.scale * x

    def of_global(self, x: Any) -> Any:
        return self.helper(x)

    def helper(self, x: Any) -> Any:
        return SCALE * x

    def of_class(self, x: Any) -> Any:
        return self.factor * x

    @classmethod
    def of_method(cls, x: Any) -> Any:
        return cls.factor * x

    @staticmethod
    def static(x: Any) -> Any:
        return Config.scale * x


class _Derived(_Base):
    def loss(self, x: Any) -> Any:
        return super().loss(x)

    def __call__(self, x: Any) -> Any:
        return self.helper(x)


class _Lazy:
    def __init__(self) -> None:
        self.__dict__["content"] = {"scale": 1.0}

    def __getattr__(self, name: str) -> Any:
        return self.content[name]

    def __getitem__(self, name: str) -> Any:
        return self.content[name]


class _Slotted:
    __slots__ = ("scale",)


class _Child(_Slotted):
    __slots__ = ()


class _Layer(nn.Linear):
    factor = 1.0

    def __init__(self) -> None:
        super().__init__(1, 1)
        self._scale, self.config = 1.0, types.SimpleNamespace(scale=1.0)

    def forward(self, x: Any) -> Any:
        return super().forward(x) * self._scale * self.config.scale * self.factor * SCALE


def _global() -> None:
    globals()["SCALE"] += 1


def _class_attribute(cls: type, name: str) -> Change:
    return lambda: setattr(cls, name, getattr(cls, name) + 1)


def _of_object(method: str, *path: str) -> tuple[Any, Change]:
    base = _Derived()
    holder = functools.reduce(getattr, path[:-1], base)
    return getattr(base, method), lambda: setattr(holder, path[-1], 2.0)


def _reads_class() -> tuple[Any, Change]:
    return lambda x: Config.scale * x, _class_attribute(Config, "scale")


def _getattr() -> tuple[Any, Change]:
    lazy = _Lazy()
    return lambda x: lazy.scale * x, lambda: lazy.content.update(scale=2.0)


def _getitem() -> tuple[Any, Change]:
    lazy = _Lazy()
    return lambda x: lazy["scale"] * x, lambda: lazy.content.update(scale=2.0)


def _by_string() -> tuple[Any, Change]:
    config = types.SimpleNamespace(scale=1.0)
    return lambda x: getattr(config, "scale") * x, lambda: vars(config).update(scale=2.0)  # noqa: B009


def _passed_on() -> tuple[Any, Change]:
    config = types.SimpleNamespace(scale=1.0)
    return functools.partial(lambda c, x: c.scale * x, config), lambda: vars(config).update(scale=2.0)


def _slots() -> tuple[Any, Change]:
    child = _Child()
    child.scale = 1.0
    return lambda x: child.scale * x, lambda: setattr(child, "scale", 2.0)


def _containers(kind: Callable[..., Any], key: Any) -> tuple[Any, Change]:
    held = kind()
    return lambda x: held[key] * x, lambda: held.__setitem__(key, 2.0)


def _bound() -> tuple[Any, Change]:
    table = {"scale": 1.0}
    get = table.get
    return lambda x: get("scale") * x, lambda: table.update(scale=2.0)


def _function_attribute() -> tuple[Any, Change]:
    def f(x: Any) -> Any:
        return f.scale * x  # type: ignore[attr-defined]

    f.scale = 1.0  # type: ignore[attr-defined]
    return f, lambda: setattr(f, "scale", 2.0)


def _of_layer(change: Callable[[_Layer], Any]) -> tuple[Any, Change]:
    layer = _Layer()
    return lambda x: torch.func.functional_call(layer, {}, x), lambda: change(layer)


def _of_snapshot(change: Change) -> tuple[Any, Change]:
    apply, params, _ = mo.functional(_Layer())
    return lambda x: apply(params, x), change


CASES: dict[str, Callable[[], tuple[Any, Change]]] = {
    "property": lambda: _of_object("loss", "_scale"),
    "object in an object": lambda: _of_object("of_config", "config", "scale"),
    "global of a method": lambda: (_Base().of_global, _global),
    "global of __call__": lambda: (_Derived(), _global),
    "class attribute of an object": lambda: (_Base().of_class, _class_attribute(_Base, "factor")),
    "class method": lambda: (_Base.of_method, _class_attribute(_Base, "factor")),
    "static method": lambda: (_Base.static, _class_attribute(Config, "scale")),
    "class": _reads_class,
    "__getattr__": _getattr,
    "__getitem__": _getitem,
    "getattr": _by_string,
    "an argument": _passed_on,
    "slots": _slots,
    "deque": lambda: _containers(lambda: collections.deque([1.0]), 0),
    "UserDict": lambda: _containers(lambda: collections.UserDict(scale=1.0), "scale"),
    "bound method of a dict": _bound,
    "attribute of a function": _function_attribute,
    "layer: private attribute": lambda: _of_layer(lambda layer: setattr(layer, "_scale", 2.0)),
    "layer: config": lambda: _of_layer(lambda layer: setattr(layer.config, "scale", 2.0)),
    "layer: class": lambda: _of_layer(lambda _: _class_attribute(_Layer, "factor")()),
    "layer: global": lambda: _of_layer(lambda _: _global()),
    "snapshot: class": lambda: _of_snapshot(_class_attribute(_Layer, "factor")),
    "snapshot: global": lambda: _of_snapshot(_global),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_change_is_seen(case: Callable[[], tuple[Any, Change]]) -> None:
    f, change = case()
    before = fingerprint(f)[0]
    assert fingerprint(f)[0] == before, "nothing changed"
    change()
    assert fingerprint(f)[0] != before


def test_a_numpy_array_counts_by_value() -> None:
    numpy = pytest.importorskip("numpy")
    held = numpy.ones(3)
    f = lambda x: float(held[0]) * x
    before = fingerprint(f)[0]
    held[0] = 2.0
    assert fingerprint(f)[0] != before


def test_what_no_code_names_does_not_count() -> None:
    base = _Derived()
    before = fingerprint(base.loss)[0]
    base.steps += 1
    assert fingerprint(base.loss)[0] == before, "a counter that the loss does not read"


def test_compiled_losses_follow_a_class_attribute() -> None:
    def loss_fn(params: Any, batch: Any) -> Any:
        return Config.scale * ((params - batch) ** 2).sum()

    task_loss = mo.maml(loss_fn, mo.optim.sgd(lr=0.1))
    batch = torch.randn(3, 2)
    params, episodes = torch.zeros(2), mo.Episode(batch, batch)
    for way in ("step", "whole"):
        compiled = mo.map_tasks(task_loss, compile=mo.Compile(way, "aot_eager"))  # type: ignore[arg-type]
        for _ in range(2):
            torch.testing.assert_close(compiled(params, episodes), mo.map_tasks(task_loss)(params, episodes))
            Config.scale += 1
    mo.forget_compiled()
