"""Meta-learning algorithms, each a function of one task for `map_tasks`, or a problem for `hypergrad`."""

from metaopt.algorithms._augmentation import jitter, learned_augmentation, turn
from metaopt.algorithms._bilevel import Bilevel, bilevel
from metaopt.algorithms._cell import Cell, Genotype, Zero, genotype
from metaopt.algorithms._darts import Search, darts, darts_gradient
from metaopt.algorithms._distillation import Distilled, distillation
from metaopt.algorithms._hyper_cleaning import hyper_cleaning, project_weights
from metaopt.algorithms._learned_decay import learned_decay
from metaopt.algorithms._learned_loss import LearnedLoss, learned_loss
from metaopt.algorithms._maml import maml
from metaopt.algorithms._reweight import Reweighted, reweight

__all__ = [
    "Bilevel",
    "Cell",
    "Distilled",
    "Genotype",
    "LearnedLoss",
    "Reweighted",
    "Search",
    "Zero",
    "bilevel",
    "darts",
    "darts_gradient",
    "distillation",
    "genotype",
    "hyper_cleaning",
    "jitter",
    "learned_augmentation",
    "learned_decay",
    "learned_loss",
    "maml",
    "project_weights",
    "reweight",
    "turn",
]
