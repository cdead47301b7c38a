"""Batch norm by an explicit choice; the caller's own module is never written to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo
from metaopt.errors import ArgumentError, StructureError, VmapError

F64 = torch.float64
TASKS, STEPS, LR = 3, 2, 0.3


def net(norm: nn.Module | None = None) -> nn.Module:
    layers = nn.Sequential(nn.Linear(2, 3), norm or nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        for p in layers.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layers


def episodes() -> mo.Episode:
    def batch() -> tuple[Tensor, Tensor]:
        return torch.randn(TASKS, 5, 2, dtype=F64), torch.randn(TASKS, 5, 1, dtype=F64)

    return mo.Episode(batch(), batch())


def threaded_loss(apply: Any) -> Any:
    def loss_fn(params: Any, batch: Any, *, buffers: Any) -> Any:
        out, buffers = apply.with_buffers(params, buffers, batch[0])
        return (out - batch[1]).square().mean(), buffers

    return loss_fn


STATEFUL = {
    "batch norm": lambda: nn.BatchNorm1d(3),
    "batch norm bare": lambda: nn.BatchNorm1d(3, affine=False),
    "called twice": lambda: nn.Sequential(*[nn.BatchNorm1d(3)] * 2),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_one_call_moves_the_buffers_as_the_module_does(name: str) -> None:
    module = net(STATEFUL[name]())
    x = torch.randn(6, 2, dtype=F64)
    apply, params, buffers = mo.functional(module)
    before = {k: b.clone() for k, b in buffers.items()}
    out, moved = apply.with_buffers(params, buffers, x)
    assert all(torch.equal(buffers[k], before[k]) for k in before), "the buffers given were written to"
    assert all(torch.equal(module.state_dict()[k], before[k]) for k in before), "the module was written to"
    twin = copy.deepcopy(module)
    torch.testing.assert_close(out, twin(x), rtol=1e-12, atol=1e-12)
    for k, b in moved.items():
        torch.testing.assert_close(b, twin.state_dict()[k], rtol=1e-12, atol=1e-12)
    assert any(not torch.equal(moved[k], before[k]) for k in before)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 2, 2), (4, 3, 2, 2, 2)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("kind", ["BatchNorm", "InstanceNorm"])
def test_running_statistics_of_every_dimension(kind: str, shape: tuple[int, ...]) -> None:
    layer = getattr(nn, f"{kind}{len(shape) - 2}d")(3, affine=True, track_running_stats=True).double()
    x = torch.randn(shape, dtype=F64)
    apply, params, buffers = mo.functional(layer)
    out, moved = apply.with_buffers(params, buffers, x)
    torch.testing.assert_close(out, layer(x), rtol=1e-12, atol=1e-12)
    for k, b in layer.state_dict().items():
        if k in moved:
            torch.testing.assert_close(moved[k], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("strategy", ["vmap", "chunks", "vmap sqrt"])
def test_per_task_buffers_are_the_loops(name: str, strategy: str) -> None:
    apply, params, buffers = mo.functional(net(STATEFUL[name]()))
    data = episodes()
    query = apply.eval()

    def query_loss(params: Any, batch: Any, *, buffers: Any) -> Any:
        return (query(params, buffers, batch[0]) - batch[1]).square().mean(), buffers

    def run(how: str, memory: Any = "all", chunk_size: int | None = None) -> Any:
        task = mo.maml(threaded_loss(apply), mo.optim.sgd(LR), STEPS, query_loss_fn=query_loss, memory=memory)
        mapped = mo.map_tasks(task, how=how, chunk_size=chunk_size, in_dims=(None, 0, None))
        losses, moved = mapped(params, data, buffers)
        return losses, moved, torch.autograd.grad(losses.sum(), list(params.values()), allow_unused=True)

    expected = run("loop")
    found = run("vmap", "sqrt" if "sqrt" in strategy else "all", 2 if strategy == "chunks" else None)
    assert all(b.shape[0] == TASKS for b in found[1].values())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert any(not torch.equal(b[0], b[1]) for b in found[1].values()), "the tasks moved alike"


def test_statistics_that_the_query_uses_are_differentiated() -> None:
    """The meta-loss evaluates the query with statistics of the support: finite differences agree."""
    apply, params, buffers = mo.functional(net())
    query, data = apply.eval(), episodes()

    def query_loss(params: Any, batch: Any, *, buffers: Any) -> Any:
        return (query(params, buffers, batch[0]) - batch[1]).square().mean(), buffers

    task = mo.maml(threaded_loss(apply), mo.optim.sgd(LR), STEPS, query_loss_fn=query_loss)
    meta_loss = lambda p: mo.map_tasks(task, how="vmap", in_dims=(None, 0, None))(p, data, buffers)[0].sum()
    v = {k: torch.randn_like(p) for k, p in params.items()}
    gradient = torch.autograd.grad(meta_loss(params), list(params.values()))
    slope = sum((g * v[k]).sum() for g, k in zip(gradient, params, strict=True))
    with torch.no_grad():
        step = mo.tree.scale(v, 1e-5)
        numeric = (meta_loss(mo.tree.add(params, step)) - meta_loss(mo.tree.sub(params, step))) / 2e-5
    torch.testing.assert_close(slope, numeric, rtol=1e-6, atol=1e-8)


def test_per_step_statistics_keep_one_set_a_step() -> None:
    module = net()
    apply, params, buffers = mo.functional(module, batch_norm="per_step", num_steps=STEPS)
    assert buffers["1.running_mean"].shape == (STEPS + 1, 3)
    data = mo.tree.index(episodes(), 0)
    task = mo.maml(threaded_loss(apply), mo.optim.sgd(LR), STEPS)
    _, moved = task(params, data, buffers)
    assert moved["metaopt_step"] == STEPS + 1
    # by hand: step j of the inner loop moves row j and nothing else
    plain, _, single = mo.functional(module)
    fast, opt = params, mo.optim.sgd(LR)
    for j in range(STEPS + 1):
        batch = data.support if j < STEPS else data.query
        _, row = plain.with_buffers(fast, single, batch[0])
        for key in single:
            torch.testing.assert_close(moved[key][j], row[key], rtol=1e-12, atol=1e-12)
        loss = lambda p, b: (plain(p, b[0]) - b[1]).square().mean()
        fast = mo.inner_step(loss, opt, fast, opt.init(fast), batch)[0]
    # the next episode starts from the first row again, by the counter alone
    again = {**moved, "metaopt_step": torch.zeros_like(moved["metaopt_step"])}
    _, moved_again = task(params, data, again)
    assert (moved_again["1.num_batches_tracked"] == 2).all()
    vmapped = mo.map_tasks(task, how="vmap", in_dims=(None, 0, None))(params, mo.tree.stack([data]), buffers)
    torch.testing.assert_close(mo.tree.index(vmapped[1], 0), moved, rtol=1e-10, atol=1e-10)


def test_the_callers_module_is_never_written_to() -> None:
    for mode in (None, "transductive", "frozen", "per_step"):
        module = net(nn.Sequential(nn.BatchNorm1d(3), STATEFUL["spectral norm"]()))
        before = copy.deepcopy(module.state_dict())
        steps = STEPS if mode == "per_step" else None
        apply, params, buffers = mo.functional(module, batch_norm=mode, num_steps=steps)
        x = torch.randn(4, 2, dtype=F64)
        apply.with_buffers(params, buffers, x)
        if mode != "per_step":
            apply(params, x)
        apply.eval()
        assert module.training
        assert all(m.training for m in module.modules())
        assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_what_is_wrong_is_said() -> None:
    module = net()
    with pytest.raises(ArgumentError, match=r"functional\(batch_norm\).*'per_step' or None, got 'batch'"):
        mo.functional(module, batch_norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"functional\(num_steps\)"):
        mo.functional(module, batch_norm="per_step")
    apply, params, buffers = mo.functional(module)
    fewer = {k: b for k, b in buffers.items() if k != "1.running_mean"}
    with pytest.raises(StructureError, match=r"with_buffers\(buffers\).*none at '1.running_mean'"):
        apply.with_buffers(params, fewer, torch.ones(3, 2))
    with pytest.raises(VmapError, match=r"apply\(module\).* at 1\. .*transductive.*with_buffers"):
        torch.vmap(lambda x: apply(params, x))(torch.randn(2, 4, 2, dtype=F64))


@pytest.mark.parametrize("strategy", ["vmap", "chunks", "vmap sqrt"])
def test_per_step_affine_weights_are_rows_that_the_outer_loop_learns(strategy: str) -> None:
    """MAML++: row j is what step j normalises with, the last row the query; by hand, one row a call."""
    apply, params, buffers = mo.functional(
        net(), batch_norm="per_step", num_steps=STEPS, per_step_affine=True
    )
    assert {k: list(p.shape) for k, p in params.items() if k[0] == "1"} == {
        "1.weight": [STEPS + 1, 3],
        "1.bias": [STEPS + 1, 3],
    }
    params = {k: nn.Parameter(p + 0.3 * torch.randn_like(p)) for k, p in params.items()}
    data, opt = episodes(), mo.optim.sgd(LR)
    how, chunk = "vmap", 2 if strategy == "chunks" else None
    task = mo.maml(threaded_loss(apply), opt, STEPS, memory="sqrt" if "sqrt" in strategy else "all")
    mapped = mo.map_tasks(task, how=how, chunk_size=chunk, in_dims=(None, 0, None))
    losses, moved = mapped(params, data, buffers)
    assert (moved["metaopt_step"] == STEPS + 1).all()
    assert all(b.shape[:2] == (TASKS, STEPS + 1) for k, b in moved.items() if k != "metaopt_step")

    plain, _, single = mo.functional(net())
    names = [k for k in params if k[0] != "1"]

    def by_hand(t: int) -> Tensor:
        support, query = mo.tree.index(data, t)
        fast = {k: params[k] for k in names}

        def loss(fast: Any, j: int, batch: Any) -> Tensor:
            row = {k: params[k][j] for k in params if k not in names}
            return (plain.with_buffers({**fast, **row}, single, batch[0])[0] - batch[1]).square().mean()

        for j in range(STEPS):
            grads = torch.autograd.grad(loss(fast, j, support), list(fast.values()), create_graph=True)
            fast = {k: fast[k] - LR * g for k, g in zip(names, grads, strict=True)}
        return loss(fast, STEPS, query)

    expected = torch.stack([by_hand(t) for t in range(TASKS)])
    leaves = list(params.values())
    found = losses, torch.autograd.grad(losses.sum(), leaves)
    wanted = expected, torch.autograd.grad(expected.sum(), leaves)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert all((g.abs().amax(1) > 0).all() for g, p in zip(found[1], params, strict=True) if p[0] == "1")


def test_per_step_without_its_counter_is_said() -> None:
    apply, params, buffers = mo.functional(net(), batch_norm="per_step", num_steps=STEPS)
    for call in (apply, apply.eval()):
        with pytest.raises(
            ArgumentError, match=r"apply\(module\): .*apply.with_buffers.*pass on the buffers"
        ):
            call(params, buffers, torch.ones(4, 2, dtype=F64))
    with pytest.raises(ArgumentError, match=r"functional\(per_step_affine\): expected batch_norm='per_step'"):
        mo.functional(net(), batch_norm="frozen", per_step_affine=True)


@pytest.mark.parametrize("shared", [True, False], ids=["shared count", "a count a task"])
def test_a_cumulative_average_needs_one_count_for_all_tasks(shared: bool) -> None:
    """momentum=None reads the number of batches as a Python float, which a mapped count has not."""
    apply, params, buffers = mo.functional(net(nn.BatchNorm1d(3, momentum=None)))
    task, data = mo.maml(threaded_loss(apply), mo.optim.sgd(LR), STEPS), episodes()
    given = buffers if shared else mo.tree.stack([buffers] * TASKS)
    run = lambda how: mo.map_tasks(task, how=how, in_dims=(None, 0, None if shared else 0))(
        params, data, given
    )
    if shared:
        torch.testing.assert_close(run("vmap"), run("loop"), rtol=1e-10, atol=1e-10)
        return
    with pytest.raises(VmapError, match=r"with_buffers\(buffers\).*at 1.num_batches_tracked. .*momentum"):
        run("vmap")
