"""Meta-learning algorithms, each a function of one task for `map_tasks`, or a problem for `hypergrad`."""

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
from metaopt.algorithms._augmentation import jitter, learned_augmentation, turn
from metaopt.algorithms._bilevel import Bilevel, bilevel
from metaopt.algorithms._cell import Cell, Genotype, Zero, genotype
from metaopt.algorithms._darts import Search, darts, darts_gradient
from metaopt.algorithms._distillation import Distilled, distillation
from metaopt.algorithms._hyper_cleaning import hyper_cleaning, project_weights
from metaopt.algorithms._learned_decay import learned_decay
from metaopt.algorithms._learned_loss import LearnedLoss, learned_loss
from metaopt.algorithms._reweight import Reweighted, reweight

__all__ = ["anil", "prototypes", "protonet", "maml", "Reweighted", "learned_augmentation", "maml_plus_plus_init", "jitter", "Search", "Distilled", "Gimli", "turn", "Bilevel", "split", "project_weights", "warpgrad", "LearnedLoss", "bilevel", "svm_dual", "meta_curvature_init", "Genotype", "cavia", "Part", "RidgeHead", "r2d2", "gimli", "multi_step_weights", "boil", "darts_gradient", "learned_loss", "meta_sgd", "learned_decay", "reweight", "fomaml", "ridge", "genotype", "distillation", "reptile", "hyper_cleaning", "GimliState", "imaml", "darts", "meta_curvature", "metaoptnet", "meta_sgd_init", "Zero", "Cell", "maml_plus_plus"]
