"""Optimizers: pure functions ``(params, state, grads, hparams) -> (params, state)``."""

from metaopt.optim._adam import AdamHParams, AdamState, adam
from metaopt.optim._sgd import SGDHParams, SGDState, sgd

__all__ = ["AdamHParams", "AdamState", "SGDHParams", "SGDState", "adam", "sgd"]
