"""DARTS: the second-order term, the search, and the genotype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt as mo
from metaopt.errors import ArgumentError


class Scaled(nn.Module):
    """A function after a learned linear map."""

    def __init__(self, fn: Any):
        super().__init__()
        self.fn, self.linear = fn, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.linear(x))


OPERATIONS = {
    "none": mo.Zero,
    "skip": nn.Identity,
    "sine": lambda: Scaled(torch.sin),
    "tanh": lambda: Scaled(torch.tanh),
}


def setting(num_nodes: int = 2) -> tuple[mo.Cell, Any, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    cell = mo.Cell(OPERATIONS, num_nodes).double()
    apply, params, _ = mo.functional(cell)

    def loss_fn(params: Any, batch: Any, alphas: Tensor) -> Tensor:
        x, y = batch
        return (apply(params, x, alphas) - y).square().mean()

    alphas = 0.1 * torch.randn(len(cell.edges), len(OPERATIONS), dtype=torch.float64)
    return cell, loss_fn, mo.tree.detach(params), alphas


def batch(seed: int, n: int = 6, width: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda k: torch.randn(n, k, generator=g, dtype=torch.float64)
    return draw(3), draw(width)


@pytest.mark.parametrize("order", [1, 2])
def test_the_gradient_is_that_of_finite_differences(order: Any) -> None:
    _, loss_fn, w, alphas = setting()
    train, valid, xi = batch(1), batch(2), 0.3

    def value(alphas: Tensor) -> Tensor:
        grads = torch.func.grad(loss_fn)(w, train, alphas)
        ahead = mo.tree.sub(w, mo.tree.scale(grads, xi)) if order == 2 else w
        return loss_fn(ahead, valid, alphas)

    found, loss = mo.darts_gradient(loss_fn, w, alphas, train, valid, xi, order)
    torch.testing.assert_close(loss, value(alphas))
    for i in range(alphas.numel()):
        e = torch.zeros(alphas.numel(), dtype=torch.float64)
        e[i] = 1e-6
        e = e.reshape(alphas.shape)
        slope = (value(alphas + e) - value(alphas - e)) / 2e-6
        assert found.flatten()[i].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-9)


def test_the_papers_finite_difference_of_the_second_term() -> None:
    """Equation 8: (∇_α L_train(w⁺) − ∇_α L_train(w⁻)) / 2ε with w± = w ± ε∇_{w'}L_valid."""
    _, loss_fn, w, alphas = setting()
    train, valid, xi = batch(1), batch(2), 0.3
    ahead = mo.tree.sub(w, mo.tree.scale(torch.func.grad(loss_fn)(w, train, alphas), xi))
    direct, v = (torch.func.grad(loss_fn, k)(ahead, valid, alphas) for k in (2, 0))
    eps = 1e-5 / mo.tree.global_norm(v)
    plus, minus = (
        torch.func.grad(loss_fn, 2)(mo.tree.add(w, mo.tree.scale(v, s * eps)), train, alphas) for s in (1, -1)
    )
    expected = direct - xi * (plus - minus) / (2 * eps)
    found, _ = mo.darts_gradient(loss_fn, w, alphas, train, valid, xi)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    first, _ = mo.darts_gradient(loss_fn, w, alphas, train, valid, xi, 1)
    assert (first - found).abs().max() > 1e-3, "the second term must count in this case"


def test_the_gradient_maps_over_tasks() -> None:
    _, loss_fn, w, alphas = setting()
    trains, valids = (mo.tree.stack([batch(s) for s in some]) for some in ((1, 2), (3, 4)))
    gradient = lambda alphas, both: mo.darts_gradient(loss_fn, w, alphas, *both, 0.3)[0]
    mapped, looped = (mo.map_tasks(gradient, how=how)(alphas, (trains, valids)) for how in ("vmap", "loop"))
    torch.testing.assert_close(mapped, looped, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
def test_finds_the_right_operation(order: Any) -> None:
    """Data made by sin of a linear map far outside [−1, 1]: neither tanh nor the identity can follow."""
    cell, loss_fn, w, alphas = setting(1)
    matrix = 2.5 * torch.eye(3, dtype=torch.float64)

    def data(seed: int) -> tuple[Tensor, Tensor]:
        x, _ = batch(seed, 80)
        return x, (x @ matrix).sin()

    with torch.no_grad():
        for k in ("0.2", "0.3"):  # both start near the true map, so that the form alone decides
            w[f"mixed.{k}.linear.weight"] = 0.9 * matrix
    opt, alphas_opt = mo.optim.sgd(0.05, momentum=0.9), mo.optim.adam(0.05)
    search = mo.Search(w, opt.init(w), 0 * alphas, alphas_opt.init(alphas))
    for _ in range(60):
        search, loss = mo.darts(loss_fn, opt, alphas_opt, search, data(1), data(2), order=order)
    assert mo.genotype(cell, search.alphas) == mo.Genotype(((("sine", 0),),))
    assert not loss.requires_grad


def test_the_genotype_keeps_the_two_strongest_edges_and_never_none() -> None:
    cell = mo.Cell(OPERATIONS, num_nodes=2, num_inputs=2)
    assert cell.edges == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    alphas = torch.zeros(5, 4)
    alphas[0, 1] = 2.0
    alphas[1, 3] = 4.0
    alphas[2] = torch.tensor([9.0, 0.0, 1.0, 0.0])  # strong in none: weak as an edge
    alphas[3, 2] = 3.0
    alphas[4, 2] = 1.0
    expected = mo.Genotype(((("tanh", 1), ("skip", 0)), (("sine", 1), ("sine", 2))))
    assert mo.genotype(cell, alphas) == expected


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"Cell\(operations\): expected an operation other than 'none'"):
        mo.Cell({"none": mo.Zero}, 1)
    with pytest.raises(ArgumentError, match=r"Cell\(num_nodes\)"):
        mo.Cell(OPERATIONS, 0)
    with pytest.raises(ArgumentError, match=r"genotype\(alphas\): expected shape \[3, 4\], got \[3, 2\]"):
        mo.genotype(mo.Cell(OPERATIONS, 2), torch.zeros(3, 2))
