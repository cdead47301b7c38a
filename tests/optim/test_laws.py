"""What holds for every row of the table: purity, dtypes, vmap, compile, any pytree."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import BY_NAME, CASES, COMPOSED, EVERY, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_trees import grads_at, make_params, run

import metaopt as mo
from metaopt import tree

each_rule = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
each_case = pytest.mark.parametrize("case", EVERY, ids=lambda c: c.name)


def assert_trees_close(a: Any, b: Any, **tol: float) -> None:
    tree.check_same("test", a, b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, **tol)


def test_every_public_optimizer_has_a_row() -> None:
    public = {name for name in mo.optim.__all__ if name.islower()} | set(mo.optim.schedule.__all__) - {
        "Schedule"
    }
    rows = {case.name for case in EVERY} | {"clip_by_global_norm", "centralize", "cosine", "warmup"}
    doors = {"from_torch", "to_torch", "ema_params", "schedule", "identity_preconditioner"}
    assert public - doors == rows


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inputs_unchanged_structure_and_dtype_kept(case: Case, dtype: torch.dtype) -> None:
    opt = case.make(**case.smooth)
    params = make_params(dtype, case.matrices)
    state, grads = opt.init(params), grads_at(params, 0)
    before = copy.deepcopy((params, state, grads))
    new_params, new_state = opt.update(params, state, grads, opt.hparams)
    assert_trees_close((params, state, grads), before, rtol=0, atol=0)
    assert tree.structure(new_params) == tree.structure(params)
    assert tree.structure(new_state) == tree.structure(state)
    assert type(new_state) is type(state)
    for old, new in zip(tree.leaves((params, state)), tree.leaves((new_params, new_state)), strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        assert new.isfinite().all()
    half = dtype in (torch.bfloat16, torch.float16) and case not in COMPOSED
    assert not half or all(x.dtype in (torch.float32, torch.float64) for x in tree.leaves(state))


@each_case
def test_vmap_equals_loop(case: Case) -> None:
    opt = case.make(**case.smooth)
    starts = tree.stack([make_params(matrices=case.matrices, seed=s) for s in range(3)])
    numbers, structure = tree.flatten(opt.hparams)
    scales = torch.tensor([0.5, 1.0, 1.1], dtype=torch.float64)

    def task(params: Any, scale: Any) -> Any:
        hparams = tree.unflatten(structure, [numbers[0] * scale, *numbers[1:]])
        return run(opt, params, 4, hparams)

    mapped = torch.vmap(task, randomness="same")(starts, scales)
    looped = tree.stack([task(tree.index(starts, i), scales[i]) for i in range(3)])
    assert_trees_close(mapped, looped, rtol=1e-12, atol=1e-13)


@each_rule
def test_hparams_per_leaf_equal_shared_ones(case: Case) -> None:
    opt = case.make(**case.smooth)
    params = make_params(matrices=case.matrices)
    spread = opt.hparams._make(
        tree.map(lambda p, v=v: torch.tensor(v, dtype=torch.float64), params) if isinstance(v, float) else v
        for v in opt.hparams
    )
    if case.couples_leaves:
        with pytest.raises(
            mo.errors.ArgumentError, match=r"update\(hparams.lr\): expected a number or a 0-d"
        ):
            run(opt, params, 1, spread)
        return
    assert_trees_close(run(opt, params, 4, spread), run(opt, params, 4), rtol=1e-12, atol=1e-14)


@each_rule
def test_a_gradient_that_is_none_leaves_its_leaf_alone(case: Case) -> None:
    opt = case.make(**case.smooth)
    if case.couples_leaves:
        with pytest.raises(mo.errors.StructureError, match=r"update\(grads\)"):
            opt.update({"w": torch.ones(1)}, opt.init({"w": torch.ones(1)}), {"w": None}, opt.hparams)
        return
    params = make_params(matrices=case.matrices)
    key = "tall" if case.matrices else "w"
    only = {key: params[key]}
    full, alone = opt.init(params), opt.init(only)
    for step in range(3):
        g = grads_at(params, step)[key]
        grads = {k: g if k == key else tree.map(lambda _: None, v) for k, v in params.items()}
        params, full = opt.update(params, full, grads, opt.hparams)
        only, alone = opt.update(only, alone, {key: g}, opt.hparams)
    torch.testing.assert_close(params[key], only[key], rtol=0, atol=0)
    for name, value in make_params(matrices=case.matrices).items():
        assert name == key or equal(params[name], value)


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


shapes = st.sampled_from([(), (1,), (3,), (0,), (2, 2), (1, 3), (2, 1, 2)])
leaf = shapes.map(
    lambda s: torch.linspace(-1, 1, max(1, torch.Size(s).numel()), dtype=torch.float64)[
        : torch.Size(s).numel()
    ].reshape(s)
)
pytrees = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
    ),
    max_leaves=6,
)


@each_case
@settings(max_examples=225, deadline=None)  # 45 rows: 10,000 trees
@given(params=pytrees)
def test_any_pytree(case: Case, params: Any) -> None:
    if case.matrices:
        params = tree.map(lambda p: p.reshape(1, -1), params)
    opt = case.make(**case.smooth)
    state = opt.init(params)
    new, new_state = opt.update(params, state, tree.map(torch.cos, params), opt.hparams)
    assert tree.structure(new) == tree.structure(params)
    assert tree.structure(new_state) == tree.structure(state)
    assert all(a.shape == b.shape for a, b in zip(tree.leaves(new), tree.leaves(params), strict=True))
    assert all(x.isfinite().all() for x in tree.leaves(new))


@each_case
def test_a_leaf_used_twice_is_two_leaves(case: Case) -> None:
    opt = case.make(**case.smooth)
    p = make_params(matrices=True)["tall"]
    new, _ = run(opt, [p, p], 1)
    alone = opt.update([p.clone(), p.clone()], opt.init([p, p]), grads_at([p, p], 0), opt.hparams)[0]
    assert_trees_close(new, alone, rtol=0, atol=0)


@each_case
def test_compile_equals_eager(case: Case) -> None:
    opt = case.make(**case.smooth)
    whole = make_params(matrices=case.matrices)
    params = whole if case.matrices else {"w": whole["w"], "b": whole["b"]}  # seconds a leaf
    _, state = run(opt, params, 2)
    args = (params, state, grads_at(params, 3), opt.hparams)
    torch._dynamo.reset()
    compiled = torch.compile(opt.update, fullgraph=True, backend="aot_eager")
    assert_trees_close(compiled(*args), opt.update(*args), rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning", "ignore:.*torch.jit.script_method"
)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_inductor_equals_eager(name: str) -> None:
    case = BY_NAME[name]
    opt = case.make(**case.smooth)
    params = make_params()
    args = (params, opt.init(params), grads_at(params, 3), opt.hparams)
    torch._dynamo.reset()
    assert_trees_close(
        torch.compile(opt.update, fullgraph=True)(*args), opt.update(*args), rtol=1e-12, atol=1e-14
    )


def crowd(dtype: torch.dtype, seed: int = 0) -> Any:
    """Small leaves of all shapes, a large one, one that is not contiguous, and a second dtype."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(3,), (), (2, 4), (1, 1, 5), (0,), (7,), (70, 70)]
    leaves = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]
    other = [torch.randn(s, generator=g, dtype=torch.float64).float() for s in shapes[:5]]
    return {"a": leaves, "b": torch.randn(3, 4, generator=g, dtype=torch.float64).to(dtype).T, "c": other}


