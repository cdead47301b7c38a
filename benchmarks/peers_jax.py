"""The same meta-gradient in JAX with optax, steps unrolled or scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.problems import Work


def with_jax(scan: bool) -> Callable[[Work], Callable[[], list[Any]]]:
    """jit(grad(mean of the vmapped tasks)); for convolutions jit(grad(one task)), called task after task.

    Tried for the conv net on two cores, CPU time a task at J=1: vmap 670 ms (T=4) to 1,700 ms (T=16),
    lax.map 680 ms, lax.map with channels last 410 ms, one compiled task with channels last 71 ms: used here.
    """

    def peer(work: Work) -> Callable[[], list[Any]]:
        import jax
        import jax.numpy as jnp
        import optax

        opt = optax.sgd(work.lr)
        params = [_last(jnp, p.detach().numpy(), (2, 3, 1, 0)) for p in work.net.parameters()]
        episodes = [tuple(_last(jnp, a.numpy(), (0, 1, 3, 4, 2)) for a in part) for part in work.episodes]
        net = _conv(jax) if work.conv else _mlp(jax)

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
            return jax.vmap(task_loss, in_axes=(None, 0, 0))(p, support, query).mean()

        if not work.conv:
            compiled = jax.jit(jax.grad(meta_loss))
            return lambda: jax.block_until_ready(compiled(params, *episodes))

        one, tasks = jax.jit(jax.grad(task_loss)), _unstacked(jax, episodes, work.tasks)

        def run() -> list[Any]:
            gradients = [one(params, *task) for task in tasks]
            total = jax.tree.map(lambda *gs: sum(gs) / work.tasks, *gradients)
            return [g.transpose(3, 2, 0, 1) if g.ndim == 4 else g for g in jax.block_until_ready(total)]

        return run

    return peer


def _last(jnp: Any, x: Any, order: tuple[int, ...]) -> Any:
    """Channels last, where there are any: kernels [h, w, in, out], images [task, example, h, w, channel]."""
    return jnp.asarray(x.transpose(order) if x.ndim == len(order) else x)


def _unstacked(jax: Any, episodes: Any, tasks: int) -> list[Any]:
    return [jax.tree.map(lambda a, i=i: a[i], episodes) for i in range(tasks)]


def _mlp(jax: Any) -> Any:
    def net(p: Any, x: Any) -> Any:
        w1, b1, w2, b2, w3, b3 = p
        h = jax.nn.relu(jax.nn.relu(x @ w1.T + b1) @ w2.T + b2)
        return h @ w3.T + b3

    return net


def _conv(jax: Any) -> Any:
    def net(p: Any, x: Any) -> Any:
        for i in range(4):
            w, b, scale, shift = p[4 * i : 4 * i + 4]
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout) + b
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            x = jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + shift)
        return x.mean((1, 2)) @ p[-2].T + p[-1]

    return net
