"""Through the door and through the pure core: the same meta-gradient, for every kind of module."""

from __future__ import annotations

import pytest
import torch
from kinds import KINDS, build, data
from torch import Tensor, nn

import metaopt as mo
from metaopt.exact import rewrites
from metaopt.stateful import innerloop_ctx

# what draws does so in another order; a power iteration goes on from call to call, as torch's does
UNLIKE = ("dropout", "rrelu", "noise", "gumbel", "fractional", "spectral norm")


def target_loss(out: Tensor, y: Tensor) -> Tensor:
    return (out - y).square().mean()


@pytest.mark.parametrize(
    "name", [k for k in KINDS if not any(word in k for word in UNLIKE) or k.endswith("eval")]
)
def test_meta_gradient_is_the_cores(name: str) -> None:
    kind = KINDS[name]
    model, _ = build(kind)
    if kind.batch_norm == "frozen":
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase):
                layer.eval()
    torch.manual_seed(3)
    support, query = data(kind, 4), data(kind, 4)
    apply, params, _ = mo.functional(model)
    task_loss = mo.maml(lambda p, b: target_loss(apply(p, b[0]), b[1]), mo.optim.sgd(lr=0.1), num_steps=2)
    expected = torch.autograd.grad(
        task_loss(params, mo.Episode(support, query)), list(params.values()), allow_unused=True
    )
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with innerloop_ctx(model, opt) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(target_loss(fmodel(support[0]), support[1]))
        start = [p for p in fmodel.parameters(time=0) if p.requires_grad]
        found = torch.autograd.grad(target_loss(fmodel(query[0]), query[1]), start, allow_unused=True)
    for p, g, e in zip(start, found, expected, strict=True):
        g, e = (torch.zeros_like(p) if x is None else x for x in (g, e))
        torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("order", "packed", "rewritten"), [(2, False, True), (1, False, False), (2, True, False)]
)
def test_an_lstm_is_rewritten_where_its_gradient_is_differentiated(
    order: int, packed: bool, rewritten: bool
) -> None:
    """oneDNN's LSTM is the faster one for a single derivative, the primitives for two."""
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    found = {}
    for dtype in (torch.float32, torch.float64):
        model, x = model.to(dtype), x.to(dtype)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        with rewrites() as log, innerloop_ctx(model, opt, order=order) as (fmodel, diffopt):
            batch = nn.utils.rnn.pack_padded_sequence(x, [5, 3]) if packed else x
            for _ in range(2):
                diffopt.step(fmodel(batch)[1][0].square().sum())
            found[dtype] = torch.autograd.grad(fmodel(batch)[1][0].sum(), fmodel.parameters(time=0))
        assert ("lstm" in {name for _, name, _ in log}) == (rewritten and dtype is torch.float32)
    for single, double in zip(*found.values(), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
