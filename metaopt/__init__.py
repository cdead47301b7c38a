"""metaopt: functional, torch.func-native meta-learning. ``import metaopt as mo``."""

from metaopt import errors, hypergrad, linsolve, optim, tasks, tree
from metaopt._version import version as __version__
from metaopt.algorithms import (
    TorchOptimizer,
    classification,
    gaussian_policy,
    hypergradient_descent,
    learn_hparams,
    learned_lstm,
    learned_mlp,
    maml,
    maml_rl,
    navigation,
    policy_gradient_loss,
    quadratics,
    train_learned_optimizer,
)
from metaopt.batch import choose, map_tasks
from metaopt.doctor import doctor
from metaopt.exact import exact, seeded
from metaopt.functional import functional
from metaopt.hypergrad import audit, plan
from metaopt.memory import Binomial, Offload
from metaopt.recompute import recompute
from metaopt.root import fixed_point, root
from metaopt.step import inner_step
from metaopt.types import Episode, Hypergrad, LossFn, Meta, Optimizer, Unrolled
from metaopt.unroll import unroll

__all__ = [
    "Binomial",
    "Episode",
    "Hypergrad",
    "LossFn",
    "Meta",
    "Offload",
    "Optimizer",
    "TorchOptimizer",
    "Unrolled",
    "__version__",
    "audit",
    "choose",
    "classification",
    "doctor",
    "errors",
    "exact",
    "fixed_point",
    "functional",
    "gaussian_policy",
    "hypergrad",
    "hypergradient_descent",
    "inner_step",
    "learn_hparams",
    "learned_lstm",
    "learned_mlp",
    "linsolve",
    "maml",
    "maml_rl",
    "map_tasks",
    "navigation",
    "optim",
    "plan",
    "policy_gradient_loss",
    "quadratics",
    "recompute",
    "root",
    "seeded",
    "tasks",
    "train_learned_optimizer",
    "tree",
    "unroll",
]
