"""Training: the outer loop, its checkpoints, many processes, evaluation and pictures."""

from metaopt.exact import tasks_from
from metaopt.show import dress
from metaopt.train._checkpoint import Checkpoint, load, restore, save
from metaopt.train._config import CHOICES, Config, config_for
from metaopt.train._defaults import ALGORITHMS, DEFAULTS
from metaopt.train._distributed import process_group, ranks, reduce_gradients, shard_tasks
from metaopt.train._estimate import Estimate, Estimator, by_autograd
from metaopt.train._evaluate import Evaluation, evaluate
from metaopt.train._fit import Fitted, Step, fit
from metaopt.train._loop import start, train
from metaopt.train._method import Learned, Method
from metaopt.train._methods import METHODS, make_method
from metaopt.train._pictures import save_pictures
from metaopt.train._problem import Problem, conv4, make_problem, mlp
from metaopt.train._run import Run, check_resumed, resumed_config
from metaopt.train._shards import gather_params, shard_params
from metaopt.train._writers import CSVWriter, JSONLWriter, TensorBoardWriter, Writer

__all__ = [
    "ALGORITHMS",
    "CHOICES",
    "DEFAULTS",
    "METHODS",
    "CSVWriter",
    "Checkpoint",
    "Config",
    "Estimate",
    "Estimator",
    "Evaluation",
    "Fitted",
    "JSONLWriter",
    "Learned",
    "Method",
    "Problem",
    "Run",
    "Step",
    "TensorBoardWriter",
    "Writer",
    "by_autograd",
    "check_resumed",
    "config_for",
    "conv4",
    "evaluate",
    "fit",
    "gather_params",
    "load",
    "make_method",
    "make_problem",
    "mlp",
    "process_group",
    "ranks",
    "reduce_gradients",
    "restore",
    "resumed_config",
    "save",
    "save_pictures",
    "shard_params",
    "shard_tasks",
    "start",
    "tasks_from",
    "train",
]

dress(__name__)
