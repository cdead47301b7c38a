"""Hypergradients: ``estimator(problem, phi, ...) -> Hypergrad(grad, value, aux)``, chosen by one word."""

from metaopt.hypergrad._audit import Audit, Audited, audit
from metaopt.hypergrad._es import Sampled, es, es_antithetic, noise
from metaopt.hypergrad._first_order import first_order
from metaopt.hypergrad._forward import forward
from metaopt.hypergrad._implicit import Implicit, fixed_point, implicit
from metaopt.hypergrad._mixed import mixed
from metaopt.hypergrad._nested import nested
from metaopt.hypergrad._pes import Particles, Windows, es_single, pes, truncated_es
from metaopt.hypergrad._plan import Plan, Strategy, plan
from metaopt.hypergrad._problem import Problem, Rollout
from metaopt.hypergrad._truncated import one_step, truncated
from metaopt.hypergrad._unrolled import unrolled

__all__ = [
    "Audit",
    "Audited",
    "Implicit",
    "Particles",
    "Plan",
    "Problem",
    "Rollout",
    "Sampled",
    "Strategy",
    "Windows",
    "audit",
    "es",
    "es_antithetic",
    "es_single",
    "first_order",
    "fixed_point",
    "forward",
    "implicit",
    "mixed",
    "nested",
    "noise",
    "one_step",
    "pes",
    "plan",
    "truncated",
    "truncated_es",
    "unrolled",
]
