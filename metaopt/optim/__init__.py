"""Optimizers: pure functions ``(params, state, grads, hparams) -> (params, state)``."""

from metaopt.optim import schedule
from metaopt.optim._accumulate import AccumulateState, accumulate
from metaopt.optim._adadelta import AdadeltaHParams, AdadeltaState, adadelta
from metaopt.optim._adafactor import AdafactorHParams, AdafactorState, adafactor
from metaopt.optim._adagrad import AdagradHParams, AdagradState, adagrad
from metaopt.optim._adam import AdamHParams, AdamState, adam
from metaopt.optim._adamax import AdamaxHParams, AdamaxState, adamax
from metaopt.optim._adamw import adamw
from metaopt.optim._asgd import ASGDHParams, ASGDState, asgd
from metaopt.optim._chain import Transform, chain
from metaopt.optim._clip import ClipHParams, clip_by_global_norm, clip_by_leaf_norm, clip_by_value
from metaopt.optim._decay import DecayHParams, add_decayed_weights, centralize
from metaopt.optim._ema import EMAHParams, EMAState, ema, ema_params
from metaopt.optim._lookahead import LookaheadHParams, LookaheadState, lookahead
from metaopt.optim._muon import MuonHParams, MuonState, muon
from metaopt.optim._nadam import NAdamHParams, NAdamState, nadam
from metaopt.optim._noise import NoiseHParams, NoiseState, add_noise
from metaopt.optim._partition import masked, partition
from metaopt.optim._radam import RAdamHParams, RAdamState, radam
from metaopt.optim._rmsprop import RMSpropHParams, RMSpropState, rmsprop
from metaopt.optim._rprop import RpropHParams, RpropState, rprop
from metaopt.optim._sam import SAMHParams, SAMState, sam
from metaopt.optim._scheduled import ScheduledHParams, ScheduledState, scheduled
from metaopt.optim._sgd import SGDHParams, SGDState, sgd
from metaopt.optim._torch import FromTorch, from_torch, to_torch

__all__ = [
    "ASGDHParams",
    "ASGDState",
    "AccumulateState",
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
    "ClipHParams",
    "DecayHParams",
    "EMAHParams",
    "EMAState",
    "FromTorch",
    "LookaheadHParams",
    "LookaheadState",
    "MuonHParams",
    "MuonState",
    "NAdamHParams",
    "NAdamState",
    "NoiseHParams",
    "NoiseState",
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
    "ScheduledHParams",
    "ScheduledState",
    "Transform",
    "accumulate",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
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
    "lookahead",
    "masked",
    "muon",
    "nadam",
    "partition",
    "radam",
    "rmsprop",
    "rprop",
    "sam",
    "schedule",
    "scheduled",
    "sgd",
    "to_torch",
]
