"""Meta-learning algorithms, each a function of one task for `map_tasks`."""

from metaopt.algorithms._coordinatewise import CoordinatewiseState
from metaopt.algorithms._hypergradient_descent import (
    HypergradientDescentHParams,
    HypergradientDescentState,
    hypergradient_descent,
)
from metaopt.algorithms._learn_hparams import LearnedHParams, learn_hparams
from metaopt.algorithms._learned_lstm import LearnedLSTMHParams, LearnedLSTMMemory, learned_lstm
from metaopt.algorithms._learned_mlp import LearnedMLPHParams, LearnedMLPMemory, learned_mlp
from metaopt.algorithms._maml import maml
from metaopt.algorithms._maml_rl import MamlRL, maml_rl
from metaopt.algorithms._navigation import Navigation, Trajectories, navigation
from metaopt.algorithms._optimization_tasks import OptimizationTasks, classification, quadratics
from metaopt.algorithms._policy_gradient import Policy, gaussian_policy, policy_gradient_loss
from metaopt.algorithms._torch_optimizer import TorchOptimizer
from metaopt.algorithms._train_learned_optimizer import (
    MetaCarry,
    TrainedOptimizer,
    train_learned_optimizer,
)

__all__ = [
    "CoordinatewiseState",
    "HypergradientDescentHParams",
    "HypergradientDescentState",
    "LearnedHParams",
    "LearnedLSTMHParams",
    "LearnedLSTMMemory",
    "LearnedMLPHParams",
    "LearnedMLPMemory",
    "MamlRL",
    "MetaCarry",
    "Navigation",
    "OptimizationTasks",
    "Policy",
    "TorchOptimizer",
    "TrainedOptimizer",
    "Trajectories",
    "classification",
    "gaussian_policy",
    "hypergradient_descent",
    "learn_hparams",
    "learned_lstm",
    "learned_mlp",
    "maml",
    "maml_rl",
    "navigation",
    "policy_gradient_loss",
    "quadratics",
    "train_learned_optimizer",
]
