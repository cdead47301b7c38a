"""What compositions compute: against torch where it has them, against the equation elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optim_trees import grads_at, make_params, run
from torch import nn
from torch.optim import lr_scheduler as lrs

import metaopt as mo
from metaopt import tree
from metaopt.errors import ArgumentError, StructureError

o, s = mo.optim, mo.optim.schedule


def assert_close(a: Any, b: Any, rtol: float = 1e-12, atol: float = 1e-14) -> None:
    tree.check_same("test", a, b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


def through(transform: Any, params: Any, grads: Any) -> Any:
    return transform.update(params, transform.init(params), grads, transform.hparams)[0]


@pytest.mark.parametrize("bound", [1e-3, 1.0, 1e3])
def test_clips_as_torch_does(bound: float) -> None:
    params = make_params()
    grads = grads_at(params, 0)
    live = [nn.Parameter(p.clone()) for p in tree.leaves(params)]
    for p, g in zip(live, tree.leaves(grads), strict=True):
        p.grad = g.clone()
    nn.utils.clip_grad_norm_(live, bound)
    clipped = tree.leaves(through(o.clip_by_global_norm(bound), params, grads))
    assert_close(clipped, [p.grad for p in live], rtol=1e-6)  # torch adds 1e-6 to the norm
    for p, g in zip(live, tree.leaves(grads), strict=True):
        p.grad = g.clone()
    nn.utils.clip_grad_value_(live, bound)
    assert_close(tree.leaves(through(o.clip_by_value(bound), params, grads)), [p.grad for p in live])
    for g, c in zip(
        tree.leaves(grads), tree.leaves(through(o.clip_by_leaf_norm(bound), params, grads)), strict=True
    ):
        torch.testing.assert_close(c.norm(), g.norm().clamp(max=bound), rtol=1e-12, atol=0)


def test_a_chain_is_what_its_links_are() -> None:
    params = make_params()
    decayed = o.chain(o.add_decayed_weights(0.1), o.sgd(0.1, 0.9))
    assert_close(run(decayed, params, 4)[0], run(o.sgd(0.1, 0.9, weight_decay=0.1), params, 4)[0])
    nested = o.chain(o.chain(o.clip_by_value(0.5), o.centralize()), o.sgd(0.1))
    flat = o.chain(o.clip_by_value(0.5), o.centralize(), o.sgd(0.1))
    assert_close(run(nested, params, 4)[0], run(flat, params, 4)[0])
    assert isinstance(o.chain(o.centralize(), o.clip_by_value(1.0)), o.Transform)


def test_centralize() -> None:
    params = make_params()
    grads = grads_at(params, 0)
    out = through(o.centralize(), params, grads)
    torch.testing.assert_close(out["w"], grads["w"] - grads["w"].mean(1, keepdim=True))
    torch.testing.assert_close(out["b"], grads["b"])


SCHEDULES = {
    "linear": (s.linear(0.1, 0.02, 8), lambda opt: lrs.LinearLR(opt, 1.0, 0.2, total_iters=8)),
    "cosine": (s.cosine(0.1, 15, 0.01), lambda opt: lrs.CosineAnnealingLR(opt, 15, 0.01)),
    "exponential": (s.exponential(0.1, 0.9), lambda opt: lrs.ExponentialLR(opt, 0.9)),
    "piecewise": (
        s.piecewise(0.1, [3, 7], [0.1, 0.5]),
        lambda opt: lrs.LambdaLR(opt, lambda t: (1, 0.1, 0.05)[(t >= 3) + (t >= 7)]),
    ),
    "constant": (s.constant(0.1), lambda opt: lrs.ConstantLR(opt, 1.0)),
    "one_cycle": (s.one_cycle(0.1, 16), lambda opt: lrs.OneCycleLR(opt, 0.1, 16, cycle_momentum=False)),
    "warmup": (s.warmup(s.constant(0.1), 5, 0.02), lambda opt: lrs.LinearLR(opt, 0.2, 1.0, total_iters=5)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_equal_torch(name: str) -> None:
    ours, make = SCHEDULES[name]
    live = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = make(live)
    for t in range(15):
        value = ours.value(torch.tensor(float(t), dtype=torch.float64), ours.hparams)
        assert value.item() == pytest.approx(live.param_groups[0]["lr"], rel=1e-12), t
        live.step()
        theirs.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduled_optimizer_equals_torch(name: str) -> None:
    ours, make = SCHEDULES[name]
    params = make_params()
    leaves, structure = tree.flatten(params)
    live = [nn.Parameter(p.clone()) for p in leaves]
    opt = torch.optim.Adam(live, lr=0.1)
    theirs = make(opt)
    for t in range(10):
        for p, g in zip(
            live, tree.leaves(grads_at(tree.unflatten(structure, [p.detach() for p in live]), t)), strict=True
        ):
            p.grad = g
        opt.step()
        theirs.step()
    new, _ = run(o.scheduled(o.adam(), lr=ours), params, 10)
    assert_close(tree.leaves(new), [p.detach() for p in live], rtol=1e-10, atol=1e-10)


def test_accumulated_gradients_make_one_step_of_their_mean() -> None:
    params, opt = make_params(), o.adam(0.1)
    both = o.accumulate(opt, 2)
    state, new, alone, inner = both.init(params), params, params, opt.init(params)
    for t in range(3):
        first, second = grads_at(params, 2 * t), grads_at(params, 2 * t + 1)
        held, state = both.update(new, state, first, both.hparams)
        assert_close(held, new, rtol=0, atol=0)
        new, state = both.update(held, state, second, both.hparams)
        mean = tree.scale(tree.add(first, second), 0.5)
        alone, inner = opt.update(alone, inner, mean, opt.hparams)
        assert_close(new, alone)
    assert_close(state.inner, inner)


def test_ema_equals_torch_averaged_model() -> None:
    model = nn.Linear(3, 2).double()
    live = torch.optim.SGD(model.parameters(), lr=0.1)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
    )
    params = {k: p.detach().clone() for k, p in model.named_parameters()}
    opt = o.ema(o.sgd(0.1), 0.8)
    state = opt.init(params)
    average.update_parameters(model)  # torch starts at the first iterate that it sees
    start = tree.map(torch.clone, params)
    for t in range(5):
        grads = grads_at(params, t)
        params, state = opt.update(params, state, grads, opt.hparams)
        for name, p in model.named_parameters():
            p.grad = grads[name]
        live.step()
        average.update_parameters(model)
    for name, p in average.module.named_parameters():
        torch.testing.assert_close(state.average[name] + 0.8**5 * start[name], p.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(o.ema_params(state)[name] * (1 - 0.8**5), state.average[name])


def test_lookahead_by_hand() -> None:
    params = make_params()
    new, _ = run(o.lookahead(o.sgd(0.1), 3, 0.4), params, 6)
    slow = fast = params
    for t in range(6):
        fast = tree.sub(fast, tree.scale(grads_at(fast, t), 0.1))
        if t % 3 == 2:
            slow = fast = tree.add(slow, tree.scale(tree.sub(fast, slow), 0.4))
    assert_close(new, slow)


def test_sam_by_hand() -> None:
    opt = o.sam(o.sgd(0.1, 0.9), 0.3)
    p = torch.tensor([1.0, -2.0], dtype=torch.float64)
    curvature = torch.tensor([1.0, 3.0], dtype=torch.float64)
    out = mo.unroll(lambda p, b: (curvature * p**2).sum() / 2, opt, p, (), num_steps=4).params
    v = torch.zeros(2, dtype=torch.float64)
    for _ in range(2):
        g = curvature * p
        v = 0.9 * v + curvature * (p + 0.3 * g / g.norm())
        p = p - 0.1 * v
    torch.testing.assert_close(out, p, rtol=1e-12, atol=0)


def test_noise_is_normal_fades_and_follows_its_key() -> None:
    params = [torch.zeros(20_000, dtype=torch.float64), torch.zeros(20_000, dtype=torch.float64)]
    noise = o.add_noise(4.0, 1.0, key=3)
    state = noise.init(params)
    (a, b), state = noise.update(params, state, params, noise.hparams)
    (c, _), _ = noise.update(params, state, params, noise.hparams)
    assert a.std().item() == pytest.approx(2, rel=0.03)
    assert c.std().item() == pytest.approx(math.sqrt(2), rel=0.03)
    assert abs(a.mean().item()) < 0.06
    assert ((a / 2) ** 4).mean().item() == pytest.approx(3, rel=0.1)
    corr = torch.corrcoef(torch.stack([a, b, c, a.roll(1)]))
    assert (corr - torch.eye(4)).abs().max() < 0.03
    assert_close(through(noise, params, params), [a, b], rtol=0, atol=0)
    assert not torch.equal(through(o.add_noise(4.0, 1.0, key=4), params, params)[0], a)
    keys = torch.arange(3)
    under_vmap = torch.vmap(
        lambda k: noise.update(params, noise.init(params)._replace(key=k), params, noise.hparams)[0]
    )(keys)
    assert not torch.equal(under_vmap[0][0], under_vmap[0][1])
    torch.testing.assert_close(under_vmap[0][2], through(o.add_noise(4.0, 1.0, key=2), params, params)[0])


def test_partition_gives_every_label_its_rule() -> None:
    params = make_params()
    opt = o.partition({"a": o.sgd(0.1, 0.9), "b": o.adam(0.1)}, {"w": "a", "b": "b", "inner": None})
    new, state = run(opt, params, 3)
    assert_close(new["inner"], params["inner"], rtol=0, atol=0)
    assert state["a"].momentum_buffer.keys() == params.keys()
    grads = [grads_at(params, 0)["w"]]
    one, _ = o.sgd(0.1, 0.9).update(
        [params["w"]], o.sgd(0.1, 0.9).init([params["w"]]), grads, o.sgd(0.1, 0.9).hparams
    )
    assert_close(run(opt, params, 1)[0]["w"], one[0])


def test_masked_by_path_and_by_tree() -> None:
    params = make_params()
    by_path = run(o.masked(o.adam(0.1), lambda path: "'b'" in path), params, 3)[0]
    by_tree = run(o.masked(o.adam(0.1), {"w": False, "b": True, "inner": False}), params, 3)[0]
    assert_close(by_path, by_tree, rtol=0, atol=0)
    assert_close(by_path["w"], params["w"], rtol=0, atol=0)
    assert not torch.equal(by_path["b"], params["b"])


BAD: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: o.chain(),
        ArgumentError,
        r"chain\(links\): expected at least one Transform or Optimizer, got none",
    ),
    (
        lambda: o.chain(o.sgd(), o.sgd()),
        ArgumentError,
        r"chain\(links\[0\]\): expected a Transform, got Optimizer",
    ),
    (
        lambda: o.chain(o.centralize(), 3),
        ArgumentError,
        r"chain\(links\[1\]\): expected a Transform or an Optimizer, got int",
    ),
    (
        lambda: o.clip_by_global_norm(-1.0),
        ArgumentError,
        r"clip_by_global_norm\(bound\): expected a number >= 0.*got -1.0",
    ),
    (lambda: o.clip_by_value("x"), ArgumentError, r"clip_by_value\(bound\): .* got 'x'"),
    (lambda: o.clip_by_leaf_norm(None), ArgumentError, r"clip_by_leaf_norm\(bound\): .* got None"),
    (lambda: o.add_decayed_weights(-0.1), ArgumentError, r"add_decayed_weights\(weight_decay\): .* got -0.1"),
    (lambda: o.add_noise(-1.0, key=0), ArgumentError, r"add_noise\(eta\): .* got -1.0"),
    (lambda: o.add_noise(1.0, -1.0, key=0), ArgumentError, r"add_noise\(gamma\): .* got -1.0"),
    (lambda: o.add_noise(1.0, key=0.5), ArgumentError, r"add_noise\(key\): expected an integer .* got 0.5"),
    (
        lambda: o.accumulate(o.sgd(), 0),
        ArgumentError,
        r"accumulate\(num_grads\): expected an integer >= 1, got 0",
    ),
    (lambda: o.accumulate(o.sgd(), 1.5), ArgumentError, r"accumulate\(num_grads\): .* got 1.5"),
    (lambda: o.ema(o.sgd(), 1.0), ArgumentError, r"ema\(decay\): expected a number >= 0 and < 1.*got 1.0"),
    (
        lambda: o.lookahead(o.sgd(), 0),
        ArgumentError,
        r"lookahead\(sync_period\): expected an integer >= 1, got 0",
    ),
    (lambda: o.lookahead(o.sgd(), 2, 1.5), ArgumentError, r"lookahead\(slow_step_size\): .* got 1.5"),
    (lambda: o.sam(o.sgd(), -0.1), ArgumentError, r"sam\(rho\): expected a number >= 0.*got -0.1"),
    (
        lambda: o.scheduled(o.sgd(), rate=s.constant(1.0)),
        ArgumentError,
        r"scheduled\(rate\): expected one of lr, momentum.* got 'rate'",
    ),
    (lambda: o.scheduled(o.sgd(), lr=0.1), ArgumentError, r"scheduled\(lr\): expected a Schedule, got float"),
    (
        lambda: s.linear(0.0, 1.0, 0),
        ArgumentError,
        r"linear\(num_steps\): expected a number > 0 or a tensor, got 0",
    ),
    (lambda: s.cosine(0.0, -1), ArgumentError, r"cosine\(num_steps\): .* got -1"),
    (lambda: s.cosine("a", 1), ArgumentError, r"cosine\(init_value, end_value\): .* got 'a'"),
    (lambda: s.exponential(1.0, 0.0), ArgumentError, r"exponential\(decay_rate\): .* got 0.0"),
    (
        lambda: s.piecewise(1.0, [1], []),
        ArgumentError,
        r"piecewise\(scales\): expected a scale for each of 1 boundaries, got 0",
    ),
    (lambda: s.warmup(1.0, 3), ArgumentError, r"warmup\(after\): expected a Schedule, got float"),
    (lambda: s.one_cycle(1.0, 10, 1.5), ArgumentError, r"one_cycle\(pct_start\): .* got 1.5"),
    (lambda: s.one_cycle(1.0, 10, div_factor=0), ArgumentError, r"one_cycle\(div_factor\): .* got 0"),
    (lambda: s.constant(None), ArgumentError, r"constant\(value\): .* got None"),
    (lambda: o.partition([], 0), ArgumentError, r"partition\(rules\): expected at least one Optimizer"),
    (
        lambda: run(o.partition([o.sgd()], 1), make_params(), 1),
        StructureError,
        r"partition\(labels\): expected one of \[0\] or None, got 1 at \['b'\]",
    ),
    (
        lambda: run(o.partition([o.sgd()], {"x": 0}), make_params(), 1),
        StructureError,
        r"partition\(labels\): expected a prefix",
    ),
    (
        lambda: run(o.masked(o.sgd(), lambda path: 1), make_params(), 1),
        StructureError,
        r"masked\(mask\): expected True or False, got 1 at \['b'\]",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD)
def test_bad_arguments(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


WRAPPED = {
    "chain": (o.chain(o.clip_by_value(1.0), o.sgd(0.1)), "a tuple of 2"),
    "add_noise": (o.add_noise(1.0, key=0), "NoiseState"),
    "accumulate": (o.accumulate(o.sgd(0.1), 2), "AccumulateState"),
    "scheduled": (o.scheduled(o.sgd(0.1), lr=s.constant(0.1)), "ScheduledState"),
    "ema": (o.ema(o.sgd(0.1)), "EMAState"),
    "lookahead": (o.lookahead(o.sgd(0.1)), "LookaheadState"),
    "sam": (o.sam(o.sgd(0.1)), "SAMState"),
    "partition": (o.partition([o.sgd(0.1)], 0), "one entry for each of"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_state_of_another_optimizer_is_refused(name: str) -> None:
    opt, expected = WRAPPED[name]
    params = make_params()
    with pytest.raises(StructureError, match=rf"{name}.update\(state\): expected {expected}"):
        opt.update(params, o.adam().init(params), params, opt.hparams)
