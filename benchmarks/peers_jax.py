"""The same meta-gradient in JAX with optax: jit of grad of vmap, steps unrolled or scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.problems import Work


def with_jax(scan: bool) -> Callable[[Work], Callable[[], list[Any]]]:
    """jit(grad(mean of tasks)); tasks by vmap, or by lax.map for convolutions, which is faster on a CPU."""

    def peer(work: Work) -> Callable[[], list[Any]]:
        import jax
        import jax.numpy as jnp
        import optax

        opt = optax.sgd(work.lr)
        params = [jnp.asarray(p.detach().numpy()) for p in work.net.parameters()]
        episodes = [tuple(jnp.asarray(a.numpy()) for a in part) for part in work.episodes]
        net = _conv(jax, jnp) if work.conv else _mlp(jax)

        def loss_fn(p: Any, x: Any, y: Any) -> Any:
            if work.conv:
                return optax.softmax_cross_entropy_with_integer_labels(net(p, x), y).mean()
            return ((net(p, x) - y) ** 2).mean()

        def task_loss(p: Any, support: Any, query: Any) -> Any:
            def step(carry: Any, _: Any) -> Any:
                p, state = carry
                updates, state = opt.update(jax.grad(loss_fn)(p, *support), state)
                return (optax.apply_updates(p, updates), state), None

            carry = (p, opt.init(p))
            if scan:
                carry, _ = jax.lax.scan(step, carry, length=work.steps)
            else:
                for _ in range(work.steps):
                    carry, _ = step(carry, None)
            return loss_fn(carry[0], *query)

        def meta_loss(p: Any, support: Any, query: Any) -> Any:
            if work.conv:
                return jax.lax.map(lambda episode: task_loss(p, *episode), (support, query)).mean()
            return jax.vmap(task_loss, in_axes=(None, 0, 0))(p, support, query).mean()

        compiled = jax.jit(jax.grad(meta_loss))
        return lambda: jax.block_until_ready(compiled(params, *episodes))

    return peer


def _mlp(jax: Any) -> Any:
    def net(p: Any, x: Any) -> Any:
        w1, b1, w2, b2, w3, b3 = p
        h = jax.nn.relu(jax.nn.relu(x @ w1.T + b1) @ w2.T + b2)
        return h @ w3.T + b3

    return net


def _conv(jax: Any, jnp: Any) -> Any:
    def net(p: Any, x: Any) -> Any:
        for i in range(4):
            w, b, scale, shift = p[4 * i : 4 * i + 4]
            x = jax.lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)))
            x = x + b[:, None, None]
            mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
            x = (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale[:, None, None] + shift[:, None, None]
            x = jax.nn.relu(x)
        return x.mean((2, 3)) @ p[-2].T + p[-1]

    return net
