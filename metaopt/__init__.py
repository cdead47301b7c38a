"""metaopt: functional, torch.func-native meta-learning. ``import metaopt as mo``."""

from metaopt import algorithms, errors, hypergrad, linsolve, optim, tasks, train, tree
from metaopt._version import version as __version__
from metaopt.algorithms import (
    anil,
    boil,
    cavia,
    fomaml,
    gimli,
    imaml,
    maml,
    maml_plus_plus,
    meta_curvature,
    meta_sgd,
    metaoptnet,
    protonet,
    r2d2,
    reptile,
    warpgrad,
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
    "Unrolled",
    "__version__",
    "algorithms",
    "anil",
    "audit",
    "boil",
    "cavia",
    "choose",
    "doctor",
    "errors",
    "exact",
    "fixed_point",
    "fomaml",
    "functional",
    "gimli",
    "hypergrad",
    "imaml",
    "inner_step",
    "linsolve",
    "maml",
    "maml_plus_plus",
    "map_tasks",
    "meta_curvature",
    "meta_sgd",
    "metaoptnet",
    "optim",
    "plan",
    "protonet",
    "r2d2",
    "recompute",
    "reptile",
    "root",
    "seeded",
    "tasks",
    "train",
    "tree",
    "unroll",
    "warpgrad",
]
