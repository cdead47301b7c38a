"""Hypergradients: ``estimator(problem, phi, ...) -> Hypergrad(grad, value, aux)``, chosen by one word."""

from metaopt.hypergrad._first_order import first_order
from metaopt.hypergrad._forward import forward
from metaopt.hypergrad._implicit import Implicit, fixed_point, implicit
from metaopt.hypergrad._mixed import mixed
from metaopt.hypergrad._nested import nested
from metaopt.hypergrad._problem import Problem, Rollout
from metaopt.hypergrad._truncated import one_step, truncated
from metaopt.hypergrad._unrolled import unrolled

__all__ = [
    "Implicit",
    "Problem",
    "Rollout",
    "first_order",
    "fixed_point",
    "forward",
    "implicit",
    "mixed",
    "nested",
    "one_step",
    "truncated",
    "unrolled",
]
