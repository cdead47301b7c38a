"""metaopt: functional, torch.func-native meta-learning. ``import metaopt as mo``."""

from metaopt import errors, optim, tree
from metaopt._version import version as __version__
from metaopt.algorithms import maml
from metaopt.batch import choose, map_tasks
from metaopt.doctor import doctor
from metaopt.exact import exact, seeded
from metaopt.functional import functional
from metaopt.recompute import recompute
from metaopt.step import inner_step
from metaopt.types import Episode, Hypergrad, LossFn, Meta, Optimizer, Unrolled
from metaopt.unroll import unroll

__all__ = [
    "Episode",
    "Hypergrad",
    "LossFn",
    "Meta",
    "Optimizer",
    "Unrolled",
    "__version__",
    "choose",
    "doctor",
    "errors",
    "exact",
    "functional",
    "inner_step",
    "maml",
    "map_tasks",
    "optim",
    "recompute",
    "seeded",
    "tree",
    "unroll",
]
