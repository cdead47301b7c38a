"""The table of optimizers: what each is called with, what it must equal, what must be differentiable."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import metaopt as mo

Options = dict[str, Any]


class Case(NamedTuple):
    """One optimizer.

    ``options`` are the settings to compare with ``peer``, torch.optim's class or a stored reference;
    ``smooth`` the settings, with all terms switched on, at which derivatives are taken.
    """

    name: str
    make: Callable[..., mo.Optimizer]
    peer: Any = None
    options: tuple[Options, ...] = ({},)
    smooth: Options = {}  # noqa: RUF012
    matrices: bool = False
    warm: int = 2  # steps before derivatives are taken
    kinks: tuple[str, ...] = ()  # no derivative at the first step, where they sit on a kink
    folds: tuple[str, ...] = ()  # a maximum is tied there, and has no second derivative
    couples_leaves: bool = False  # one update for all leaves together
    tol: float = 1e-12


def product(**choices: tuple[Any, ...]) -> tuple[Options, ...]:
    """Every combination of the choices."""
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


optim, o = torch.optim, mo.optim
both = (False, True)
adam_like: Options = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.1}

CASES = [
    Case(
        "sgd",
        o.sgd,
        optim.SGD,
        product(lr=(0.1,), momentum=(0.0, 0.9), weight_decay=(0.0, 0.1), maximize=both)
        + product(lr=(0.1,), momentum=(0.9,), dampening=(0.3,), weight_decay=(0.0, 0.1), maximize=both)
        + product(lr=(0.1,), momentum=(0.7,), nesterov=(True,), weight_decay=(0.0, 0.1), maximize=both),
        {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    ),
    Case(
        "adam",
        o.adam,
        optim.Adam,
        product(
            lr=(0.02,),
            betas=((0.9, 0.999), (0.5, 0.8)),
            weight_decay=(0.0, 0.1),
            amsgrad=both,
            maximize=both,
            decoupled_weight_decay=both,
        )
        + product(lr=(0.02, 0.3), eps=(1e-8, 1e-1)),
        adam_like | {"eps_root": 1e-3},
    ),
    Case(
        "adamw",
        o.adamw,
        optim.AdamW,
        product(
            lr=(0.02,),
            betas=((0.9, 0.999), (0.5, 0.8)),
            weight_decay=(0.0, 0.1),
            amsgrad=both,
            maximize=both,
        )
        + product(lr=(0.02, 0.3), eps=(1e-8, 1e-1)),
        adam_like | {"eps_root": 1e-3},
    ),
    Case(
        "nadam",
        o.nadam,
        optim.NAdam,
        product(
            lr=(0.02,),
            betas=((0.9, 0.999), (0.5, 0.8)),
            momentum_decay=(4e-3, 0.1),
            weight_decay=(0.0, 0.1),
            maximize=both,
            decoupled_weight_decay=both,
        )
        + product(lr=(0.02, 0.3), eps=(1e-8, 1e-1)),
        adam_like | {"momentum_decay": 0.1, "eps_root": 1e-3},
    ),
    Case(
        "radam",
        o.radam,
        optim.RAdam,
        product(
            lr=(0.02,),
            betas=((0.9, 0.999), (0.5, 0.8), (0.5, 0.6)),
            weight_decay=(0.0, 0.1),
            maximize=both,
            decoupled_weight_decay=both,
        )
        + product(lr=(0.02, 0.3), eps=(1e-8, 1e-1)),
        adam_like | {"betas": (0.8, 0.99), "eps_root": 1e-3},
    ),
    Case(
        "adamax",
        o.adamax,
        optim.Adamax,
        product(
            lr=(0.02, 0.3),
            betas=((0.9, 0.999), (0.5, 0.8)),
            weight_decay=(0.0, 0.1),
            maximize=both,
            eps=(1e-8, 1e-2),
        ),
        adam_like,
    ),
    Case(
        "adagrad",
        o.adagrad,
        optim.Adagrad,
        product(
            lr=(0.02, 0.3),
            lr_decay=(0.0, 0.1),
            weight_decay=(0.0, 0.1),
            initial_accumulator_value=(0.0, 0.5),
            maximize=both,
        ),
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-2}
        | {"eps_root": 1e-3},
    ),
    Case(
        "adadelta",
        o.adadelta,
        optim.Adadelta,
        product(lr=(0.3, 1.0), rho=(0.9, 0.5), eps=(1e-6, 1e-2), weight_decay=(0.0, 0.1), maximize=both),
        {"lr": 0.5, "rho": 0.8, "eps": 1e-2, "weight_decay": 0.1},
    ),
    Case(
        "rmsprop",
        o.rmsprop,
        optim.RMSprop,
        product(
            lr=(0.02,),
            alpha=(0.99, 0.5),
            weight_decay=(0.0, 0.1),
            momentum=(0.0, 0.9),
            centered=both,
            maximize=both,
        )
        + product(lr=(0.02, 0.3), eps=(1e-8, 1e-1)),
        {
            "lr": 0.05,
            "alpha": 0.8,
            "eps": 1e-2,
            "weight_decay": 0.1,
            "momentum": 0.5,
            "centered": True,
            "eps_root": 1e-2,
        },
    ),
    Case(
        "asgd",
        o.asgd,
        optim.ASGD,
        product(
            lr=(0.05,),
            lambd=(1e-4, 0.1),
            alpha=(0.75, 0.5),
            t0=(1e6, 3.0),
            weight_decay=(0.0, 0.1),
            maximize=both,
        ),
        {"lr": 0.1, "lambd": 0.2, "alpha": 0.6, "t0": 0.5, "weight_decay": 0.1},
    ),
    Case(
        "rprop",
        o.rprop,
        optim.Rprop,
        product(
            lr=(0.02, 0.3),
            etas=((0.5, 1.2), (0.3, 1.5)),
            step_sizes=((1e-6, 50.0), (1e-2, 0.1)),
            maximize=both,
        ),
        {"lr": 0.05, "etas": (0.4, 1.3), "step_sizes": (0.03, 0.062)},
        warm=1,  # after two, entries that turned sit on the kink
    ),
    Case(
        "adafactor",
        o.adafactor,
        optim.Adafactor,
        product(
            lr=(0.02, 0.4),
            beta2_decay=(-0.8, -0.5),
            eps=((None, 1e-3), (1e-3, 0.5)),
            d=(1.0, 2.0),
            weight_decay=(0.0, 0.1),
            maximize=both,
        ),
        {"lr": 0.05, "beta2_decay": -0.7, "eps": (1e-2, 1e-1), "weight_decay": 0.1, "d": 1.0},
        kinks=("d",),  # the first update of a vector has root mean square 1 exactly
    ),
    Case(
        "muon",
        o.muon,
        optim.Muon,
        product(
            lr=(0.02,),
            weight_decay=(0.0, 0.1),
            momentum=(0.95, 0.5),
            nesterov=both,
            ns_steps=(5, 2),
            adjust_lr_fn=(None, "original", "match_rms_adamw"),
        ),
        {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.7, "ns_steps": 3, "ns_dtype": None},
        matrices=True,
    ),
    # torch.optim lacks these: test_reference.py compares them with stored values.
    Case("sign_sgd", o.sign_sgd, smooth={"lr": 0.1}),
    Case("lion", o.lion, smooth={"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    Case(
        "adan",
        o.adan,
        smooth={"lr": 0.1, "betas": (0.8, 0.7, 0.9), "eps": 1e-2, "weight_decay": 0.1, "eps_root": 1e-3},
    ),
    Case("lamb", o.lamb, smooth=adam_like | {"eps_root": 1e-3}),
    Case(
        "lars",
        o.lars,
        smooth={"lr": 0.5, "momentum": 0.8, "weight_decay": 0.1, "trust_coefficient": 0.1, "eps": 1e-2},
    ),
    Case(
        "yogi",
        o.yogi,
        smooth={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-2, "initial_accumulator_value": 1e-2}
        | {"eps_root": 1e-3},
    ),
    Case("adabelief", o.adabelief, smooth={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-2, "eps_root": 1e-2}),
    Case("novograd", o.novograd, smooth=adam_like | {"betas": (0.8, 0.3), "eps_root": 1e-3}),
    Case("sm3", o.sm3, smooth={"lr": 0.1, "momentum": 0.8, "beta2": 0.9, "eps": 1e-2}, folds=("state",)),
    Case(
        "schedule_free_sgd",
        o.schedule_free_sgd,
        smooth={"lr": 0.1, "beta": 0.8, "weight_decay": 0.1},
        folds=("lr", "state"),
    ),
    Case(
        "schedule_free_adamw",
        o.schedule_free_adamw,
        smooth=adam_like | {"eps_root": 1e-3},
        folds=("lr", "state"),
    ),
    Case("proximal_sgd", o.proximal_sgd, smooth={"lr": 0.1, "l1": 0.05, "l2": 0.1}),
    Case("mirror_descent", o.mirror_descent, smooth={"lr": 0.1}),
    Case("preconditioned_sgd", o.preconditioned_sgd, smooth={"lr": 0.1}),
    Case("lbfgs", o.lbfgs, smooth={"lr": 0.5, "history_size": 3}, couples_leaves=True),
]

sch = o.schedule
inner: Options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-2}

# Compositions obey the same laws; what they compute is compared in test_compose.py.
COMPOSED = [
    Case("chain", lambda **k: o.chain(o.clip_by_global_norm(0.9), o.centralize(), o.adam(**inner | k))),
    Case("clip_by_leaf_norm", lambda **k: o.chain(o.clip_by_leaf_norm(0.7), o.sgd(**{"lr": 0.1} | k))),
    Case("clip_by_value", lambda **k: o.chain(o.clip_by_value(0.5), o.sgd(**{"lr": 0.1} | k))),
    Case("add_decayed_weights", lambda: o.chain(o.add_decayed_weights(0.1), o.adam(**inner))),
    Case("add_noise", lambda: o.chain(o.add_noise(0.1, key=7), o.sgd(0.1, 0.9))),
    Case("masked", lambda: o.masked(o.adam(**inner), lambda path: "'w'" in path)),
    Case(
        "partition", lambda: o.partition([o.sgd(0.1, 0.9), o.adam(**inner)], lambda path: int("'b'" in path))
    ),
    Case("accumulate", lambda: o.accumulate(o.adam(**inner), 2), warm=1),
    Case("scheduled", lambda: o.scheduled(o.adam(**inner), lr=sch.warmup(sch.cosine(0.1, 9.0, 0.01), 2.5))),
    Case("one_cycle", lambda: o.scheduled(o.sgd(0.1), lr=sch.one_cycle(0.1, 20.0)), warm=9),
    Case("exponential", lambda: o.scheduled(o.sgd(0.1, 0.5), momentum=sch.exponential(0.9, 0.8, 2.0))),
    Case("piecewise", lambda: o.scheduled(o.sgd(0.1), lr=sch.piecewise(0.1, [2], [0.3]))),
    Case("linear", lambda: o.scheduled(o.sgd(0.1), lr=sch.linear(0.1, 0.2, 7.0))),
    Case("constant", lambda: o.scheduled(o.sgd(0.1), lr=sch.constant(0.1))),
    Case("ema", lambda: o.ema(o.sgd(0.1, 0.9), 0.8)),
    Case("lookahead", lambda: o.lookahead(o.sgd(0.1, 0.9), 2, 0.4), warm=1),
    Case("sam", lambda: o.sam(o.adam(**inner), 0.3), warm=3),
]

EVERY = [*CASES, *COMPOSED]
BY_NAME = {case.name: case for case in CASES}
