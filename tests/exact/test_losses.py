"""Every loss function that people use, as inner loss: vmap, loop and finite differences agree."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import metaopt as mo
from metaopt.errors import DerivativeError

TASKS, BATCH, FEATURES, CLASSES = 3, 4, 3, 3
STEPS, LR = 2, 0.3
# torch maps these by a slow loop, says so, and is right.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


class Loss(NamedTuple):
    """``fn(prediction [example, class], target) -> []``; ``target(generator)`` draws one, [task, ...]."""

    fn: Callable[..., Tensor]
    target: Callable[[torch.Generator], Any]
    order: int = 2  # what it can be differentiated to


def reals(*shape: int) -> Callable[[torch.Generator], Any]:
    return lambda g: torch.randn(TASKS, *shape, generator=g, dtype=torch.float64)


def shares(*shape: int) -> Callable[[torch.Generator], Any]:
    return lambda g: reals(*shape)(g).softmax(-1)


def bits(*shape: int) -> Callable[[torch.Generator], Any]:
    return lambda g: torch.rand(TASKS, *shape, generator=g).round().double()


def signs(*shape: int) -> Callable[[torch.Generator], Any]:
    return lambda g: 2 * bits(*shape)(g) - 1


def classes(*shape: int, below: int = CLASSES) -> Callable[[torch.Generator], Any]:
    return lambda g: torch.randint(below, (TASKS, *shape), generator=g)


def counts(*shape: int) -> Callable[[torch.Generator], Any]:
    return lambda g: torch.randint(5, (TASKS, *shape), generator=g).double()


def gappy(g: torch.Generator) -> Tensor:
    """Classes, of which the first of each task is to be ignored."""
    y = classes(BATCH)(g)
    y[:, 0] = -100
    return y


ALL = (BATCH, CLASSES)
W = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)  # a weight for each class
PROBABILITY = lambda z: z.sigmoid()
CTC = lambda z, y: F.ctc_loss(
    z.log_softmax(-1)[:, None], y[None], torch.tensor([BATCH]), torch.tensor([y.shape[0]])
)

LOSSES: dict[str, Loss] = {
    "mse": Loss(F.mse_loss, reals(*ALL)),
    "mse sum": Loss(lambda z, y: F.mse_loss(z, y, reduction="sum"), reals(*ALL)),
    "mse none": Loss(lambda z, y: F.mse_loss(z, y, reduction="none").square().mean(), reals(*ALL)),
    "mse weighted": Loss(lambda z, y: F.mse_loss(z, y, weight=W.expand_as(z)), reals(*ALL)),
    "l1": Loss(F.l1_loss, reals(*ALL)),
    "l1 sum": Loss(lambda z, y: F.l1_loss(z, y, reduction="sum"), reals(*ALL)),
    "smooth l1": Loss(F.smooth_l1_loss, reals(*ALL)),
    "smooth l1 beta": Loss(lambda z, y: F.smooth_l1_loss(z, y, beta=0.5), reals(*ALL)),
    "huber": Loss(F.huber_loss, reals(*ALL)),
    "huber delta": Loss(lambda z, y: F.huber_loss(z, y, reduction="sum", delta=2.0), reals(*ALL)),
    "cross entropy": Loss(F.cross_entropy, classes(BATCH)),
    "cross entropy sum": Loss(lambda z, y: F.cross_entropy(z, y, reduction="sum"), classes(BATCH)),
    "cross entropy none": Loss(
        lambda z, y: F.cross_entropy(z, y, reduction="none").square().mean(), classes(BATCH)
    ),
    "cross entropy smoothed": Loss(lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1), classes(BATCH)),
    "cross entropy weight": Loss(lambda z, y: F.cross_entropy(z, y, weight=W), classes(BATCH)),
    "cross entropy weight smoothed": Loss(
        lambda z, y: F.cross_entropy(z, y, weight=W, label_smoothing=0.1), classes(BATCH)
    ),
    "cross entropy probabilities": Loss(F.cross_entropy, shares(*ALL)),
    "cross entropy probabilities weight": Loss(
        lambda z, y: F.cross_entropy(z, y, weight=W, label_smoothing=0.1), shares(*ALL)
    ),
    "cross entropy ignore": Loss(F.cross_entropy, gappy),
    "cross entropy ignore weight": Loss(lambda z, y: F.cross_entropy(z, y, weight=W), gappy),
    "cross entropy ignore smoothed": Loss(lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1), gappy),
    "cross entropy pixels": Loss(
        lambda z, y: F.cross_entropy(z.reshape(2, CLASSES, 2), y.reshape(2, 2)), classes(BATCH)
    ),
    "nll": Loss(lambda z, y: F.nll_loss(z.log_softmax(-1), y), classes(BATCH)),
    "nll weight": Loss(lambda z, y: F.nll_loss(z.log_softmax(-1), y, weight=W), classes(BATCH)),
    "nll ignore": Loss(lambda z, y: F.nll_loss(z.log_softmax(-1), y, ignore_index=1), classes(BATCH)),
    "bce": Loss(lambda z, y: F.binary_cross_entropy(PROBABILITY(z), y), bits(*ALL)),
    "bce weight": Loss(lambda z, y: F.binary_cross_entropy(PROBABILITY(z), y, weight=W), bits(*ALL)),
    "bce soft": Loss(lambda z, y: F.binary_cross_entropy(PROBABILITY(z), y), shares(*ALL)),
    "bce with logits": Loss(F.binary_cross_entropy_with_logits, bits(*ALL)),
    "bce with logits pos weight": Loss(
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=W), bits(*ALL)
    ),
    "bce with logits weight": Loss(
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, weight=W, pos_weight=W), shares(*ALL)
    ),
    "kl div": Loss(
        lambda z, y: F.kl_div(z.log_softmax(-1), y, reduction="batchmean"), shares(*ALL)
    ),
    "kl div log target": Loss(
        lambda z, y: F.kl_div(z.log_softmax(-1), y.log(), reduction="sum", log_target=True), shares(*ALL)
    ),
    "kl div of the target": Loss(
        lambda z, y: F.kl_div(y.log(), z.softmax(-1), reduction="sum"), shares(*ALL)
    ),
    "poisson nll": Loss(F.poisson_nll_loss, counts(*ALL)),
    "poisson nll full": Loss(
        lambda z, y: F.poisson_nll_loss(z.exp(), y, log_input=False, full=True), counts(*ALL)
    ),
    "gaussian nll": Loss(
        lambda z, y: F.gaussian_nll_loss(z[:, :1], y, F.softplus(z[:, 1:2])), reals(BATCH, 1)
    ),
    "gaussian nll full": Loss(
        lambda z, y: F.gaussian_nll_loss(z, y, F.softplus(z.flip(1)), full=True), reals(*ALL)
    ),
    "hinge embedding": Loss(lambda z, y: F.hinge_embedding_loss(z, y, margin=0.7), signs(*ALL)),
    "margin ranking": Loss(
        lambda z, y: F.margin_ranking_loss(z[:, 0].sin(), z[:, 1], y, margin=0.3), signs(BATCH)
    ),
    "multi margin": Loss(F.multi_margin_loss, classes(BATCH), 1),
    "multi margin weight": Loss(
        lambda z, y: F.multi_margin_loss(z, y, p=2, margin=0.5, weight=W), classes(BATCH), 1
    ),
    "multilabel margin": Loss(F.multilabel_margin_loss, classes(*ALL), 1),
    "multilabel soft margin": Loss(F.multilabel_soft_margin_loss, bits(*ALL)),
    "multilabel soft margin weight": Loss(
        lambda z, y: F.multilabel_soft_margin_loss(z, y, weight=W), bits(*ALL)
    ),
    "soft margin": Loss(F.soft_margin_loss, signs(*ALL)),
    "triplet margin": Loss(lambda z, y: F.triplet_margin_loss(z, z.roll(1, 0), y), reals(*ALL)),
    "triplet margin swap": Loss(
        lambda z, y: F.triplet_margin_loss(z, y, z.roll(1, 0), margin=2.0, swap=True), reals(*ALL)
    ),
    "triplet margin with distance": Loss(
        lambda z, y: F.triplet_margin_with_distance_loss(
            z, z.roll(1, 0), y, distance_function=lambda a, b: (a - b).square().sum(-1)
        ),
        reals(*ALL),
    ),
    "cosine embedding": Loss(
        lambda z, y: F.cosine_embedding_loss(z, z.roll(1, 0).cos(), y, margin=0.1), signs(BATCH)
    ),
    "cosine similarity": Loss(lambda z, y: -F.cosine_similarity(z, y).mean(), reals(*ALL)),
    "pairwise distance": Loss(lambda z, y: F.pairwise_distance(z, y).mean(), reals(*ALL)),
    "ctc": Loss(CTC, lambda g: 1 + torch.randint(CLASSES - 1, (TASKS, 2), generator=g), 1),
}  # fmt: skip


if hasattr(F, "linear_cross_entropy"):  # torch 2.13
    M = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, CLASSES).cos()
    LOSSES["linear cross entropy"] = Loss(
        lambda z, y: F.linear_cross_entropy(z, M, y, label_smoothing=0.1), classes(BATCH, below=4)
    )


def problem(name: str) -> tuple[Callable[..., Tensor], Any, mo.Episode]:
    """(loss_fn, params, episodes): a two-layer net, whose second derivatives all differ from 0."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    params = {"w": draw(FEATURES, 4), "scale": draw(4), "v": draw(4, CLASSES)}
    row = LOSSES[name]

    def loss_fn(params: Any, batch: Any) -> Tensor:
        x, y = batch
        return row.fn(torch.tanh(x @ params["w"]) * params["scale"] @ params["v"], y)

    support, query = ((draw(TASKS, BATCH, FEATURES), row.target(generator)) for _ in range(2))
    return loss_fn, params, mo.Episode(support, query)


