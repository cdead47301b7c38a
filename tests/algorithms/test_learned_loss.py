"""ML³: the learned loss adapts faster than the squared error on tasks it has not seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import metaopt as mo


def setting() -> tuple[mo.LearnedLoss, mo.LearnedLoss, dict[str, Tensor], dict[str, Tensor]]:
    """(learned, the same with MSE for a loss network, θ_0, φ)."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    loss_net = nn.Sequential(nn.Linear(2, 20), nn.Softplus(), nn.Linear(20, 1), nn.Softplus()).double()
    (apply, params, _), (loss_apply, phi, _) = mo.functional(net), mo.functional(loss_net)
    mse = lambda p, batch: (apply(p, batch[0]) - batch[1]).square().mean()
    square = lambda phi, both: (both[:, :1] - both[:, 1:]).square()
    opt = mo.optim.sgd(0.1)
    learned = mo.learned_loss(apply, loss_apply, opt, 2, mse)
    return learned, mo.learned_loss(apply, square, opt, 2, mse), params, phi


def episodes(seed: int, num_tasks: int = 8) -> mo.Episode:
    found = mo.tasks.sinusoid(shot=10, query=20).sample(num_tasks=num_tasks, seed=seed)
    return mo.tree.map(lambda x: x.double(), found)


def test_gradient_is_that_of_finite_differences_and_of_the_loop() -> None:
    learned, _, params, phi = setting()
    leaves, structure = mo.tree.flatten(mo.tree.detach(phi))
    along = [torch.randn_like(x) for x in leaves]

    def value(e: float | Tensor, how: str = "vmap") -> Tensor:
        moved = mo.tree.unflatten(structure, [x + e * v for x, v in zip(leaves, along, strict=True)])
        meta = mo.Meta(mo.tree.detach(params), None, (moved,))
        return mo.map_tasks(learned.task_loss, how=how)(meta, episodes(3, 2)).sum()

    slope = (value(1e-6) - value(-1e-6)) / 2e-6
    for how in ("vmap", "loop"):
        e = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(value(e, how), e)
        torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-9)


def test_adapts_faster_than_mse_on_held_out_tasks() -> None:
    """φ alone is learned, for one θ_0; both losses then take the same steps at the same rate."""
    learned, mse, params, phi = setting()
    params = mo.tree.detach(params)
    outer = torch.optim.Adam(phi.values(), 0.01)
    for step in range(150):
        outer.zero_grad()
        meta = mo.Meta(params, None, (phi,))
        mo.map_tasks(learned.task_loss)(meta, episodes(step)).mean().backward()
        outer.step()
    held_out, phi = episodes(10_000, 64), mo.tree.detach(phi)
    ours = mo.map_tasks(learned.task_loss)(mo.Meta(params, None, (phi,)), held_out).mean()
    theirs = mo.map_tasks(mse.task_loss)(mo.Meta(params, None, ((),)), held_out).mean()
    assert ours < 0.8 * theirs

    # the loss by itself, in a user's own loop: no task loss any more, and a task with another optimizer
    task = mo.tree.index(held_out, 0)
    out = mo.unroll(learned.loss_fn, mo.optim.sgd(0.1), params, task.support, 2, phi=(phi,))
    one = learned.task_loss(mo.Meta(params, None, (phi,)), task)
    again = mse.task_loss(mo.Meta(out.params, mo.optim.sgd(0.0).hparams, ((),)), task)
    torch.testing.assert_close(one, again)
