"""Training: the outer loop, its checkpoints, evaluation and pictures."""

from metaopt.show import dress
from metaopt.train._checkpoint import Checkpoint, load, restore, save
from metaopt.train._config import CHOICES, Config, config_for
from metaopt.train._defaults import ALGORITHMS, DEFAULTS
from metaopt.train._evaluate import Evaluation, evaluate
from metaopt.train._loop import Run, start, train
from metaopt.train._method import Learned, Method
from metaopt.train._methods import METHODS, make_method
from metaopt.train._pictures import save_pictures
from metaopt.train._problem import Problem, conv4, make_problem, mlp

__all__ = [
    "ALGORITHMS",
    "CHOICES",
    "DEFAULTS",
    "METHODS",
    "Checkpoint",
    "Config",
    "Evaluation",
    "Learned",
    "Method",
    "Problem",
    "Run",
    "config_for",
    "conv4",
    "evaluate",
    "load",
    "make_method",
    "make_problem",
    "mlp",
    "restore",
    "save",
    "save_pictures",
    "start",
    "train",
]

dress(__name__)