def meta_loss(name: str, params: Any, order: int = 2, **how: Any) -> Tensor:
    loss_fn, _, episodes = problem(name)
    task_loss = mo.maml(loss_fn, mo.optim.sgd(LR), STEPS, order=order, memory=how.pop("memory", "all"))
    return mo.map_tasks(task_loss, **how)(params, episodes).sum()


def gradient(name: str, order: int, **how: Any) -> dict[str, Tensor]:
    params = {k: p.requires_grad_() for k, p in problem(name)[1].items()}
    found = torch.autograd.grad(meta_loss(name, params, order, **how), list(params.values()))
    return dict(zip(params, found, strict=True))


def slope(name: str, order: int, along: dict[str, Tensor], eps: float = 1e-6) -> float:
    """d/dε of the meta-loss by central differences of the loop; in first order θ' moves by ε, not θ."""
    loss_fn, params, episodes = problem(name)

    def shifted(params: Any, episode: Any, eps: float) -> Tensor:
        moved = mo.tree.add(params, mo.tree.scale(along, eps if order == 2 else 0.0))
        fast = mo.unroll(loss_fn, mo.optim.sgd(LR), moved, episode.support, STEPS).params
        return loss_fn(mo.tree.add(fast, mo.tree.scale(along, eps if order == 1 else 0.0)), episode.query)

    with torch.no_grad():
        at = [
            mo.map_tasks(lambda p, e, s=s: shifted(p, e, s * eps), how="loop")(params, episodes).sum()
            for s in (1, -1)
        ]
    return ((at[0] - at[1]) / (2 * eps)).item()


