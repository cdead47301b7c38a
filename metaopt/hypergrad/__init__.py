"""Hypergradients: ``estimator(problem, phi, ...) -> Hypergrad(grad, value, aux)``, chosen by one word."""

from metaopt.hypergrad._first_order import first_order
from metaopt.hypergrad._forward import forward
from metaopt.hypergrad._mixed import mixed
from metaopt.hypergrad._problem import Problem, Rollout
from metaopt.hypergrad._truncated import one_step, truncated
from metaopt.hypergrad._unrolled import unrolled

__all__ = ["Problem", "Rollout", "first_order", "forward", "mixed", "one_step", "truncated", "unrolled"]
