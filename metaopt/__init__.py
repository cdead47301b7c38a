"""metaopt: functional, torch.func-native meta-learning. ``import metaopt as mo``."""

from metaopt import algorithms, errors, hypergrad, linsolve, optim, plot, stateful, tasks, train, tree
from metaopt._version import version as __version__
from metaopt.algorithms import Bilevel, Cell, Distilled, Genotype, LearnedLoss, Reweighted, Search, Zero, anil, bilevel, boil, cavia, darts, darts_gradient, distillation, fomaml, genotype, gimli, hyper_cleaning, imaml, jitter, learned_augmentation, learned_decay, learned_loss, maml, maml_plus_plus, meta_curvature, meta_sgd, metaoptnet, project_weights, protonet, r2d2, reptile, reweight, turn, warpgrad
from metaopt.batch import choose, map_tasks
from metaopt.doctor import doctor
from metaopt.exact import exact, seeded
from metaopt.functional import functional
from metaopt.hypergrad import audit, plan
from metaopt.memory import Binomial, Offload
from metaopt.recompute import recompute
from metaopt.root import fixed_point, root
from metaopt.show import dress
from metaopt.step import inner_step
from metaopt.types import Episode, Hypergrad, LossFn, Meta, Optimizer, Unrolled
from metaopt.unroll import unroll

__all__ = ["optim", "__version__", "audit", "seeded", "Genotype", "LearnedLoss", "choose", "cavia", "Zero", "Reweighted", "hypergrad", "distillation", "metaoptnet", "Episode", "unroll", "exact", "stateful", "imaml", "inner_step", "boil", "Distilled", "plan", "anil", "learned_augmentation", "tasks", "turn", "reptile", "warpgrad", "darts_gradient", "reweight", "Offload", "LossFn", "doctor", "darts", "map_tasks", "learned_loss", "jitter", "Meta", "algorithms", "bilevel", "genotype", "Binomial", "learned_decay", "protonet", "r2d2", "root", "maml_plus_plus", "meta_sgd", "train", "project_weights", "maml", "Cell", "gimli", "Unrolled", "functional", "fomaml", "Bilevel", "errors", "meta_curvature", "plot", "fixed_point", "linsolve", "Search", "recompute", "Hypergrad", "hyper_cleaning", "Optimizer", "tree"]

dress(__name__)
