"""Objects read as types, shapes and paths; whatever else they could do, they still can."""

import copy
import importlib
import pickle
import pkgutil
import re
import sys
from typing import Any, NamedTuple

import pytest
import torch

import metaopt as mo
from metaopt import show
from metaopt.progress import bar, progress

sys.modules.setdefault("test_show", sys.modules[__name__])


def net() -> dict[str, torch.Tensor]:
    return {"w": torch.ones(40, 1), "b": torch.zeros(40)}


def episodes() -> mo.Episode:
    return mo.tasks.sinusoid(shot=10, query=10).sample(num_tasks=25, seed=0)


def square(params: Any, batch: Any) -> Any:
    return (params**2).sum() / 2


def classes() -> list[type]:
    """Every NamedTuple of the package, in whatever file."""
    for module in pkgutil.walk_packages(mo.__path__, "metaopt."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = {
        value
        for name, module in sys.modules.items()
        if name.startswith("metaopt")
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields")
        if value.__module__.startswith("metaopt") and value.__name__ != "_PLAIN"
    }
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


def test_every_named_tuple_is_dressed() -> None:
    plain = show._PLAIN
    bare = [f"{c.__module__}.{c.__name__}" for c in classes() if c.__repr__.__code__ is plain]
    assert not bare, "end the room's __init__.py with metaopt.show.dress(__name__)"


def test_what_fits_a_line_is_written_as_python() -> None:
    assert repr(episodes()) == (
        "Episode(support=(f32[25, 10, 1], f32[25, 10, 1]), query=(f32[25, 10, 1], f32[25, 10, 1]))"
    )
    opt = mo.optim.sgd(lr=0.1)
    assert repr(opt.hparams) == "SGDHParams(lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0)"
    assert repr(opt) == f"Optimizer(hparams={opt.hparams!r})"
    assert repr(opt.init(net())) == "SGDState()"
    assert repr(mo.Meta(net())) == "Meta(params={'w': f32[40, 1], 'b': f32[40]})"
    learned = opt.hparams._replace(lr=torch.tensor(0.25, requires_grad=True))
    assert repr(learned).startswith("SGDHParams(lr=f32[] 0.25, momentum=0.0")
    assert repr(mo.Binomial(3)) == "Binomial(slots=3)"


def test_what_does_not_fit_is_a_leaf_a_line() -> None:
    text = repr(mo.optim.adam().init({**net(), "v": torch.zeros(2, 2), "u": torch.zeros(1).bfloat16()}))
    lines = text.splitlines()
    assert lines[0] == "AdamState: 9 tensors, 171 numbers"
    assert lines[1].split() == ["step", "f64[]", "0"]
    assert ["exp_avg['u']", "f32[1]"] in [line.split() for line in lines]
    assert len({line.rindex("  ") for line in lines[1:]}) == 1, "the second column is aligned"
    deep = repr(mo.Meta({f"layer{i}": torch.zeros(3, 3) for i in range(100)}))
    assert deep.splitlines()[-1] == "  … and 76 more"


OPTIMIZERS = ["sgd", "adam", "adafactor", "asgd", "lars", "lbfgs", "lion", "novograd", "rprop", "sm3"]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "schedule_free_adamw"])
def test_no_optimizer_prints_pages(name: str) -> None:
    params = {"w": torch.randn(30, 20), "b": torch.randn(20)}
    opt = getattr(mo.optim, name)()
    out = mo.unroll(lambda p, b: sum((x**2).sum() for x in p.values()), opt, params, (), num_steps=1)
    for value in (opt, opt.hparams, out.state, out):
        text = repr(value)
        assert "tensor(" not in text
        assert "<function" not in text
        assert len(text.splitlines()) <= show.LINES + 2
        assert value._repr_html_().count("<tr>") <= show.LINES + 2


def test_problems_hypergradients_plans_and_audits() -> None:
    problem = mo.hypergrad.Problem(square, mo.optim.sgd(lr=0.5), num_steps=16, params=torch.ones(3).double())
    lines = {tuple(line.split()) for line in repr(problem).splitlines()}
    assert {("loss_fn", "square"), ("opt.hparams.lr", "0.5"), ("num_steps", "16")} <= lines
    estimate = repr(mo.hypergrad.unrolled(problem, torch.ones(3).double()))
    assert re.search(r"grad +f64\[3\]\n +value +f64\[\] [\d.e-]+\n", estimate)
    audit = mo.audit(problem, torch.ones(3).double())
    assert repr(audit) == str(audit)
    assert repr(audit).splitlines()[1].split()[:2] == ["unrolled", "1"]
    page = audit._repr_html_()
    assert page.count("<tr>") == len(audit.rows) + 1
    assert 'colspan="8"' in page, "a refusal fills its row"
    plan = mo.plan(problem)
    assert repr(plan) == str(plan)
    assert "&lt;- chosen" in plan._repr_html_()
    assert plan._repr_html_().count("<tr>") == len(plan.strategies) + 1


def test_html_is_escaped() -> None:
    page = mo.Meta({"<script>": torch.zeros(1)})._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_looking_is_safe_inside_transforms() -> None:
    seen: list[str] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(repr(mo.Meta(x, mo.optim.sgd(lr=x.sum()).hparams)))
        return x.sum()

    torch.vmap(look)(torch.ones(3, 2))
    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(torch.func.grad(look))(torch.ones(3, 2))
    assert {text.split(", ", 1)[0] for text in seen} == {"Meta(params=f32[2]"}
    assert all("lr=f32[], " in text for text in seen)
    with torch.device("meta"):
        assert repr(mo.Meta(torch.zeros(()))) == "Meta(params=f32[])"


def test_compiled_code_may_look() -> None:
    def fn(meta: mo.Meta) -> torch.Tensor:
        return meta.params * len(repr(meta))

    meta = mo.Meta(torch.ones(3))
    torch.testing.assert_close(torch.compile(fn, backend="eager")(meta), fn(meta))


def test_everything_else_stays() -> None:
    hparams = mo.optim.adam(lr=0.3).hparams
    for twin in (pickle.loads(pickle.dumps(hparams)), copy.deepcopy(hparams), hparams._replace()):
        assert type(twin) is type(hparams)
        assert twin == hparams
    assert isinstance(hparams, tuple)
    assert mo.tree.paths(mo.Episode(1.0, 2.0)) == ["support", "query"]
    assert torch.utils._pytree.tree_leaves(mo.Episode(1.0, 2.0)) == [1.0, 2.0]
    assert mo.tree.unflatten(mo.tree.structure(hparams), mo.tree.leaves(hparams)) == hparams


class Own(NamedTuple):
    """A class of this file."""

    x: Any = ()

    def __repr__(self) -> str:
        return "mine"


class Bare(NamedTuple):
    """Another."""

    x: Any = ()


def test_a_user_may_dress_a_package() -> None:
    show.dress(__name__)
    assert repr(Own()) == "mine"
    assert repr(Bare(torch.zeros(3))) == "Bare(x=f32[3])"
    assert repr(mo.Meta(Own())) == "Meta(params=mine)"


def test_bars_say_what_and_leave(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert not capfd.readouterr().err.strip(), "nothing for what is quick"
    with bar(total=2, desc="slowly") as shown:
        shown.update(2)
    assert "slowly: 100%" in capfd.readouterr().err
