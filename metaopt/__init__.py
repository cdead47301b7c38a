"""metaopt: functional, torch.func-native meta-learning. ``import metaopt as mo``."""

from metaopt import algorithms, errors, hypergrad, linsolve, optim, plot, stateful, tasks, train, tree
from metaopt._version import version as __version__
from metaopt.algorithms import Bilevel, Cell, Distilled, Genotype, LearnedLoss, Reweighted, Search, TorchOptimizer, Zero, anil, bilevel, boil, cavia, classification, darts, darts_gradient, distillation, fomaml, gaussian_policy, genotype, gimli, hyper_cleaning, hypergradient_descent, imaml, jitter, learn_hparams, learned_augmentation, learned_decay, learned_loss, learned_lstm, learned_mlp, maml, maml_plus_plus, maml_rl, meta_curvature, meta_sgd, metaoptnet, navigation, policy_gradient_loss, project_weights, protonet, quadratics, r2d2, reptile, reweight, train_learned_optimizer, turn, warpgrad
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

__all__ = ["maml", "train", "metaoptnet", "doctor", "optim", "jitter", "meta_curvature", "gimli", "Distilled", "Offload", "train_learned_optimizer", "warpgrad", "LossFn", "protonet", "bilevel", "tasks", "maml_plus_plus", "LearnedLoss", "learn_hparams", "seeded", "hypergrad", "quadratics", "Genotype", "fixed_point", "__version__", "Reweighted", "genotype", "imaml", "Bilevel", "unroll", "plan", "learned_augmentation", "tree", "choose", "plot", "learned_lstm", "learned_decay", "TorchOptimizer", "Episode", "darts", "functional", "boil", "Zero", "root", "errors", "recompute", "darts_gradient", "map_tasks", "stateful", "navigation", "meta_sgd", "reweight", "learned_mlp", "policy_gradient_loss", "Binomial", "hyper_cleaning", "project_weights", "classification", "r2d2", "linsolve", "hypergradient_descent", "Cell", "distillation", "audit", "maml_rl", "Optimizer", "cavia", "learned_loss", "fomaml", "turn", "algorithms", "inner_step", "Meta", "anil", "Search", "Hypergrad", "exact", "gaussian_policy", "reptile", "Unrolled"]

dress(__name__)
