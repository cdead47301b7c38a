"""Three levels whose answer is known, another estimator on each edge."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scenarios import assert_close, f64

import metaopt as mo
from metaopt import Meta, linsolve
from metaopt import hypergrad as hg
from metaopt.errors import CaptureError

A, B, C, D, E = 1.3, 0.4, 0.9, 0.7, -0.5
EDGES: dict[str, Any] = {
    "unrolled": (hg.unrolled, {}),
    "mixed": (hg.mixed, {}),
    "forward": (hg.forward, {}),
    "implicit": (hg.implicit, {"solve": linsolve.dense()}),
    "fixed_point": (hg.fixed_point, {"solve": linsolve.dense()}),
}


def bottom() -> hg.Problem:
    """x*(y) = argmin_x a(x−y)²/2 + bx²/2 = ay/(a+b), judged by (x−c)²/2 + d(y−z)²/2."""
    return hg.Problem(
        lambda x, _, y, z: A * (x - y) ** 2 / 2 + B * x**2 / 2,
        mo.optim.sgd(lr=1 / (A + B) * 0.9),
        (),
        15,
        lambda x, _, y, z: (x - C) ** 2 / 2 + D * (y - z) ** 2 / 2,
        params=f64(0.0),
    )


def middle(edge: Any) -> hg.Problem:
    """y*(z), the argmin of the bottom's value: (kc+dz)/(k²+d), k = a/(a+b); judged by (y−e)²/2."""
    estimator, options = edge
    value = hg.nested(bottom(), estimator, **options)
    return hg.Problem(
        lambda y, _, z: value(Meta(None, None, (y, z))),
        mo.optim.sgd(lr=0.9 / ((A / (A + B)) ** 2 + D)),
        (),
        15,
        lambda y, _, z: (y - E) ** 2 / 2,
        params=f64(0.0),
    )


@pytest.mark.parametrize(
    ("lower", "upper"),
    [*itertools.product(["unrolled", "implicit"], EDGES), ("fixed_point", "implicit"), ("mixed", "unrolled")],
)
def test_three_levels(lower: str, upper: str) -> None:
    z, k = f64(0.8), A / (A + B)
    y = (k * C + D * z) / (k**2 + D)
    estimator, options = EDGES[upper]
    result = estimator(middle(EDGES[lower]), Meta(None, None, (z,)), **options)
    assert_close(result.value, (y - E) ** 2 / 2)
    assert_close(result.grad.phi[0], (y - E) * D / (k**2 + D))


def test_levels_are_mapped_over_tasks() -> None:
    zs = f64([0.8, -0.3, 0.1])
    estimate = lambda z: hg.unrolled(middle(EDGES["implicit"]), Meta(None, None, (z,))).grad.phi[0]
    assert_close(torch.vmap(estimate)(zs), torch.stack([estimate(z) for z in zs]))


def test_what_the_upper_levels_vary_must_be_in_phi() -> None:
    z = f64(1.0).requires_grad_()
    value = hg.nested(bottom()._replace(outer_batch=(z,)), hg.implicit)
    with pytest.raises(CaptureError, match=r"nested\(implicit\): .* one in the problem"):
        value(Meta(None, None, (z, z)))