@pytest.mark.parametrize("case", [c for c in CASES if not c.matrices], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_leaves_updated_together_equal_leaves_updated_apart(case: Case, dtype: torch.dtype) -> None:
    """Parameters that require grad are updated apart: a parameter that is not used has no gradient."""
    opt = case.make(**case.smooth)
    together, apart = crowd(dtype), tree.map(lambda p: p.requires_grad_(), crowd(dtype))
    states = opt.init(together), opt.init(apart)
    for step in range(3):
        grads = grads_at(crowd(dtype, seed=1), step)
        together, first = opt.update(together, states[0], grads, opt.hparams)
        apart, second = opt.update(apart, states[1], grads, opt.hparams)
        states = first, second
    assert not any(p.requires_grad for p in tree.leaves(together))
    for x, y in zip(tree.leaves((together, states[0])), tree.leaves((apart, states[1])), strict=True):
        exact = x.dtype == dtype == torch.float64
        rtol, atol = (1e-12, 1e-13) if exact else (2e-6, 1e-6)
        torch.testing.assert_close(x, y.detach(), rtol=rtol, atol=atol)
    if not case.couples_leaves:
        used, unused = tree.leaves(apart)[0], tree.leaves(crowd(dtype))[1].requires_grad_()
        grads = torch.autograd.grad(used.sum(), unused, allow_unused=True)
        assert grads == (None,)


REAL = ("adafactor", "muon", "sm3", "mirror_descent", "lbfgs", "add_noise", "sam", "chain")
REAL += ("clip_by_leaf_norm", "clip_by_value")


@each_case
def test_complex_leaves_are_pairs_of_real_ones_or_refused(case: Case) -> None:
    opt = case.make(**case.smooth)
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)
    if case.name in REAL:
        with pytest.raises(mo.errors.StructureError, match=r"init\(params\): expected a real .* at \['z'\]"):
            opt.init({"z": z})
        return
    pair, params = {"z": torch.view_as_real(z)}, {"z": z}
    state, pair_state = opt.init(params), opt.init(pair)
    for step in range(3):
        grads = grads_at(pair, step)
        pair, pair_state = opt.update(pair, pair_state, grads, opt.hparams)
        params, state = opt.update(params, state, tree.map(torch.view_as_complex, grads), opt.hparams)
    torch.testing.assert_close(torch.view_as_real(params["z"]), pair["z"], rtol=1e-12, atol=1e-14)


@each_case
def test_empty_tree(case: Case) -> None:
    opt = case.make(**case.smooth)
    params, _ = opt.update({}, opt.init({}), {}, opt.hparams)
    assert params == {}