CASES = [(name, order) for name, row in LOSSES.items() for order in range(1, row.order + 1)]


@pytest.mark.parametrize(("name", "order"), CASES)
def test_vmap_the_loop_and_finite_differences_agree(name: str, order: int) -> None:
    looped = gradient(name, order, how="loop")
    generator = torch.Generator().manual_seed(9)
    along = {k: torch.randn(g.shape, generator=generator, dtype=g.dtype) for k, g in looped.items()}
    expected = sum((looped[k] * along[k]).sum() for k in looped).item()
    assert expected == pytest.approx(slope(name, order, along), rel=1e-6, abs=1e-7)
    for how in ({"how": "vmap"}, {"how": "vmap", "memory": "sqrt"}):
        for path, g in gradient(name, order, **how).items():
            torch.testing.assert_close(
                g, looped[path], rtol=1e-10, atol=1e-10, msg=lambda m, p=path, h=how: f"{h}, {p}: {m}"
            )


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.order == 1])
@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_without_a_second_derivative_the_error_names_the_way_out(name: str, how: str) -> None:
    with pytest.raises(DerivativeError, match=r"inner_step\(\w+_loss\): expected a function with a second"):
        gradient(name, 2, how=how)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_rewritten_losses_are_torchs(reduction: str) -> None:
    """Values of every reduction, an ignored class and a variance below ε among them."""
    g = torch.Generator().manual_seed(2)
    z, y = reals(*ALL)(g), gappy(g)
    options = {"weight": W, "label_smoothing": 0.2, "reduction": reduction}
    mapped = mo.map_tasks(lambda _, zy: F.cross_entropy(*zy, **options), how="vmap")(W, (z, y))
    looped = torch.stack([F.cross_entropy(a, b, **options) for a, b in zip(z, y)])
    torch.testing.assert_close(mapped, looped, rtol=1e-12, atol=1e-12)
    var = reals(*ALL)(g).square() * (y >= 0)[:, :, None]  # some of them are 0
    nll = lambda a, b, v: F.gaussian_nll_loss(a, b, v, full=True, reduction=reduction)
    mapped = mo.map_tasks(lambda _, abv: nll(*abv), how="vmap")(W, (z, z + 0.1, var))
    looped = torch.stack([nll(a, a + 0.1, v) for a, v in zip(z, var)])
    torch.testing.assert_close(mapped, looped, rtol=1e-12, atol=1e-12)


def test_every_loss_of_torch_has_a_row() -> None:
    """A loss that a new torch brings must be looked at."""
    source = inspect.getsource(inspect.getmodule(problem))
    losses = {n for n in vars(F) if n.endswith(("_loss", "cross_entropy", "with_logits", "kl_div"))}
    assert not {n for n in losses if f"F.{n}" not in source}


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "masked_select": lambda z: F.cross_entropy(
        z, torch.arange(BATCH) % CLASSES, weight=W, label_smoothing=0.1
    ),
    "data-dependent control flow": lambda z: F.gaussian_nll_loss(z, z.cos(), z.square() + 1),
}


@pytest.mark.parametrize("message", FAULTS)
def test_torchs_own_still_fail_under_vmap(message: str) -> None:
    """On the day that this fails torch is mended, and the rewrite can go."""
    z = reals(*ALL)(torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match=message):
        torch.vmap(FAULTS[message])(z)
    with mo.exact():
        assert torch.vmap(FAULTS[message])(z).isfinite().all()


def test_a_negative_variance_is_told() -> None:
    z = torch.ones(2, 3)
    mapped = mo.map_tasks(lambda _, z: F.gaussian_nll_loss(z, z, -z), how="vmap")(W, z)
    assert mapped.isnan().all()
    with pytest.raises(ValueError, match="negative entry"):
        F.gaussian_nll_loss(z, z, -z)
