"""Write reference.json: ten steps of every rule that torch lacks, as optax and as its equation have them.

Run it in an environment of its own, with jax, optax and numpy: ``python tests/optim/make_reference.py``.
The problem is `waves` below; test_reference.py repeats it with our rules. Where optax departs from the
paper (adan) or has no such rule, the reference is the paper's equation in numpy.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)
NUM_STEPS = 10
SHAPES = {"w": (4, 3), "b": (3,), "k": (2, 3, 2)}


def waves(shape: tuple[int, ...], step: int) -> np.ndarray:
    """Numbers that differ from entry to entry and from step to step, without a generator."""
    index = np.arange(1, int(np.prod(shape)) + 1, dtype=np.float64)
    return np.sin(1.7 * (step + 1) * index + 0.3 * len(shape)).reshape(shape)


def start() -> dict[str, np.ndarray]:
    return {k: 1.5 * waves(s, -3) for k, s in SHAPES.items()}


def gradient(params: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    return {k: 0.3 * np.asarray(p) + waves(SHAPES[k], step) for k, p in params.items()}


def by_optax(opt: optax.GradientTransformation) -> dict[str, np.ndarray]:
    params = {k: jax.numpy.asarray(v) for k, v in start().items()}
    state = opt.init(params)
    for step in range(NUM_STEPS):
        grads = {k: jax.numpy.asarray(v) for k, v in gradient(params, step).items()}
        updates, state = opt.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def adan(lr: float, b1: float, b2: float, b3: float, eps: float, eps_root: float, decay: float) -> dict:
    """Xie et al. 2022, Algorithm 1 with decay rates b = 1 − β."""
    params = start()
    m, v, n, last = ({k: np.zeros(s) for k, s in SHAPES.items()} for _ in range(4))
    for t in range(1, NUM_STEPS + 1):
        grads = gradient(params, t - 1)
        for k, g in grads.items():
            diff = g - last[k] if t > 1 else np.zeros_like(g)
            m[k] = b1 * m[k] + (1 - b1) * g
            v[k] = b2 * v[k] + (1 - b2) * diff
            n[k] = b3 * n[k] + (1 - b3) * (g + b2 * diff) ** 2
            up = m[k] / (1 - b1**t) + b2 * v[k] / (1 - b2**t)
            down = np.sqrt(n[k] / (1 - b3**t) + eps_root) + eps
            params[k] = params[k] - lr * (up / down + decay * params[k])
        last = grads
    return params


sf = optax.contrib
REFERENCE = {
    "sign_sgd": [({"lr": lr}, by_optax(optax.sign_sgd(lr))) for lr in (0.03, 0.1)],
    "lion": [
        ({"lr": 0.03, "betas": b, "weight_decay": w}, by_optax(optax.lion(0.03, *b, weight_decay=w)))
        for b in ((0.9, 0.99), (0.5, 0.8))
        for w in (1e-3, 0.2)
    ],
    "adan": [
        (
            {"lr": 0.05, "betas": b, "eps": 1e-6, "weight_decay": w, "eps_root": r},
            adan(0.05, *b, 1e-6, r, w),
        )
        for b in ((0.98, 0.92, 0.99), (0.5, 0.6, 0.7))
        for w in (0.0, 0.1)
        for r in (0.0, 1e-2)
    ],
    "lamb": [
        (
            {"lr": 0.05, "betas": b, "weight_decay": w, "eps_root": r},
            by_optax(optax.lamb(0.05, *b, weight_decay=w, eps_root=r)),
        )
        for b in ((0.9, 0.999), (0.5, 0.8))
        for w in (0.0, 0.1)
        for r in (0.0, 1e-2)
    ],
    "lars": [
        (
            {
                "lr": 1.0,
                "momentum": m,
                "weight_decay": w,
                "nesterov": n,
                "trust_coefficient": 0.05,
                "eps": 0.01,
            },
            by_optax(optax.lars(1.0, w, trust_coefficient=0.05, eps=0.01, momentum=m, nesterov=n)),
        )
        for m in (0.9, 0.5)
        for w in (0.0, 0.1)
        for n in (False, True)
    ],
    "yogi": [
        ({"lr": 0.05, "betas": b, "eps": e}, by_optax(optax.yogi(0.05, *b, eps=e)))
        for b in ((0.9, 0.999), (0.5, 0.8))
        for e in (1e-3, 0.1)
    ],
    "adabelief": [
        (
            {"lr": 0.05, "betas": b, "eps": e, "eps_root": e, "nesterov": n},
            by_optax(optax.adabelief(0.05, *b, eps=e, eps_root=e, nesterov=n)),
        )
        for b in ((0.9, 0.999), (0.5, 0.8))
        for e in (1e-16, 1e-3)
        for n in (False, True)
    ],
    "novograd": [
        (
            {"lr": 0.05, "betas": b, "weight_decay": w, "eps_root": r},
            by_optax(optax.novograd(0.05, *b, weight_decay=w, eps_root=r)),
        )
        for b in ((0.9, 0.25), (0.5, 0.8))
        for w in (0.0, 0.1)
        for r in (0.0, 1e-2)
    ],
    "sm3": [({"lr": 0.1, "momentum": m}, by_optax(optax.sm3(0.1, m))) for m in (0.9, 0.5)],
    "schedule_free_sgd": [
        (
            {"lr": 0.2, "beta": b, "weight_decay": w, "weight_lr_power": r},
            by_optax(sf.schedule_free(optax.chain(optax.add_decayed_weights(w), optax.sgd(0.2)), 0.2, b, r)),
        )
        for b in (0.9, 0.5)
        for w in (0.0, 0.1)
        for r in (2.0, 1.0)
    ],
    "schedule_free_adamw": [
        (
            {"lr": 0.05, "betas": b, "weight_decay": w},
            by_optax(sf.schedule_free_adamw(0.05, b1=b[0], b2=b[1], weight_decay=w)),
        )
        for b in ((0.9, 0.999), (0.5, 0.8))
        for w in (0.0, 0.1)
    ],
}

if __name__ == "__main__":
    rows = [
        {"name": name, "options": options, "params": {k: np.asarray(v).tolist() for k, v in params.items()}}
        for name, cases in REFERENCE.items()
        for options, params in cases
    ]
    out = {"optax": optax.__version__, "jax": jax.__version__, "rows": rows}
    (Path(__file__).parent / "reference.json").write_text(json.dumps(out))
