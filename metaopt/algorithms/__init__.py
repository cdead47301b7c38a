"""Meta-learning algorithms, each a function of one task for `map_tasks`, or a problem for `hypergrad`."""

from metaopt.algorithms._anil import anil
from metaopt.algorithms._bilevel import Bilevel, bilevel
from metaopt.algorithms._boil import boil
from metaopt.algorithms._cavia import cavia
from metaopt.algorithms._cell import Cell, Genotype, Zero, genotype
from metaopt.algorithms._coordinatewise import CoordinatewiseState
from metaopt.algorithms._darts import Search, darts, darts_gradient
from metaopt.algorithms._distillation import Distilled, distillation
from metaopt.algorithms._fomaml import fomaml
from metaopt.algorithms._gimli import Gimli, GimliState, gimli
from metaopt.algorithms._hyper_cleaning import hyper_cleaning, project_weights
from metaopt.algorithms._hypergradient_descent import (
    HypergradientDescentHParams,
    HypergradientDescentState,
    hypergradient_descent,
)
from metaopt.algorithms._imaml import imaml
from metaopt.algorithms._learn_hparams import LearnedHParams, learn_hparams
from metaopt.algorithms._learned_augmentation import jitter, learned_augmentation, turn
from metaopt.algorithms._learned_decay import learned_decay
from metaopt.algorithms._learned_loss import LearnedLoss, learned_loss
from metaopt.algorithms._learned_lstm import LearnedLSTMHParams, LearnedLSTMMemory, learned_lstm
from metaopt.algorithms._learned_mlp import LearnedMLPHParams, LearnedMLPMemory, learned_mlp
from metaopt.algorithms._maml import maml
from metaopt.algorithms._maml_plus_plus import maml_plus_plus, maml_plus_plus_init, multi_step_weights
from metaopt.algorithms._maml_rl import MamlRL, maml_rl
from metaopt.algorithms._meta_curvature import meta_curvature, meta_curvature_init
from metaopt.algorithms._meta_sgd import meta_sgd, meta_sgd_init
from metaopt.algorithms._metaoptnet import metaoptnet, svm_dual
from metaopt.algorithms._navigation import Navigation, Trajectories, navigation
from metaopt.algorithms._optimization_tasks import OptimizationTasks, classification, quadratics
from metaopt.algorithms._partial import Part, split
from metaopt.algorithms._policy_gradient import Policy, gaussian_policy, policy_gradient_loss
from metaopt.algorithms._protonet import protonet, prototypes
from metaopt.algorithms._r2d2 import RidgeHead, r2d2, ridge
from metaopt.algorithms._reptile import reptile
from metaopt.algorithms._reweight import Reweighted, reweight
from metaopt.algorithms._torch_optimizer import TorchOptimizer
from metaopt.algorithms._train_learned_optimizer import MetaCarry, TrainedOptimizer, train_learned_optimizer
from metaopt.algorithms._warpgrad import warpgrad

__all__ = [
    "Bilevel",
    "Cell",
    "CoordinatewiseState",
    "Distilled",
    "Genotype",
    "Gimli",
    "GimliState",
    "HypergradientDescentHParams",
    "HypergradientDescentState",
    "LearnedHParams",
    "LearnedLSTMHParams",
    "LearnedLSTMMemory",
    "LearnedLoss",
    "LearnedMLPHParams",
    "LearnedMLPMemory",
    "MamlRL",
    "MetaCarry",
    "Navigation",
    "OptimizationTasks",
    "Part",
    "Policy",
    "Reweighted",
    "RidgeHead",
    "Search",
    "TorchOptimizer",
    "TrainedOptimizer",
    "Trajectories",
    "Zero",
    "anil",
    "bilevel",
    "boil",
    "cavia",
    "classification",
    "darts",
    "darts_gradient",
    "distillation",
    "fomaml",
    "gaussian_policy",
    "genotype",
    "gimli",
    "hyper_cleaning",
    "hypergradient_descent",
    "imaml",
    "jitter",
    "learn_hparams",
    "learned_augmentation",
    "learned_decay",
    "learned_loss",
    "learned_lstm",
    "learned_mlp",
    "maml",
    "maml_plus_plus",
    "maml_plus_plus_init",
    "maml_rl",
    "meta_curvature",
    "meta_curvature_init",
    "meta_sgd",
    "meta_sgd_init",
    "metaoptnet",
    "multi_step_weights",
    "navigation",
    "policy_gradient_loss",
    "project_weights",
    "protonet",
    "prototypes",
    "quadratics",
    "r2d2",
    "reptile",
    "reweight",
    "ridge",
    "split",
    "svm_dual",
    "train_learned_optimizer",
    "turn",
    "warpgrad",
]
