"""The settings that train well: of the two problems, and what each algorithm does otherwise."""

from __future__ import annotations

from typing import Any

__all__ = ["ALGORITHMS", "DEFAULTS"]

DEFAULTS: dict[str, dict[str, Any]] = {
    "sinusoid": {
        "shot": 10,
        "query": 10,
        "inner_steps": 5,
        "inner_lr": 0.03,
        "learn_lr": "leaf",
        "meta_batch": 25,
        "meta_lr": 3e-3,
        "lr_lr": 5e-4,
        "iterations": 5000,
        "width": 40,
    },
    "omniglot": {
        "shot": 1,
        "query": 5,
        "inner_steps": 1,
        "inner_lr": 0.4,
        "learn_lr": "leaf",
        "meta_batch": 4,
        "meta_lr": 3e-3,
        "lr_lr": 1e-2,
        "iterations": 9000,
        "how": "vmap",  # so narrow a net maps faster than it loops: 56 ms a step against 65
        "width": 32,
    },
}

ALGORITHMS: dict[str, dict[str, dict[str, Any]]] = {
    "maml": {},
    "fomaml": {"sinusoid": {"first_order": True}, "omniglot": {"first_order": True}},
    "meta_sgd": {"sinusoid": {"learn_lr": "element"}, "omniglot": {"learn_lr": "element"}},
    "anil": {},
    "boil": {},
    "meta_curvature": {},
    "maml_plus_plus": {"sinusoid": {"learn_lr": "step"}, "omniglot": {"learn_lr": "step", "inner_steps": 2}},
    "cavia": {
        "sinusoid": {"inner_lr": 1.0, "inner_steps": 1},
        "omniglot": {
            "context": 200,
            "last_width": 128,  # the head stays: a class is what its features let through
            "inner_lr": 20.0,
            "inner_steps": 2,
        },
    },
    "warpgrad": {"sinusoid": {"learn_lr": "no", "inner_lr": 0.01}},
    "reptile": {
        "sinusoid": {"learn_lr": "no", "inner_lr": 0.02, "meta_lr": 1.0, "clip": 0.0, "train_shot": 50},
        "omniglot": {
            "learn_lr": "no",
            "inner_lr": 0.4,  # of plain descent: 79 % where Adam, begun anew in every task, reached 65
            "meta_lr": 1.0,
            "meta_batch": 2,
            "clip": 0.0,
            "inner_steps": 5,
            "train_shot": 10,
            "test_steps": 20,
        },
    },
    "imaml": {
        "sinusoid": {"learn_lr": "no", "inner_lr": 0.01, "inner_steps": 10, "strength": 0.5},
        "omniglot": {
            "learn_lr": "no",
            "inner_steps": 2,  # a step of the outer loop costs twice MAML's even so, and their number decides
            "inner_lr": 0.4,
            "strength": 0.5,
            "damping": 10.0,  # the authors'; without it most solves end at negative curvature, halfway
            "cg_steps": 2,
        },
    },
    "protonet": {"omniglot": {"train_way": 20, "meta_batch": 1, "learn_lr": "no"}},
    "r2d2": {"omniglot": {"train_way": 20, "meta_batch": 1, "learn_lr": "no"}},
    "metaoptnet": {"omniglot": {"train_way": 20, "meta_batch": 1, "learn_lr": "no"}},
}
