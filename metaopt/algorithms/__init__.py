"""Meta-learning algorithms, each a function of one task for `map_tasks`."""

from metaopt.algorithms._coordinatewise import CoordinatewiseState
from metaopt.algorithms._learned_lstm import LearnedLSTMHParams, LearnedLSTMMemory, learned_lstm
from metaopt.algorithms._learned_mlp import LearnedMLPHParams, LearnedMLPMemory, learned_mlp
from metaopt.algorithms._maml import maml
from metaopt.algorithms._optimization_tasks import OptimizationTasks, classification, quadratics
from metaopt.algorithms._train_learned_optimizer import (
    MetaCarry,
    TrainedOptimizer,
    train_learned_optimizer,
)

__all__ = [
    "CoordinatewiseState",
    "LearnedLSTMHParams",
    "LearnedLSTMMemory",
    "LearnedMLPHParams",
    "LearnedMLPMemory",
    "MetaCarry",
    "OptimizationTasks",
    "TrainedOptimizer",
    "classification",
    "learned_lstm",
    "learned_mlp",
    "maml",
    "quadratics",
    "train_learned_optimizer",
]
