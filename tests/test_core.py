"""Laws of the core: the step, its composition, and mapping it over tasks."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo
from metaopt.errors import ArgumentError, CaptureError, MetaoptError, StructureError, VmapError

F64 = torch.float64


def quadratic(a: float = 0.7, b: float = 1.5) -> Any:
    return lambda p, batch: 0.5 * a * (p - b) ** 2


def leaf(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("memory", ["all", "sqrt", 1, 3, 100])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_unroll_of_a_quadratic_has_its_closed_form(steps: int, memory: Any) -> None:
    """θ_T = b + r^T(θ0−b); dθ_T/dθ0 = r^T; dθ_T/dα = −T·a·r^{T−1}(θ0−b), r = 1−αa."""
    a, b, alpha, theta = 0.7, 1.5, leaf(0.3), leaf(-2.0)
    opt = mo.optim.sgd()
    out = mo.unroll(quadratic(a, b), opt, theta, (), steps, opt.hparams._replace(lr=alpha), memory=memory)
    r, gap = 1 - 0.3 * a, -2.0 - b
    assert out.losses.shape == (steps,)
    assert out.params.item() == pytest.approx(b + r**steps * gap, rel=1e-12)
    by_theta, by_alpha = torch.autograd.grad(out.params, [theta, alpha], materialize_grads=True)
    assert by_theta.item() == pytest.approx(r**steps, rel=1e-12)
    assert by_alpha.item() == pytest.approx(-steps * a * r ** (steps - 1) * gap, rel=1e-12)


@pytest.mark.parametrize("memory", ["all", "sqrt", 2, mo.Binomial(2)], ids=str)
def test_recomputed_steps_are_differentiable_twice(memory: Any) -> None:
    opt = mo.optim.sgd()
    loss = lambda p, batch: (p**4).sum() / 4

    def final(theta: Tensor, lr: Tensor) -> Tensor:
        return mo.unroll(loss, opt, theta, (), 4, opt.hparams._replace(lr=lr), memory=memory).params

    assert torch.autograd.gradgradcheck(final, (leaf(0.8), leaf(0.2)))
    assert torch.autograd.gradcheck(final, (leaf(0.8), leaf(0.2)), check_forward_ad=True)


def test_first_order_takes_the_gradient_for_a_constant_but_not_the_rate() -> None:
    theta, lr = leaf(2.0), leaf(0.1)
    opt = mo.optim.sgd()
    hparams = opt.hparams._replace(lr=lr)
    out = mo.unroll(lambda p, b: p**2, opt, theta, (), 1, hparams, order=1)
    by_theta, by_lr = torch.autograd.grad(out.params, [theta, lr])
    assert by_theta.item() == 1.0
    assert by_lr.item() == -4.0


def test_batches_by_step_and_rates_by_step() -> None:
    batches = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    opt = mo.optim.sgd()
    rates = torch.tensor([0.5, 0.25, 0.1], dtype=F64, requires_grad=True)
    hparams = opt.hparams._replace(lr=rates)
    out = mo.unroll(
        lambda p, b: 0.5 * (p - b) ** 2, opt, leaf(0.0), batches, hparams=hparams, per_step_hparams=True
    )
    p = 0.0
    for rate, b in zip([0.5, 0.25, 0.1], [1.0, 2.0, 3.0], strict=True):
        p = p - rate * (p - b)
    assert out.params.item() == pytest.approx(p, rel=1e-12)


def test_state_continues_where_it_was_handed_out() -> None:
    opt = mo.optim.adam(lr=0.1)
    whole = mo.unroll(quadratic(), opt, leaf(3.0), (), 6)
    half = mo.unroll(quadratic(), opt, leaf(3.0), (), 3)
    rest = mo.unroll(quadratic(), opt, half.params, (), 3, state=half.state)
    assert rest.params.item() == whole.params.item()
    assert int(rest.state.step) == 6


def test_leaf_rates_are_learned_through_meta() -> None:
    """Meta-SGD: one step of rate α on ½(θ−b)² ends at θ−α(θ−b)."""
    task = mo.maml(quadratic(1.0, 1.0), mo.optim.sgd(), 1)
    theta, alpha = leaf(3.0), leaf(0.25)
    meta = mo.Meta(theta, mo.optim.SGDHParams(lr=alpha))
    loss = task(meta, mo.Episode((), ()))
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.75 * 2) ** 2)
    assert alpha.grad is not None
    assert alpha.grad.item() == pytest.approx(-(0.75 * 2) * 2)


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 5])
def test_map_tasks_maps_trees_and_in_dims(how: Any, chunk_size: int | None) -> None:
    fn = lambda w, e, k: {"sum": (w["a"] * e[0]).sum() + k, "product": w["a"] * e[1][None]}
    w = {"a": torch.randn(3, dtype=F64, requires_grad=True)}
    x, y, k = torch.randn(4, 3, dtype=F64), torch.randn(3, 4, dtype=F64), torch.tensor(2.0, dtype=F64)
    mapped = mo.map_tasks(fn, how=how, chunk_size=chunk_size, in_dims=(None, (0, 1), None))
    got = mapped(w, (x, y), k)
    assert torch.equal(got["sum"], torch.stack([(w["a"] * x[i]).sum() + 2 for i in range(4)]))
    assert got["product"].shape == (4, 1, 3)
    total = got["sum"].sum() + got["product"].sum()
    (grad,) = torch.autograd.grad(total, [w["a"]])
    torch.testing.assert_close(grad, x.sum(0) + y.sum(1))


def test_auto_loops_only_for_convolutions_on_the_cpu() -> None:
    assert mo.choose(dict(nn.Conv2d(1, 2, 3).named_parameters())) == "loop"
    assert mo.choose(dict(nn.Linear(1, 2).named_parameters())) == "vmap"
    assert mo.choose({"w": torch.zeros(2, 1, 3, 3, device="meta")}) == "vmap"


def test_chunks_repeat_their_random_draws_in_the_backward_pass() -> None:
    """d/dw Σ w·mask·x = Σ mask·x: the mask of the backward pass must be that of the forward pass."""
    w = torch.ones((), dtype=F64, requires_grad=True)
    drop = lambda w, x: torch.nn.functional.dropout(w * x).sum()
    losses = mo.map_tasks(drop, chunk_size=2)(w, torch.ones(4, 50, dtype=F64))
    (grad,) = torch.autograd.grad(losses.sum(), [w])
    assert grad.item() == pytest.approx(losses.sum().item())


def test_captured_tensors_that_need_a_gradient_are_named() -> None:
    temperature = leaf(2.0)
    loss = lambda p, batch: temperature * p**2
    opt = mo.optim.sgd(lr=0.1)
    out = mo.unroll(loss, opt, leaf(1.0), (), 3)
    assert torch.autograd.grad(out.params, [temperature])[0].item() != 0.0
    for wrapped in (loss, functools.partial(loss)):
        with pytest.raises(CaptureError, match="`temperature`"):
            mo.unroll(wrapped, opt, leaf(1.0), (), 3, memory="sqrt")
    model = nn.Linear(1, 1)
    hidden = lambda p, batch: (p - model(torch.ones(1))).pow(2).sum()
    with pytest.raises(CaptureError, match="by way of a module"):
        mo.unroll(hidden, opt, torch.ones(1, requires_grad=True), (), 3, memory=1)


BAD: list[tuple[str, Any, type[MetaoptError], str]] = [
    (
        "vector loss",
        lambda: mo.unroll(lambda p, b: p, mo.optim.sgd(), torch.ones(2), (), 1),
        ArgumentError,
        r"inner_step\(loss_fn\): expected a scalar loss, got shape \[2\]",
    ),
    (
        "no tensor",
        lambda: mo.unroll(lambda p, b: 1.0, mo.optim.sgd(), torch.ones(2), (), 1),
        ArgumentError,
        "got float",
    ),
    (
        "None among params",
        lambda: mo.unroll(quadratic(), mo.optim.sgd(), {"a": {"b": None}}, (), 1),
        StructureError,
        r"unroll\(params\): expected a floating-point tensor, got None at \['a'\]\['b'\]",
    ),
    (
        "integer params",
        lambda: mo.unroll(quadratic(), mo.optim.sgd(), [torch.ones(1), torch.ones(1).long()], (), 1),
        StructureError,
        r"got torch.int64 at \[1\]",
    ),
    (
        "negative steps",
        lambda: mo.unroll(quadratic(), mo.optim.sgd(), torch.ones(()), (), -1),
        ArgumentError,
        r"unroll\(num_steps\): expected an integer >= 0, got -1",
    ),
    (
        "odd memory",
        lambda: mo.unroll(quadratic(), mo.optim.sgd(), torch.ones(()), (), 1, memory="some"),  # type: ignore[arg-type]
        ArgumentError,
        r"unroll\(memory\)",
    ),
    (
        "neither steps nor a step axis",
        lambda: mo.unroll(quadratic(), mo.optim.sgd(), torch.ones(()), ()),
        StructureError,
        r"unroll\(batch\): expected at least one tensor, got a tree without leaves",
    ),
    (
        "step axes that differ",
        lambda: mo.unroll(
            quadratic(), mo.optim.sgd(), torch.ones(()), {"x": torch.ones(3), "y": torch.ones(2)}
        ),
        StructureError,
        r"expected 3 steps on axis 0 of every leaf, got 2 at \['y'\]",
    ),
    (
        "rates for other steps",
        lambda: mo.unroll(
            quadratic(),
            mo.optim.sgd(),
            torch.ones(()),
            (),
            3,
            mo.optim.SGDHParams(lr=torch.ones(2)),
            per_step_hparams=True,
        ),
        StructureError,
        r"unroll\(hparams\): expected 3 steps on axis 0, got 2 at lr",
    ),
    (
        "episodes that disagree",
        lambda: mo.map_tasks(lambda p, e: p)(
            torch.ones(()), mo.Episode({"y": torch.ones(4)}, {"y": torch.ones(3)})
        ),
        StructureError,
        r"map_tasks\(episodes\): expected 4 tasks on axis 0 of every leaf, got 3 at query\['y'\]. Stack",
    ),
    (
        "an unknown way",
        lambda: mo.map_tasks(lambda p, e: p, how="pmap"),  # type: ignore[arg-type]
        ArgumentError,
        r"map_tasks\(how\)",
    ),
    (
        "a broken chunk",
        lambda: mo.map_tasks(lambda p, e: p, chunk_size=2.5),  # type: ignore[arg-type]
        ArgumentError,
        r"map_tasks\(chunk_size\): expected an integer >= 1 or None, got 2\.5",
    ),
    ("an empty chunk", lambda: mo.map_tasks(lambda p, e: p, chunk_size=0), ArgumentError, "chunk_size"),
    (
        "no task",
        lambda: mo.map_tasks(lambda p, e: p)(torch.ones(()), torch.ones(0)),
        StructureError,
        "at least one task, got 0",
    ),
    (
        "a number for a result",
        lambda: mo.map_tasks(lambda p, e: {"n": 3}, how="loop")(torch.ones(()), torch.ones(2)),
        StructureError,
        r"map_tasks\(fn\): expected tensors as results, got int at \['n'\]",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_running_statistics_under_vmap_name_the_layer_and_the_way_out() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    batch = (torch.randn(4, 6, 2), torch.randn(4, 6, 1))

    def meta_loss(how: Any, **options: Any) -> Tensor:
        apply, params, _ = mo.functional(module, **options)
        task = mo.maml(lambda p, b: (apply(p, b[0]) - b[1]).pow(2).mean(), mo.optim.sgd(lr=0.1), 1)
        return mo.map_tasks(task, how=how)(params, mo.Episode(batch, batch)).mean()

    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(VmapError, match=r"at 1\. .*transductive"):
        meta_loss("vmap")
    for options in ({"batch_norm": "transductive"}, {"batch_norm": "frozen"}):
        torch.testing.assert_close(meta_loss("vmap", **options), meta_loss("loop", **options))
    meta_loss("loop")
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_value_and_gradient_is_torch_funcs() -> None:
    from metaopt.gradient import value_and_gradient

    def f(xs: Any) -> Any:
        return (xs[0] ** 3).sum() * scale.sin(), {"twice": 2 * xs[0]}

    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    unused = torch.ones(3, dtype=torch.float64)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    value, grads, aux = value_and_gradient(f, [x, unused])
    theirs, (expected, their_aux) = torch.func.grad_and_value(f, has_aux=True)((x, unused))
    torch.testing.assert_close((value, *grads, aux["twice"]), (expected, *theirs, their_aux["twice"]))
    ours = torch.autograd.grad(grads[0].sum(), [x, scale])
    torch.testing.assert_close(ours, torch.autograd.grad(theirs[0].sum(), [x, scale]))

    constant = value_and_gradient(f, [x.detach(), unused], twice=False)[1]
    torch.testing.assert_close(constant[0], theirs[0].detach())
    assert not constant[0].requires_grad, "a gradient that nobody differentiates has no graph"


def test_exact_paused_is_off_and_comes_back() -> None:
    from metaopt.exact import exact, paused

    with exact(), exact(always=True):
        with paused():
            assert not exact.innermost()
            with exact() as inner:
                assert exact.innermost()
                assert inner.always
        assert exact.innermost()
    assert not exact.innermost()
