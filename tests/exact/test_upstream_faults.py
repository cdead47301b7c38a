"""Every fault of torch that is worked around here, as it stands: a test that fails is a work-around to drop.

The pytorch issue is named at each; where there is none, the fault was found by the exactness table.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kinds import KINDS, build
from torch import Tensor, nn
from torch.nn import functional as F

import metaopt as mo
from metaopt.errors import DerivativeError
from metaopt.exact._refused import NO_DOUBLE_BACKWARD

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def bare_gradients(name: str, mapped: bool) -> list[Tensor]:
    """One step of MAML with torch alone: functional_call, grad, vmap or a loop, and autograd outside."""
    kind = KINDS[name]
    net, ((xs, ys), (xq, yq)) = build(kind)
    params = dict(net.named_parameters())
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and kind.batch_norm == "transductive":
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return (torch.func.functional_call(net, p, (x,)) - y).square().mean()

    def task(*batch: Tensor) -> Tensor:
        grads = torch.func.grad(loss)(params, *batch[:2])
        return loss({k: p - 0.3 * grads[k] for k, p in params.items()}, *batch[2:])

    batch = (xs, ys, xq, yq)
    losses = (
        torch.vmap(task)(*batch) if mapped else torch.stack([task(*row) for row in zip(*batch, strict=True)])
    )
    return list(torch.autograd.grad(losses.sum(), list(params.values())))


def far(a: list[Tensor], b: list[Tensor]) -> bool:
    return any(not torch.allclose(x, y, rtol=1e-3, atol=1e-6) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "layer norm",  # pytorch/functorch#534
        "batch norm2d transductive",  # pytorch/functorch#534, pytorch/pytorch#196699
        "instance norm1d",  # pytorch/functorch#534
        "embedding padding",
    ],
)
def test_second_order_under_vmap_is_silently_wrong(name: str) -> None:
    assert far(bare_gradients(name, mapped=True), bare_gradients(name, mapped=False))


def test_what_is_right_in_torch_is_not_rewritten() -> None:
    for name in ("group norm", "rms norm", "batch norm eval", "linear"):
        assert not far(bare_gradients(name, mapped=True), bare_gradients(name, mapped=False))


def test_weight_norm_has_a_wrong_double_backward() -> None:
    v = torch.randn(4, 3, dtype=F64, requires_grad=True)
    g = torch.randn(4, 1, dtype=F64, requires_grad=True)

    def second(f: Any) -> Tensor:
        first = torch.autograd.grad(f(v, g, 0).sin().sum(), v, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), v)[0]

    assert not torch.allclose(
        second(torch._weight_norm), second(lambda v, g, _: v * g / v.norm(dim=1, keepdim=True))
    )


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "rnn cell", "gru cell", "lstm cell"])
def test_recurrent_kernels_fail_under_vmap(name: str) -> None:
    """pytorch/pytorch#105982, #134606; cells: #112459."""
    with pytest.raises(
        RuntimeError, match=r"doesn't match the broadcast shape|Batching rule not implemented"
    ):
        bare_gradients(name, mapped=True)


@pytest.mark.parametrize("name", ["sdpa", "attention no weights", "transformer encoder layer"])
def test_attention_has_no_double_backward(name: str) -> None:
    """pytorch/pytorch#116350, #181177."""
    with pytest.raises(RuntimeError, match=r"derivative for aten::_scaled_dot_product.* is not implemented"):
        bare_gradients(name, mapped=False)


def test_spectral_norm_fails_under_vmap() -> None:
    with pytest.raises(RuntimeError, match=r"Batching rule not implemented for aten::div.out"):
        bare_gradients("spectral norm", mapped=True)


def test_rrelu_has_no_batching_rule() -> None:
    with pytest.raises(RuntimeError, match="rrelu"):
        torch.vmap(lambda x: F.rrelu(x, training=True), randomness="different")(torch.randn(2, 3))


def test_bilinear_has_no_batching_rule() -> None:
    torch._C._functorch._set_vmap_fallback_enabled(False)  # or torch maps it by a slow loop
    try:
        with pytest.raises(RuntimeError, match="vmap fallback"):
            bare_gradients("bilinear", mapped=True)
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)


def test_functional_call_corrupts_a_module_that_is_registered_twice() -> None:
    """pytorch/pytorch#164759."""
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, shared)
    values = {k: v.detach().clone() for k, v in net.named_parameters()}
    torch.func.functional_call(net, values, (torch.ones(1, 2),))
    assert not isinstance(shared.weight, nn.Parameter)


