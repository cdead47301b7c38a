"""metaopt: functional, torch.func-native meta-learning. ``import metaopt as mo``."""

from metaopt import errors, optim, tree
from metaopt.algorithms import maml
from metaopt.batch import choose, map_tasks
from metaopt.exact import exact
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
    "choose",
    "errors",
    "exact",
    "functional",
    "inner_step",
    "map_tasks",
    "maml",
    "optim",
    "recompute",
    "tree",
    "unroll",
]
__version__ = "0.1.0"
