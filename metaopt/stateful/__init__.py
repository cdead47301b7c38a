"""The door for nn.Module and torch.optim users: `higher`'s names over the pure core."""

from metaopt.stateful import optim, patch, torchopt
from metaopt.stateful import patch as utils
from metaopt.stateful._fast import FastModule
from metaopt.stateful._innerloop import innerloop_ctx
from metaopt.stateful._learner import MAML, Learner, MetaSGD
from metaopt.stateful.optim import (
    DifferentiableOptimizer,
    apply_trainable_opt_params,
    create_diff_optim,
    get_diff_optim,
    get_trainable_opt_params,
    register_optim,
)
from metaopt.stateful.patch import get_func_params, make_functional, monkeypatch

__all__ = [
    "MAML",
    "DifferentiableOptimizer",
    "FastModule",
    "Learner",
    "MetaSGD",
    "apply_trainable_opt_params",
    "create_diff_optim",
    "get_diff_optim",
    "get_func_params",
    "get_trainable_opt_params",
    "innerloop_ctx",
    "make_functional",
    "monkeypatch",
    "optim",
    "patch",
    "register_optim",
    "torchopt",
    "utils",
]