X, Y = torch.randn(3, 4, dtype=F64), torch.tensor([0, 3, 1])
# function -> a scalar of it, differentiable in x
TWICE: dict[Any, Any] = {
    torch.cdist: lambda x: torch.cdist(x, x.flip(0) + 1).sum(),
    torch.pdist: lambda x: torch.pdist(x).sum(),
    F.pdist: lambda x: F.pdist(x).sum(),
    F.embedding_bag: lambda x: F.embedding_bag(torch.tensor([[0, 1]]), x).sin().sum(),
    torch.embedding_bag: lambda x: torch.embedding_bag(
        x, torch.tensor([0, 1]), torch.tensor([0])
    )[0].sin().sum(),
    F.multi_margin_loss: lambda x: F.multi_margin_loss(x.sin(), Y),
    F.multilabel_margin_loss: lambda x: F.multilabel_margin_loss(
        x.sin(), torch.tensor([[0, 1, -1, 0]] * 3)
    ),
    F.ctc_loss: lambda x: F.ctc_loss(
        x.log_softmax(-1).unsqueeze(1), torch.tensor([[1, 2]]), torch.tensor([3]), torch.tensor([2])
    ),
    torch.ctc_loss: lambda x: torch.ctc_loss(
        x.log_softmax(-1).unsqueeze(1), torch.tensor([[1, 2]]), torch.tensor([3]), torch.tensor([2])
    ),
}  # fmt: skip


class Loss(nn.Module):
    def __init__(self, fn: Any):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


class Model(nn.Module):
    def __init__(self, fn: Any):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=F64))
        self.readout = nn.ModuleDict({"loss": Loss(fn)})

    def forward(self, x: Tensor) -> Tensor:
        return self.readout["loss"](x * self.scale)


def test_every_refused_function_has_a_row() -> None:
    assert TWICE.keys() == NO_DOUBLE_BACKWARD.keys()


@pytest.mark.parametrize("fn", TWICE, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_torch_has_no_second_derivative(fn: Any) -> None:
    """pytorch/pytorch#83510 (cdist), #86819 (embedding_bag)."""
    x = X.clone().requires_grad_()
    f = lambda x: torch.autograd.grad(TWICE[fn](x), x, create_graph=True)[0].square().sum()
    with pytest.raises((RuntimeError, NotImplementedError), match=r"derivative for|not implemented"):
        torch.autograd.grad(f(x), x)


@pytest.mark.parametrize("fn", TWICE, ids=lambda f: f"{f.__module__}.{f.__name__}")
@pytest.mark.parametrize("how", ["loop", "vmap"])
def test_it_is_refused_with_the_path_of_the_module(fn: Any, how: str) -> None:
    apply, params, _ = mo.functional(Model(TWICE[fn]))
    episodes = mo.Episode(X.expand(2, 3, 4), X.expand(2, 3, 4))
    task = mo.maml(lambda p, x: apply(p, x), mo.optim.sgd(0.1))
    with pytest.raises(
        DerivativeError, match=rf"inner_step\({fn.__name__}\).* at readout\.loss\. \S+"
    ) as caught:
        mo.map_tasks(task, how=how)(params, episodes)
    assert NO_DOUBLE_BACKWARD[fn] in str(caught.value)


@pytest.mark.parametrize("fn", [torch.cdist, F.multi_margin_loss])
def test_first_order_and_the_query_loss_may_use_it(fn: Any) -> None:
    apply, params, _ = mo.functional(Model(TWICE[fn]))
    episode = mo.Episode(X, X)
    mo.maml(lambda p, x: apply(p, x), mo.optim.sgd(0.1), order=1)(params, episode).backward()
    assert params["scale"].grad is not None
    smooth = lambda p, x: (p["scale"] * x).square().sum()
    mo.maml(smooth, mo.optim.sgd(0.1), query_loss_fn=lambda p, x: apply(p, x))(params, episode).backward()


def test_cdist_by_matrix_products_is_let_through_and_right() -> None:
    f = lambda x: torch.cdist(x, x.flip(0) + 1, compute_mode="use_mm_for_euclid_dist").sum()
    x = X.clone().requires_grad_()
    by_hand = lambda x: (x[:, None] - (x.flip(0) + 1)).square().sum(-1).sqrt().sum()
    second = lambda f: torch.autograd.grad(torch.func.grad(f)(x).square().sum(), x)[0]
    with mo.exact():
        torch.testing.assert_close(second(f), second(by_hand), rtol=1e-7, atol=1e-7)
