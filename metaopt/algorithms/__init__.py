"""Meta-learning algorithms, each a function of one task for `map_tasks`."""

from metaopt.algorithms._anil import anil
from metaopt.algorithms._boil import boil
from metaopt.algorithms._cavia import cavia
from metaopt.algorithms._fomaml import fomaml
from metaopt.algorithms._gimli import Gimli, GimliState, gimli
from metaopt.algorithms._imaml import imaml
from metaopt.algorithms._maml import maml
from metaopt.algorithms._maml_plus_plus import maml_plus_plus, maml_plus_plus_init, multi_step_weights
from metaopt.algorithms._meta_curvature import meta_curvature, meta_curvature_init
from metaopt.algorithms._meta_sgd import meta_sgd, meta_sgd_init
from metaopt.algorithms._metaoptnet import metaoptnet, svm_dual
from metaopt.algorithms._partial import Part, split
from metaopt.algorithms._protonet import protonet, prototypes
from metaopt.algorithms._r2d2 import RidgeHead, r2d2, ridge
from metaopt.algorithms._reptile import reptile
from metaopt.algorithms._warpgrad import warpgrad

__all__ = [
    "Gimli",
    "GimliState",
    "Part",
    "RidgeHead",
    "anil",
    "boil",
    "cavia",
    "fomaml",
    "gimli",
    "imaml",
    "maml",
    "maml_plus_plus",
    "maml_plus_plus_init",
    "meta_curvature",
    "meta_curvature_init",
    "meta_sgd",
    "meta_sgd_init",
    "metaoptnet",
    "multi_step_weights",
    "protonet",
    "prototypes",
    "r2d2",
    "reptile",
    "ridge",
    "split",
    "svm_dual",
    "warpgrad",
]
