"""Quadratic tasks, on which every inner loop is a matrix: closed forms 9 to 13 and their relatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenarios import assert_close, f64, positive, quadratic, vector
from torch import Tensor

import metaopt as mo
from metaopt import Episode, Meta
from metaopt import algorithms as alg
from metaopt.linsolve import cg

N, ALPHA = 4, 0.3
Q, CENTRE, THETA = positive(N, 4), vector(N, 5), vector(N, 6)
EYE = torch.eye(N, dtype=torch.float64)
INNER = EYE - ALPHA * Q
EPISODE = Episode((Q, CENTRE), (Q, CENTRE))
DESCENT = mo.optim.sgd(lr=ALPHA)


def slope(task: Any, meta: Any = THETA, episode: Any = EPISODE) -> Any:
    leaves, structure = mo.tree.flatten(meta)
    live = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in leaves]
    value = task(mo.tree.unflatten(structure, live), episode)
    grads = iter(torch.autograd.grad(value, [x for x in live if isinstance(x, Tensor)]))
    return mo.tree.unflatten(structure, [next(grads) if isinstance(x, Tensor) else 0.0 for x in live])


def power(k: int) -> Tensor:
    return torch.linalg.matrix_power(INNER, k)


def test_9_maml() -> None:
    """(I−αQ)Q(I−αQ)(θ−c)."""
    assert_close(slope(mo.maml(quadratic, DESCENT)), INNER @ Q @ INNER @ (THETA - CENTRE))


def test_10_fomaml() -> None:
    """Q(I−αQ)(θ−c)."""
    assert_close(slope(mo.fomaml(quadratic, DESCENT)), Q @ INNER @ (THETA - CENTRE))


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_11_reptile(steps: int) -> None:
    """φ−θ = −(I−(I−αQ)^k)(θ−c); what is handed out is θ−φ."""
    found = mo.reptile(quadratic, DESCENT, steps)(THETA, EPISODE)
    assert_close(found.grad, (EYE - power(steps)) @ (THETA - CENTRE))
    assert_close(found.aux, THETA - found.grad)
    before = power(steps - 1) @ (THETA - CENTRE)
    assert_close(found.value, before @ Q @ before / 2)


def test_11_reptile_takes_a_batch_a_step() -> None:
    twice = Episode((torch.stack([Q, Q]), torch.stack([CENTRE, CENTRE])), ())
    found = mo.reptile(quadratic, DESCENT, None)(THETA, twice)
    assert_close(found.grad, (EYE - power(2)) @ (THETA - CENTRE))


def test_reptile_of_two_steps_is_the_sum_of_their_gradients() -> None:
    """Nichol et al. 2018, equation 2: with SGD, θ − φ = α Σ g_i."""
    first, second = Q @ (THETA - CENTRE), Q @ INNER @ (THETA - CENTRE)
    assert_close(mo.reptile(quadratic, DESCENT, 2)(THETA, EPISODE).grad, ALPHA * (first + second))


def test_12_imaml_at_the_proximal_point() -> None:
    """(I+Q/λ)⁻¹Q(φ−c), Q(φ−c) taken at the solution: reached in 400 steps, solved in N iterations."""
    strength = 0.6
    point = torch.linalg.solve(Q + strength * EYE, Q @ CENTRE + strength * THETA)
    task = mo.imaml(quadratic, DESCENT, 400, strength=strength, solve=cg(N + 2, 1e-15))
    found = task(THETA, EPISODE)
    assert_close(found.aux.params, point)
    assert_close(found.grad, torch.linalg.solve(EYE + Q / strength, Q @ (point - CENTRE)))
    assert found.aux.optimality < 1e-12


@pytest.mark.parametrize("damping", [0.3, 10.0])
def test_imaml_damped_is_as_if_the_pull_were_stronger(damping: float) -> None:
    """(I + Q/(λ+δ))⁻¹Q(θ*−c), at the same θ*; the residual is that of the system without δ."""
    strength, solve = 0.6, cg(N + 2, 1e-15)
    found = mo.imaml(quadratic, DESCENT, 400, strength=strength, damping=damping, solve=solve)(THETA, EPISODE)
    slope_there = Q @ (found.aux.params - CENTRE)
    assert_close(found.grad, torch.linalg.solve(EYE + Q / (strength + damping), slope_there))
    left = slope_there - (Q + strength * EYE) @ torch.linalg.solve(
        Q + (strength + damping) * EYE, slope_there
    )
    assert_close(found.aux.solve.residual, left.norm() / slope_there.norm())


def test_imaml_without_damping_is_0_where_the_curvature_is_below_minus_the_strength() -> None:
    """−p² has H = −2: conjugate gradients cannot start with λ = 1, and can with λ + δ = 5."""
    hill, one = lambda p, b: -(p**2), torch.tensor(1.0, dtype=torch.float64)
    still = mo.optim.sgd(lr=0.0)
    assert mo.imaml(hill, still, 1, strength=1.0)(one, mo.Episode((), ())).grad == 0
    assert_close(
        mo.imaml(hill, still, 1, strength=1.0, damping=4.0)(one, mo.Episode((), ())).grad,
        -2 * one / (1 - 2 / 5),
    )


def test_12_imaml_is_the_limit_of_maml() -> None:
    """The same proximal problem, differentiated through 400 steps."""
    strength = 0.6

    def unrolled(prior: Tensor, episode: Any) -> Tensor:
        def proximal(p: Tensor, batch: Any, prior: Tensor) -> Tensor:
            return quadratic(p, batch) + strength / 2 * ((p - prior) ** 2).sum()

        out = mo.unroll(proximal, DESCENT, prior, episode.support, 400, phi=(prior,))
        return quadratic(out.params, episode.query)

    task = mo.imaml(quadratic, DESCENT, 400, strength=strength, solve=cg(N + 2, 1e-15))
    assert_close(task(THETA, EPISODE).grad, slope(unrolled), 1e-11)


def test_13_example_weights_are_loss_parameters_of_maml() -> None:
    """dF/dw_i = −α g_iᵀ∇F(θ1)."""
    x, y, target, w = vector(12, 7).reshape(6, 2), vector(6, 8), vector(2, 9), vector(6, 10).abs()

    def weighted(p: Tensor, batch: Any, w: Tensor) -> Tensor:
        return (w * (batch[0] @ p - batch[1]) ** 2 / 2).sum()

    task = mo.maml(weighted, DESCENT, query_loss_fn=lambda p, batch: ((p - batch) ** 2).sum() / 2)
    theta = vector(2, 11)
    grads = (x @ theta - y)[:, None] * x
    end = theta - ALPHA * (w[:, None] * grads).sum(0)
    found = slope(task, Meta(theta, DESCENT.hparams, (w,)), Episode((x, y), target))
    assert_close(found.phi[0], -ALPHA * grads @ (end - target))


@pytest.mark.parametrize("adapts_head", [True, False])
def test_anil_and_boil_move_one_block(adapts_head: bool) -> None:
    """J = I − αPQ with P the projection on what adapts: ∇ = Jᵀ Q J (θ−c)."""
    params = {"body": THETA[:2], "head": THETA[2:]}

    def joined(p: Any, batch: Any) -> Tensor:
        return quadratic(torch.cat([p["body"], p["head"]]), batch)

    on = torch.tensor([0.0, 0.0, 1.0, 1.0] if adapts_head else [1.0, 1.0, 0.0, 0.0]).double()
    jacobian = EYE - ALPHA * on[:, None] * Q
    want = jacobian.T @ Q @ jacobian @ (THETA - CENTRE)
    algorithm: Any = mo.anil if adapts_head else mo.boil
    for head in (lambda path: "head" in path, {"body": False, "head": True}):
        found = slope(algorithm(joined, DESCENT, head=head), params)
        assert_close(torch.cat([found["body"], found["head"]]), want)


def test_meta_sgd_learns_a_rate_for_every_entry() -> None:
    """J = I − diag(α)Q: ∇_θ = JᵀQJ(θ−c), ∇_α = −g ∘ QJ(θ−c)."""
    rates = vector(N, 12).abs()
    jacobian = EYE - rates[:, None] * Q
    after = Q @ jacobian @ (THETA - CENTRE)
    meta = alg.meta_sgd_init(THETA)
    found = slope(mo.meta_sgd(quadratic), meta._replace(hparams=meta.hparams._replace(lr=rates)))
    assert_close(found.params, jacobian.T @ after)
    assert_close(found.hparams.lr, -(Q @ (THETA - CENTRE)) * after)


def test_meta_curvature_learns_a_matrix() -> None:
    """J = I − αMQ: ∇_M = −α QJ(θ−c) gᵀ."""
    matrix = positive(N, 13)
    meta = alg.meta_curvature_init(THETA, ALPHA)
    meta = meta._replace(hparams=meta.hparams._replace(preconditioner=(matrix,)))
    jacobian = EYE - ALPHA * matrix @ Q
    after = Q @ jacobian @ (THETA - CENTRE)
    found = slope(mo.meta_curvature(quadratic), meta)
    assert_close(found.params, jacobian.T @ after)
    assert_close(found.hparams.preconditioner[0], -ALPHA * torch.outer(after, Q @ (THETA - CENTRE)))


def test_meta_curvature_starts_as_maml() -> None:
    found = slope(mo.meta_curvature(quadratic, 3), alg.meta_curvature_init(THETA, ALPHA))
    assert_close(found.params, slope(mo.maml(quadratic, DESCENT, 3)))


def test_maml_plus_plus_weighs_the_loss_after_every_step() -> None:
    """∇_θ = Σ_j w_j (J_j…J_1)ᵀ Q (J_j…J_1)(θ−c) with J_j = I − α_j Q, and rates a step."""
    rates, weights = f64([0.3, 0.1, 0.2]), alg.multi_step_weights(3, 0.4).double()
    meta = alg.maml_plus_plus_init(THETA, 3)
    meta = meta._replace(hparams=meta.hparams._replace(lr=rates))
    task = mo.maml_plus_plus(lambda p, batch, _: quadratic(p, batch), 3)
    want, product = torch.zeros(N, dtype=torch.float64), EYE
    for j in range(3):
        product = (EYE - rates[j] * Q) @ product
        want = want + weights[j] * product.T @ Q @ product @ (THETA - CENTRE)
    assert_close(slope(lambda meta, episode: task(meta, episode, weights), meta).params, want)


def test_maml_plus_plus_of_the_last_loss_alone_is_maml_and_first_order_is_fomaml() -> None:
    meta, weights = alg.maml_plus_plus_init(THETA, 2, ALPHA), f64([0.0, 1.0])
    for order, algorithm in ((2, mo.maml), (1, mo.fomaml)):
        task = mo.maml_plus_plus(lambda p, batch, _: quadratic(p, batch), 2, order=order)  # type: ignore[arg-type]
        found = slope(lambda meta, episode, task=task: task(meta, episode, weights), meta)
        assert_close(found.params, slope(algorithm(quadratic, DESCENT, 2)))


@pytest.mark.parametrize(
    ("progress", "early"), [(0.0, 1 / 5), (0.5, 0.5 / 5), (1.0, 0.03 / 5), (9.0, 0.03 / 5)]
)
def test_multi_step_weights_are_annealed_to_the_last(progress: float, early: float) -> None:
    weights = alg.multi_step_weights(5, progress)
    assert torch.allclose(weights[:4], torch.full((4,), early))
    assert float(weights.sum()) == pytest.approx(1.0)


def test_maml_plus_plus_keeps_statistics_and_affine_weights_a_step() -> None:
    """Row j of the running statistics is of θ_j on the support, the last row of the query; and so is ψ."""
    norm = torch.nn.BatchNorm1d(2).double()
    apply, params, buffers = mo.functional(norm, batch_norm="per_step", num_steps=2)

    def loss(p: Any, batch: Tensor, psi: Any, *, buffers: Any) -> Any:
        out, buffers = apply.with_buffers({"weight": psi, "bias": p["bias"]}, buffers, batch)
        return (out**2).mean() + (out * 0.1).sum(), buffers

    theta = {"bias": params["bias"].detach()}
    meta = alg.maml_plus_plus_init(theta, 2, 0.1, params["weight"].detach())
    support, query = vector(8, 1).reshape(4, 2), vector(8, 2).reshape(4, 2) + 3
    task = mo.maml_plus_plus(loss, 2)
    live = meta.phi[0].clone().requires_grad_()
    value, moved = task(meta._replace(phi=(live,)), Episode(support, query), f64([0.0, 1.0]), buffers)
    assert_close(moved["running_mean"], torch.stack([0.1 * support.mean(0)] * 2 + [0.1 * query.mean(0)]))
    rows = torch.autograd.grad(value, live)[0].abs().sum(1)
    assert rows.shape == (3,)
    assert float(rows[2]) > 0.1


def test_cavia_in_parameter_space_is_maml_from_the_origin() -> None:
    """With ℓ(θ + c): ∇_θ = (I−αQ)Q(I−αQ)(θ−c*), as 9."""
    task = mo.cavia(lambda p, batch, c: quadratic(p + c, batch), DESCENT, THETA)
    assert_close(slope(task), INNER @ Q @ INNER @ (THETA - CENTRE))


def test_cavia_starts_at_zero_whatever_the_template() -> None:
    task = mo.cavia(lambda p, batch, c: quadratic(p + c, batch), DESCENT, 100 * THETA, 0)
    assert_close(task(THETA, EPISODE), quadratic(THETA, (Q, CENTRE)))


def test_a_warp_preconditions_the_gradient() -> None:
    """ℓ(Ωθ): Ωθ' = Ωθ − α ΩΩᵀ ∇ℓ, gradient descent in the metric ΩΩᵀ."""
    warp = positive(N, 14)
    task = mo.warpgrad(lambda p, batch, w: quadratic(w @ p, batch), DESCENT)
    start = warp @ THETA
    after = start - ALPHA * warp @ warp.T @ Q @ (start - CENTRE)
    meta = Meta(THETA, None, (warp,))
    assert_close(task(meta, EPISODE), quadratic(after, (Q, CENTRE)))
    maml = mo.maml(lambda p, batch, w: quadratic(w @ p, batch), DESCENT)
    got, want = (slope(t, Meta(THETA, DESCENT.hparams, (warp,))) for t in (task, maml))
    assert_close(got.params, want.params)
    assert_close(got.phi, want.phi)


