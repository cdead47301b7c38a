"""metaopt: functional, torch.func-native meta-learning. ``import metaopt as mo``."""

from metaopt import errors, hypergrad, linsolve, optim, tasks, tree
from metaopt._version import version as __version__
from metaopt.algorithms import (
    Bilevel,
    Cell,
    Distilled,
    Genotype,
    LearnedLoss,
    Reweighted,
    Search,
    Zero,
    bilevel,
    darts,
    darts_gradient,
    distillation,
    genotype,
    hyper_cleaning,
    jitter,
    learned_augmentation,
    learned_decay,
    learned_loss,
    maml,
    project_weights,
    reweight,
    turn,
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
    "Bilevel",
    "Binomial",
    "Cell",
    "Distilled",
    "Episode",
    "Genotype",
    "Hypergrad",
    "LearnedLoss",
    "LossFn",
    "Meta",
    "Offload",
    "Optimizer",
    "Reweighted",
    "Search",
    "Unrolled",
    "Zero",
    "__version__",
    "audit",
    "bilevel",
    "choose",
    "darts",
    "darts_gradient",
    "distillation",
    "doctor",
    "errors",
    "exact",
    "fixed_point",
    "functional",
    "genotype",
    "hyper_cleaning",
    "hypergrad",
    "inner_step",
    "jitter",
    "learned_augmentation",
    "learned_decay",
    "learned_loss",
    "linsolve",
    "maml",
    "map_tasks",
    "optim",
    "plan",
    "project_weights",
    "recompute",
    "reweight",
    "root",
    "seeded",
    "tasks",
    "tree",
    "turn",
    "unroll",
]
