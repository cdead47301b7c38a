"""Optimizers: pure functions ``(params, state, grads, hparams) -> (params, state)``."""

from metaopt.optim import schedule
from metaopt.optim._accumulate import AccumulateState, accumulate
from metaopt.optim._adabelief import AdaBeliefHParams, AdaBeliefState, adabelief
from metaopt.optim._adadelta import AdadeltaHParams, AdadeltaState, adadelta
from metaopt.optim._adafactor import AdafactorHParams, AdafactorState, adafactor
from metaopt.optim._adagrad import AdagradHParams, AdagradState, adagrad
from metaopt.optim._adam import AdamHParams, AdamState, adam
from metaopt.optim._adamax import AdamaxHParams, AdamaxState, adamax
from metaopt.optim._adamw import adamw
from metaopt.optim._adan import AdanHParams, AdanState, adan
from metaopt.optim._asgd import ASGDHParams, ASGDState, asgd
from metaopt.optim._chain import Transform, chain
from metaopt.optim._clip import ClipHParams, clip_by_global_norm, clip_by_leaf_norm, clip_by_value
from metaopt.optim._decay import DecayHParams, add_decayed_weights, centralize
from metaopt.optim._ema import EMAHParams, EMAState, ema, ema_params
from metaopt.optim._lamb import LambHParams, LambState, lamb
from metaopt.optim._lars import LarsHParams, LarsState, lars
from metaopt.optim._lbfgs import LBFGSHParams, LBFGSState, lbfgs
from metaopt.optim._lion import LionHParams, LionState, lion
from metaopt.optim._lookahead import LookaheadHParams, LookaheadState, lookahead
from metaopt.optim._mirror_descent import MirrorDescentHParams, MirrorDescentState, mirror_descent
from metaopt.optim._muon import MuonHParams, MuonState, muon
from metaopt.optim._nadam import NAdamHParams, NAdamState, nadam
from metaopt.optim._noise import NoiseHParams, NoiseState, add_noise
from metaopt.optim._novograd import NovoGradHParams, NovoGradState, novograd
from metaopt.optim._partition import masked, partition
from metaopt.optim._preconditioned_sgd import (
    PreconditionedSGDHParams,
    PreconditionedSGDState,
    identity_preconditioner,
    preconditioned_sgd,
)
from metaopt.optim._proximal_sgd import ProximalSGDHParams, ProximalSGDState, proximal_sgd
from metaopt.optim._radam import RAdamHParams, RAdamState, radam
from metaopt.optim._rmsprop import RMSpropHParams, RMSpropState, rmsprop
from metaopt.optim._rprop import RpropHParams, RpropState, rprop
from metaopt.optim._sam import SAMHParams, SAMState, sam
from metaopt.optim._schedule_free import (
    ScheduleFreeHParams,
    ScheduleFreeState,
    schedule_free_adamw,
    schedule_free_sgd,
)
from metaopt.optim._scheduled import ScheduledHParams, ScheduledState, scheduled
from metaopt.optim._sgd import SGDHParams, SGDState, sgd
from metaopt.optim._sign_sgd import SignSGDHParams, SignSGDState, sign_sgd
from metaopt.optim._sm3 import SM3HParams, SM3State, sm3
from metaopt.optim._torch import FromTorch, from_torch, to_torch
from metaopt.optim._yogi import YogiHParams, YogiState, yogi

__all__ = [
    "ASGDHParams",
    "ASGDState",
    "AccumulateState",
    "AdaBeliefHParams",
    "AdaBeliefState",
    "AdadeltaHParams",
    "AdadeltaState",
    "AdafactorHParams",
    "AdafactorState",
    "AdagradHParams",
    "AdagradState",
    "AdamHParams",
    "AdamState",
    "AdamaxHParams",
    "AdamaxState",
    "AdanHParams",
    "AdanState",
    "ClipHParams",
    "DecayHParams",
    "EMAHParams",
    "EMAState",
    "FromTorch",
    "LBFGSHParams",
    "LBFGSState",
    "LambHParams",
    "LambState",
    "LarsHParams",
    "LarsState",
    "LionHParams",
    "LionState",
    "LookaheadHParams",
    "LookaheadState",
    "MirrorDescentHParams",
    "MirrorDescentState",
    "MuonHParams",
    "MuonState",
    "NAdamHParams",
    "NAdamState",
    "NoiseHParams",
    "NoiseState",
    "NovoGradHParams",
    "NovoGradState",
    "PreconditionedSGDHParams",
    "PreconditionedSGDState",
    "ProximalSGDHParams",
    "ProximalSGDState",
    "RAdamHParams",
    "RAdamState",
    "RMSpropHParams",
    "RMSpropState",
    "RpropHParams",
    "RpropState",
    "SAMHParams",
    "SAMState",
    "SGDHParams",
    "SGDState",
    "SM3HParams",
    "SM3State",
    "ScheduleFreeHParams",
    "ScheduleFreeState",
    "ScheduledHParams",
    "ScheduledState",
    "SignSGDHParams",
    "SignSGDState",
    "Transform",
    "YogiHParams",
    "YogiState",
    "accumulate",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "add_decayed_weights",
    "add_noise",
    "asgd",
    "centralize",
    "chain",
    "clip_by_global_norm",
    "clip_by_leaf_norm",
    "clip_by_value",
    "ema",
    "ema_params",
    "from_torch",
    "identity_preconditioner",
    "lamb",
    "lars",
    "lbfgs",
    "lion",
    "lookahead",
    "masked",
    "mirror_descent",
    "muon",
    "nadam",
    "novograd",
    "partition",
    "preconditioned_sgd",
    "proximal_sgd",
    "radam",
    "rmsprop",
    "rprop",
    "sam",
    "schedule",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "scheduled",
    "sgd",
    "sign_sgd",
    "sm3",
    "to_torch",
    "yogi",
]