def test_warpgrad_is_the_mean_of_single_steps_from_stopped_points() -> None:
    warp = positive(N, 14)

    def loss(p: Tensor, batch: Any, w: Tensor) -> Tensor:
        return quadratic(w @ p, batch)

    single, point, total = mo.warpgrad(loss, DESCENT), THETA, torch.zeros_like(warp)
    for _ in range(3):
        total = total + slope(single, Meta(point, None, (warp,))).phi[0] / 3
        point = point - ALPHA * warp.T @ Q @ (warp @ point - CENTRE)
    found = slope(mo.warpgrad(loss, DESCENT, 3), Meta(THETA, None, (warp,)))
    assert_close(found.phi[0], total)
    assert_close(found.params, slope(single, Meta(THETA, None, (warp,))).params / 3)


def test_judging_by_something_else() -> None:
    """query_loss_fn may return a tree, (loss, score) say."""

    def judge(p: Any, batch: Any, *rest: Any) -> Any:
        return quadratic(p, batch), p.sum()

    adapted = THETA - ALPHA * Q @ (THETA - CENTRE)
    tasks: list[tuple[Any, Any]] = [
        (mo.maml(quadratic, DESCENT, query_loss_fn=judge), THETA),
        (mo.fomaml(quadratic, DESCENT, query_loss_fn=judge), THETA),
        (mo.anil(quadratic, DESCENT, query_loss_fn=judge, head=lambda path: True), THETA),
        (mo.meta_sgd(quadratic, query_loss_fn=judge), alg.meta_sgd_init(THETA, ALPHA)),
    ]
    for task, meta in tasks:
        assert_close(task(meta, EPISODE), (quadratic(adapted, (Q, CENTRE)), adapted.sum()))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: mo.anil(quadratic, DESCENT, head=lambda path: False)(THETA, EPISODE), r"anil\(head\)"),
        (lambda: mo.boil(quadratic, DESCENT, head=lambda path: True)(THETA, EPISODE), r"boil\(head\)"),
        (lambda: mo.maml_plus_plus(quadratic, 0), r"maml_plus_plus\(num_steps\): expected an integer >= 1"),
        (lambda: mo.warpgrad(quadratic, DESCENT, 0), r"warpgrad\(num_steps\): expected an integer >= 1"),
    ],
)
def test_bad_arguments_are_named(call: Any, text: str) -> None:
    with pytest.raises(mo.errors.ArgumentError, match=text):
        call()
