"""Optimizers: pure functions ``(params, state, grads, hparams) -> (params, state)``."""

from metaopt.optim._adadelta import AdadeltaHParams, AdadeltaState, adadelta
from metaopt.optim._adafactor import AdafactorHParams, AdafactorState, adafactor
from metaopt.optim._adagrad import AdagradHParams, AdagradState, adagrad
from metaopt.optim._adam import AdamHParams, AdamState, adam
from metaopt.optim._adamax import AdamaxHParams, AdamaxState, adamax
from metaopt.optim._adamw import adamw
from metaopt.optim._asgd import ASGDHParams, ASGDState, asgd
from metaopt.optim._muon import MuonHParams, MuonState, muon
from metaopt.optim._nadam import NAdamHParams, NAdamState, nadam
from metaopt.optim._partition import masked, partition
from metaopt.optim._radam import RAdamHParams, RAdamState, radam
from metaopt.optim._rmsprop import RMSpropHParams, RMSpropState, rmsprop
from metaopt.optim._rprop import RpropHParams, RpropState, rprop
from metaopt.optim._sgd import SGDHParams, SGDState, sgd
from metaopt.optim._torch import FromTorch, from_torch, to_torch

__all__ = [
    "ASGDHParams",
    "ASGDState",
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
    "FromTorch",
    "MuonHParams",
    "MuonState",
    "NAdamHParams",
    "NAdamState",
    "RAdamHParams",
    "RAdamState",
    "RMSpropHParams",
    "RMSpropState",
    "RpropHParams",
    "RpropState",
    "SGDHParams",
    "SGDState",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "from_torch",
    "masked",
    "muon",
    "nadam",
    "partition",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "to_torch",
]
