"""What a newcomer gets wrong: each call one error that names its argument, and no number without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo
from metaopt import algorithms as alg
from metaopt.errors import MetaoptError

P = {"w": torch.ones(3)}
BATCH = (torch.ones(4, 3), torch.zeros(4))
EPISODE = mo.Episode(BATCH, BATCH)
SGD = mo.optim.sgd(0.1)
LIVE = torch.optim.SGD(nn.Linear(3, 1).parameters(), lr=0.1)


def losses_fn(p: Any, batch: Any) -> Tensor:
    return ((batch[0] @ p["w"] - batch[1]) ** 2) / 2


def loss_fn(p: Any, batch: Any, *phi: Any) -> Tensor:
    return losses_fn(p, batch).mean()


def problem(opt: Any = SGD) -> Any:
    return mo.hypergrad.Problem(loss_fn, opt, BATCH, 2, None, BATCH, P)


def learned(**settings: Any) -> Any:
    return mo.train_learned_optimizer(
        mo.learned_lstm((2,)),
        mo.quadratics(dim=2),
        **({"meta_steps": 1, "window": 2, "num_steps": 4, "num_tasks": 2} | settings),
    )


def cleaned(losses: Any, weights: Tensor) -> Any:
    cleaning = mo.hyper_cleaning(losses, SGD, P, BATCH, BATCH, 2)
    return mo.hypergrad.unrolled(cleaning, mo.Meta(None, None, (weights,)))


def decayed(decay: Any) -> Any:
    return mo.hypergrad.unrolled(
        mo.learned_decay(loss_fn, SGD, P, BATCH, BATCH, 2), mo.Meta(None, None, (decay,))
    )


def learn(**settings: Any) -> Any:
    return mo.learn_hparams(problem(mo.optim.sgd(**settings)), meta_steps=1)


def first_step(opt: Any, params: Any) -> Any:
    return opt.init(params)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    # a torch optimizer, where a pure one is wanted
    "maml live": (lambda: mo.maml(loss_fn, LIVE)(P, EPISODE), r"unroll\(opt\): .* got SGD\. Take"),
    "maml swapped": (lambda: mo.maml(SGD, loss_fn)(P, EPISODE), r"unroll\(loss_fn\): .* got Optimizer"),
    "inner_step live": (lambda: mo.inner_step(loss_fn, LIVE, P, (), BATCH), r"inner_step\(opt\)"),
    "imaml live": (lambda: mo.imaml(loss_fn, LIVE)(P, EPISODE), r"Problem\(opt\)"),
    "bilevel live": (lambda: mo.bilevel(problem(), P, LIVE, 1), r"bilevel\(opt\)"),
    "unrolled live": (lambda: mo.hypergrad.unrolled(problem(LIVE), P), r"Problem\(opt\)"),
    "reweight live": (lambda: mo.reweight(losses_fn, LIVE, P, (), BATCH, BATCH), r"inner_step\(opt\)"),
    "gimli live": (lambda: mo.gimli(loss_fn, SGD, LIVE), r"gimli\(meta_opt\)"),
    "warpgrad live": (lambda: mo.warpgrad(loss_fn, LIVE), r"warpgrad\(opt\)"),
    "descent live": (lambda: mo.hypergradient_descent(LIVE), r"hypergradient_descent\(opt\)"),
    "learn_hparams live": (
        lambda: mo.learn_hparams(problem(), meta_steps=1, meta_opt=LIVE),
        r"learn_hparams\(meta_opt\)",
    ),
    "train live": (lambda: learned(meta_opt=LIVE), r"train_learned_optimizer\(meta_opt\)"),
    "TorchOptimizer live": (lambda: mo.TorchOptimizer(P.values(), LIVE), r"TorchOptimizer\(opt\)"),
    # settings that were silently taken for another
    "maml order": (lambda: mo.maml(loss_fn, SGD, order=0)(P, EPISODE), r"unroll\(order\): expected 1 or 2"),
    "inner_step order": (
        lambda: mo.inner_step(loss_fn, SGD, P, (), BATCH, order="1"),
        r"inner_step\(order\)",
    ),
    "darts order": (lambda: mo.darts_gradient(loss_fn, P, P, BATCH, BATCH, 0.1, 3), r"darts\(order\)"),
    "train order": (lambda: learned(order=3), r"train_learned_optimizer\(order\)"),
    "train sigma": (lambda: learned(estimator="pes", sigma=0.0), r"train_learned_optimizer\(sigma\)"),
    "train num_steps": (lambda: learned(num_steps=0), r"train_learned_optimizer\(num_steps\)"),
    "train meta_steps": (lambda: learned(meta_steps=-1), r"train_learned_optimizer\(meta_steps\)"),
    "phi is a tensor": (
        lambda: mo.maml(loss_fn, SGD)(mo.Meta(P, None, torch.ones(2)), EPISODE),
        r"unroll\(phi\): expected a tuple",
    ),
    "gimli learns no start": (
        lambda: mo.gimli(loss_fn, SGD, SGD).init(P, mo.Meta(P, SGD.hparams)),
        r"gimli.init\(phi\): .* one with params",
    ),
    "imaml strength": (lambda: mo.imaml(loss_fn, SGD, strength=0.0), r"imaml\(strength\)"),
    "imaml damping": (lambda: mo.imaml(loss_fn, SGD, damping=-1.0), r"imaml\(damping\)"),
    "metaoptnet reg": (lambda: mo.metaoptnet(lambda p, x: x, 2, reg=0.0), r"metaoptnet\(reg\)"),
    "no decays": (lambda: mo.learned_mlp(decays=()), r"learned_mlp\(decays\)"),
    # one loss for an example
    "cleaning a mean": (lambda: cleaned(loss_fn, torch.ones(4)), r"hyper_cleaning\(losses_fn\): .*\[4\]"),
    "cleaning columns": (
        lambda: cleaned(lambda p, b: losses_fn(p, b)[:, None], torch.ones(4)),
        r"hyper_cleaning\(losses_fn\): .*got shape \[4, 1\]",
    ),
    "cleaning one weight": (lambda: cleaned(losses_fn, torch.ones(())), r"hyper_cleaning\(losses_fn\)"),
    "reweight a mean": (
        lambda: mo.reweight(loss_fn, SGD, P, SGD.init(P), BATCH, BATCH),
        r"reweight\(losses_fn\): .*got shape \[\]",
    ),
    "decays of another shape": (lambda: decayed({"w": torch.zeros(3, 1)}), r"learned_decay\(phi\)"),
    # a coordinate in which the value can never move
    "rate 0": (
        lambda: learn(lr=torch.tensor(0.0)),
        r"learn_hparams\(hparams\): expected numbers > 0, got 0\.0 at lr",
    ),
    "momentum 0": (
        lambda: learn(lr=0.1, momentum=torch.tensor(0.0)),
        r"learn_hparams\(hparams\): expected numbers inside \(0, 1\), got 0\.0 at momentum",
    ),
    # foreign errors
    "head by name": (lambda: mo.anil(loss_fn, SGD, head="w")(P, EPISODE), r"anil\(head\): .* got 'w'"),
    "boil by name": (lambda: mo.boil(loss_fn, SGD, head="w")(P, EPISODE), r"boil\(head\)"),
    "reptile 0": (lambda: mo.reptile(loss_fn, SGD, 0), r"reptile\(num_steps\)"),
    "warpgrad bare": (lambda: mo.warpgrad(loss_fn, SGD)(P, EPISODE), r"warpgrad\(meta_params\)"),
    "warpgrad steps": (lambda: mo.warpgrad(loss_fn, SGD, True), r"warpgrad\(num_steps\)"),
    "maml++ bare": (lambda: mo.maml_plus_plus(loss_fn, 2)(P, EPISODE, torch.ones(2)), r"\(meta_params\)"),
    "maml++ rates": (
        lambda: mo.maml_plus_plus(loss_fn, 2)(alg.maml_plus_plus_init(P, 5), EPISODE, torch.ones(2)),
        r"maml_plus_plus\(meta_params.hparams.lr\): expected 2 steps",
    ),
    "maml++ weights": (
        lambda: mo.maml_plus_plus(loss_fn, 2)(alg.maml_plus_plus_init(P, 2), EPISODE, torch.ones(3)),
        r"maml_plus_plus\(weights\): expected 2 steps on axis 0, got 3",
    ),
    "progress": (lambda: alg.multi_step_weights(3, -1.0), r"multi_step_weights\(progress\)"),
    "float64 net": (
        lambda: first_step(mo.learned_mlp(), {"w": torch.ones(2, dtype=torch.float64)}),
        r"learned_mlp.init\(params\): expected torch.float32, got torch.float64",
    ),
    "complex net": (
        lambda: first_step(mo.learned_lstm(), {"w": torch.ones(2, dtype=torch.complex64)}),
        r"learned_lstm.init\(params\): expected a real",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_call_is_one_error_that_names_its_argument(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(MetaoptError, match=message):
        call()
