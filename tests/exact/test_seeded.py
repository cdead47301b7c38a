"""Draws by an explicit seed: the same whatever the strategy, and of the right distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kinds import KINDS, build
from torch import Tensor, nn
from torch.nn import functional as F

import metaopt as mo
from metaopt.errors import ArgumentError, VmapError
from metaopt.exact import seeded, task_keys, tasks_from

N = 20_000
DISTRIBUTIONS: dict[str, tuple[Any, float, float]] = {  # draw, mean, standard deviation
    "rand": (lambda: torch.rand(N), 1 / 2, 12**-0.5),
    "rand shape": (lambda: torch.rand((N // 2, 2), dtype=torch.float64), 1 / 2, 12**-0.5),
    "rand half": (lambda: torch.rand(N, dtype=torch.bfloat16).float(), 1 / 2, 12**-0.5),
    "randn": (lambda: torch.randn(N), 0, 1),
    "randn size": (lambda: torch.randn(size=(N,)), 0, 1),
    "rand_like": (lambda: torch.rand_like(torch.ones(N)), 1 / 2, 12**-0.5),
    "randn_like": (lambda: torch.randn_like(torch.ones(N)), 0, 1),
    "normal": (lambda: torch.normal(torch.full((N,), 2.0), 3.0), 2, 3),
    "bernoulli": (lambda: torch.bernoulli(torch.full((N,), 0.3)), 0.3, 0.21**0.5),
    "bernoulli p": (lambda: torch.ones(N).bernoulli(0.3), 0.3, 0.21**0.5),
    "bernoulli_": (lambda: torch.empty(N).bernoulli_(0.3), 0.3, 0.21**0.5),
    "normal_": (lambda: torch.empty(N).normal_(1, 2), 1, 2),
    "uniform_": (lambda: torch.empty(N).uniform_(-1, 1), 0, 3**-0.5),
    "exponential_": (lambda: torch.empty(N).exponential_(2.0), 1 / 2, 1 / 2),
    "randint": (lambda: torch.randint(6, (N,)).double(), 2.5, (35 / 12) ** 0.5),
    "randint low": (lambda: torch.randint(1, 7, size=(N,)).double(), 3.5, (35 / 12) ** 0.5),
    "dropout": (lambda: F.dropout(torch.ones(N), 0.25), 1, (1 / 3) ** 0.5),
    "dropout1d": (lambda: F.dropout1d(torch.ones(1, N, 1), 0.25), 1, (1 / 3) ** 0.5),
    "dropout2d": (lambda: F.dropout2d(torch.ones(1, N, 1, 1), 0.25), 1, (1 / 3) ** 0.5),
    "dropout3d": (lambda: F.dropout3d(torch.ones(1, N, 1, 1, 1), 0.25), 1, (1 / 3) ** 0.5),
    "dropout in place": (lambda: F.dropout(torch.ones(N), 0.25, inplace=True), 1, (1 / 3) ** 0.5),
    "alpha_dropout": (lambda: F.alpha_dropout(torch.randn(N), 0.3, training=True), 0, 1),
    "feature_alpha_dropout": (
        lambda: F.feature_alpha_dropout(torch.randn(1, N, 1), 0.3, training=True),
        0,
        1,
    ),
    "rrelu": (lambda: F.rrelu(-torch.ones(N), 0.1, 0.3, training=True), -0.2, 0.2 * 12**-0.5),
    "gumbel": (lambda: F.gumbel_softmax(torch.zeros(N, 2), tau=1.0, hard=True)[:, 0], 1 / 2, 1 / 2),
}  # fmt: skip


def draw(make: Any, seed: int) -> Tensor:
    with mo.exact(), seeded(seed):
        return make()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_follow_the_seed_and_the_distribution(name: str) -> None:
    make, mean, deviation = DISTRIBUTIONS[name]
    x = draw(make, 1)
    assert x.mean().item() == pytest.approx(mean, abs=5 * deviation / N**0.5)
    assert x.std().item() == pytest.approx(deviation, rel=0.05)
    state = torch.get_rng_state()
    assert torch.equal(draw(make, 1), x)
    assert torch.equal(torch.get_rng_state(), state), "torch's generator was used"
    assert not torch.equal(draw(make, 2), x)
    with mo.exact(), seeded(1):
        first, second = make(), make()
    assert torch.equal(first, x)
    assert not torch.equal(first, second)


def test_bits_are_fair_and_independent() -> None:
    with seeded(0) as draws:
        words = draws.bits((4096,))
        later = draws.bits((4096,))
    one = torch.stack([(words >> k) & 1 for k in range(64)]).double()
    two = torch.stack([(later >> k) & 1 for k in range(64)]).double()
    assert (one.mean(1) - 0.5).abs().max() < 5 * 0.5 / 64
    assert torch.corrcoef(torch.cat([one, two])).fill_diagonal_(0).abs().max() < 6 / 64
    assert task_keys(0, 4096).unique().numel() == 4096
    assert torch.equal(task_keys(0, 4096)[:3], task_keys(0, 3)), "a task's key depends on how many there are"


def test_randperm_and_uniform_ends() -> None:
    assert torch.equal(draw(lambda: torch.randperm(50), 0).sort().values, torch.arange(50))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        u = draw(lambda dtype=dtype: torch.rand(N, dtype=dtype), 0)
        assert u.dtype == dtype
        assert (u > 0).all()
        assert (u < 1).all()
        assert torch.isfinite(draw(lambda dtype=dtype: torch.randn(N, dtype=dtype), 0)).all()


RANDOM = ["dropout", "dropout2d", "alpha dropout", "gaussian noise", "gru dropout", "attention dropout"]


@pytest.mark.parametrize("name", RANDOM)
def test_every_way_of_mapping_draws_the_same(name: str) -> None:
    kind = KINDS[name]
    net, episodes = build(kind)
    apply, params, _ = mo.functional(net)
    loss = lambda p, b: (apply(p, b[0]) - b[1]).square().mean()

    def losses(seed: int | None, memory: Any = "all", **how: Any) -> Tensor:
        task = mo.maml(loss, mo.optim.sgd(0.1), 2, memory=memory)
        return mo.map_tasks(task, seed=seed, **how)(params, mo.Episode(*episodes))

    expected = losses(7, how="loop")
    for how in ({"how": "vmap"}, {"how": "vmap", "chunk_size": 1}, {"how": "loop", "chunk_size": 2}):
        for memory in ("all", "sqrt", 1):
            torch.testing.assert_close(losses(7, memory, **how), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(losses(8, how="vmap"), expected)
    same = mo.tree.map(lambda x: x[:1].expand_as(x), episodes)
    first, second, _ = mo.map_tasks(mo.maml(loss, mo.optim.sgd(0.1), 1), seed=7)(params, mo.Episode(*same))
    assert first != second, "two tasks drew the same"


def test_a_map_inside_a_map_draws_anew_for_each() -> None:
    inner = lambda x, y: x + y + torch.rand(())
    outer = lambda x, ys: mo.map_tasks(inner, how="vmap")(x, ys)
    found = mo.map_tasks(outer, how="vmap", seed=0)(torch.zeros(()), torch.zeros(3, 4))
    assert found.unique().numel() == 12
    looped = mo.map_tasks(outer, how="loop", seed=0)(torch.zeros(()), torch.zeros(3, 4))
    torch.testing.assert_close(found, looped)


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_a_share_of_the_tasks_draws_what_it_draws_in_the_whole(how: Any) -> None:
    fn = mo.map_tasks(lambda x, y: y + torch.rand(3, dtype=torch.float64), how=how, seed=5)
    x, ys = torch.zeros(()), torch.zeros(5, dtype=torch.float64)
    whole = fn(x, ys)
    with tasks_from(1):
        with tasks_from(2):  # a chunk within a share
            assert torch.equal(fn(x, ys[3:]), whole[3:])
        assert torch.equal(fn(x, ys[1:3]), whole[1:3])
    plain = mo.map_tasks(lambda x, y: y + torch.rand(3, dtype=torch.float64), how=how)
    with mo.exact(), seeded(6):
        expected = plain(x, ys)
    with mo.exact(), seeded(6), tasks_from(4):
        assert torch.equal(plain(x, ys[4:]), expected[4:])
    assert torch.equal(fn(x, ys), whole), "the context was left"


def test_a_step_draws_anew_and_a_map_inside_counts_from_zero() -> None:
    inner = mo.map_tasks(lambda x, y: y + torch.rand(()), how="vmap", seed=1)
    outer = mo.map_tasks(lambda x, ys: inner(x, ys), how="loop", seed=0)
    x, ys = torch.zeros(()), torch.zeros(3, 4)
    expected = outer(x, ys)
    with tasks_from(2, step=7):
        assert torch.equal(outer(x, ys), expected), "its seed is its own"
        later = inner(x, ys[0])
    assert not torch.isin(later, expected).any()
    with tasks_from(0, step=7):
        assert torch.equal(inner(x, torch.zeros(6))[2:], later)
    with tasks_from(0, step=8):
        assert not torch.isin(inner(x, torch.zeros(6)), later).any()


@pytest.mark.parametrize("given", [{"first": -1}, {"first": True}, {"first": 0, "step": 0.5}])
def test_a_place_that_is_none_is_refused(given: dict[str, Any]) -> None:
    name, value = list(given.items())[-1]
    with pytest.raises(
        ArgumentError, match=rf"tasks_from\({name}\): expected an integer >= 0 or None, got {value}"
    ):
        tasks_from(**given)


def test_the_seed_may_be_a_tensor_and_nothing_else() -> None:
    fn = lambda x, y: y + torch.rand(())
    by_int = mo.map_tasks(fn, seed=5)(torch.zeros(()), torch.zeros(3))
    by_tensor = mo.map_tasks(fn, seed=torch.tensor(5))(torch.zeros(()), torch.zeros(3))
    assert torch.equal(by_int, by_tensor)
    with pytest.raises(ArgumentError, match=r"map_tasks\(seed\): expected an int, .* got 0.5"):
        mo.map_tasks(fn, seed=0.5)(torch.zeros(()), torch.zeros(3))  # type: ignore[arg-type]


def test_a_draw_without_a_keyed_form_is_refused_by_name() -> None:
    fn = lambda x, y: y + torch.poisson(torch.ones(()))
    with pytest.raises(VmapError, match=r"seeded\(poisson\).*Draw it before the map"):
        mo.map_tasks(fn, how="loop", seed=0)(torch.zeros(()), torch.zeros(3))


def test_a_generator_of_the_callers_own_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    with mo.exact(), seeded(0):
        x = torch.rand(3, generator=generator)
    assert torch.equal(x, torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_eval_mode_draws_nothing() -> None:
    apply, params, _ = mo.functional(nn.Sequential(nn.Dropout(0.9), nn.RReLU()).eval())
    x = torch.ones(5)
    with seeded(0) as draws:
        assert torch.equal(apply(params, x), x)
    assert draws.count == 0
