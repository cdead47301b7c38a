"""ML³: the learned loss adapts faster than the squared error on tasks it has not seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import metaopt as mo


def setting() -> tuple[mo.LearnedLoss, dict[str, Tensor], dict[str, Tensor]]:
    """(learned, θ_0, φ)."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    loss_net = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1), nn.Softplus()).double()
    (apply, params, _), (loss_apply, phi, _) = mo.functional(net), mo.functional(loss_net)
    mse = lambda p, batch: (apply(p, batch[0]) - batch[1]).square().mean()
    return mo.learned_loss(apply, loss_apply, mo.optim.sgd(0.1), 2, mse), params, phi


def episodes(seed: int, num_tasks: int) -> mo.Episode:
    found = mo.tasks.sinusoid(shot=10, query=20).sample(num_tasks=num_tasks, seed=seed)
    return mo.tree.map(lambda x: x.double(), found)


def test_gradient_is_that_of_finite_differences_and_of_the_loop() -> None:
    learned, params, phi = setting()
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


def lines(seed: int, num_tasks: int) -> mo.Episode:
    """y = ax + b; a fifth of the support's labels are far off, the query's are right."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(num_tasks, 30, 1, generator=g, dtype=torch.float64) * 4 - 2
    slope, offset = torch.randn(2, num_tasks, 1, 1, generator=g, dtype=torch.float64)
    y = slope * x + offset
    off = (torch.rand(y.shape, generator=g) < 0.2) * 8 * torch.randn(y.shape, generator=g).double()
    return mo.Episode((x[:, :15], (y + off)[:, :15]), (x[:, 15:], y[:, 15:]))


def test_adapts_faster_than_mse_on_held_out_tasks() -> None:
    """The best of ten rates for MSE, on the test tasks themselves, loses to a loss learned on others."""
    torch.manual_seed(1)
    loss_net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1), nn.Softplus()).double()
    net, phi, _ = mo.functional(loss_net)
    apply = lambda w, x: x * w[0] + w[1]
    mse = lambda w, batch: (apply(w, batch[0]) - batch[1]).square().mean()
    start, opt = torch.zeros(2, dtype=torch.float64), mo.optim.sgd(1.0)
    loss_apply = lambda phi, both: net(phi, both[:, :1] - both[:, 1:])
    learned = mo.learned_loss(apply, loss_apply, opt, 5, mse)
    outer = torch.optim.Adam(phi.values(), 0.1)
    for step in range(120):
        outer.zero_grad()
        mo.map_tasks(learned.task_loss)(mo.Meta(start, None, (phi,)), lines(step, 16)).mean().backward()
        outer.step()

    held_out, phi = lines(10_000, 200), mo.tree.detach(phi)
    ours = mo.map_tasks(learned.task_loss)(mo.Meta(start, None, (phi,)), held_out).mean()
    theirs = [
        mo.map_tasks(mo.maml(mse, mo.optim.sgd(lr), 5))(start, held_out).mean().item()
        for lr in (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3)
    ]
    assert ours < 0.2 * min(theirs)

    # the loss by itself, in a user's own loop
    task = mo.tree.index(held_out, 0)
    out = mo.unroll(learned.loss_fn, opt, start, task.support, 5, phi=(phi,))
    torch.testing.assert_close(
        mse(out.params, task.query), learned.task_loss(mo.Meta(start, None, (phi,)), task)
    )
