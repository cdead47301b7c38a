"""metaopt: functional, torch.func-native meta-learning. ``import metaopt as mo``."""

from metaopt import errors, hypergrad, linsolve, optim, tasks, tree
from metaopt._version import version as __version__
from metaopt.algorithms import maml
from metaopt.batch import choose, map_tasks
from metaopt.compiled import compile_report, forget_compiled
from metaopt.compiling import Compile, compiling
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
    "Compile",
    "Episode",
    "Hypergrad",
    "LossFn",
    "Meta",
    "Offload",
    "Optimizer",
    "Unrolled",
    "__version__",
    "audit",
    "choose",
    "compile_report",
    "compiling",
    "doctor",
    "errors",
    "exact",
    "fixed_point",
    "forget_compiled",
    "functional",
    "hypergrad",
    "inner_step",
    "linsolve",
    "maml",
    "map_tasks",
    "optim",
    "plan",
    "recompute",
    "root",
    "seeded",
    "tasks",
    "tree",
    "unroll",
]
