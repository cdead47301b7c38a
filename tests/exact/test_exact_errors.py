"""Bad input to the inner model: one error, with the path of the module and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import metaopt as mo
from metaopt.errors import ArgumentError, StructureError, VmapError
from metaopt.exact import mapped, rewrites

F64 = torch.float64


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(2, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
        return self.encoder(packed)[1].sum()


def mapped_loss(net: nn.Module, x: Tensor, how: Any = "vmap") -> Tensor:
    apply, params, _ = mo.functional(net)
    task = mo.maml(lambda p, b: apply(p, b).square().mean(), mo.optim.sgd(0.1))
    return mo.map_tasks(task, how=how)(params, mo.Episode(x, x)).sum()


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_packed_sequences_are_refused(how: str) -> None:
    with pytest.raises(VmapError, match=r"\(pack_padded_sequence\).* at Packed\. Pass the padded tensor"):
        mapped_loss(Packed().double(), torch.randn(2, 2, 3, 2, dtype=F64), how)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_norm": 1.0}, "max_norm"),
        ({"sparse": True}, "sparse"),
        ({"scale_grad_by_freq": True}, "scale_grad"),
    ],
    ids=["max_norm", "sparse", "scale_grad_by_freq"],
)
def test_embeddings_that_write_in_place_are_refused(options: Any, word: str) -> None:
    net = nn.Sequential(nn.Sequential(nn.Embedding(4, 2, **options)))
    before = net[0][0].weight.detach().clone()
    with pytest.raises(ArgumentError, match=rf"functional\(embedding\): .*{word}.* at 0\.0\. Leave {word}"):
        mapped_loss(net, torch.randint(4, (2, 3)))
    assert torch.equal(net[0][0].weight, before)


def test_one_value_a_channel_is_refused_as_torch_refuses_it() -> None:
    apply, params, _ = mo.functional(nn.BatchNorm1d(3), batch_norm="transductive")
    with pytest.raises(ArgumentError, match=r"batch_norm\(input\): expected more than one value per channel"):
        torch.vmap(lambda x: apply(params, x))(torch.randn(2, 1, 3))


def test_integer_and_none_parameters_are_refused_by_path() -> None:
    loss = lambda p, b: p["w"].sum()
    for bad in (torch.ones(2, dtype=torch.int64), None):
        with pytest.raises(StructureError, match=r"unroll\(params\).*floating-point.*\['n'\]"):
            mo.unroll(loss, mo.optim.sgd(0.1), {"w": torch.ones(2), "n": bad}, (), 1)


def test_tracking_norms_called_without_apply_are_refused_under_vmap() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with mo.exact(), pytest.raises(VmapError, match=r"vmap\(batch_norm\).* at 1\. Pass .*with_buffers"):
        torch.vmap(net)(torch.randn(2, 4, 2))


def test_levels_and_the_log_of_rewrites() -> None:
    seen = []
    torch.vmap(lambda x: seen.append(mapped()) or x)(torch.ones(2))
    assert seen == [True]
    assert not mapped()
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    with rewrites() as made, mo.exact():
        torch.vmap(net)(torch.randn(2, 4, 2))
        net(torch.randn(4, 2))
        with torch.no_grad():
            net(torch.randn(4, 2))
    why = "its kernel's derivatives are wrong, the second under vmap, the third everywhere"
    assert made == [("1", "layer_norm", why)] * 2  # not where nothing is differentiated


def test_the_fast_path_of_transformers_is_off() -> None:
    """torch._transformer_encoder_layer_fwd has no derivative: it must not run under the mode."""
    layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True).eval()
    apply, params, _ = mo.functional(layer)
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        fast = layer(x)
        slow = apply({k: p.detach() for k, p in params.items()}, x)
    torch.testing.assert_close(slow, fast, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), rewrites() as made:
        torch.func.vjp(lambda p: apply(p, x), {k: p.detach() for k, p in params.items()})
    assert {name for _, name, _ in made} == {"multi_head_attention_forward"}


def test_rewritten_attention_equals_torchs_with_every_option() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(5, 2, 4, dtype=F64), torch.randn(6, 2, 4, dtype=F64)
    padding = torch.tensor([[False] * 5 + [True]] * 2)
    mask = torch.randn(4, 5, 6, dtype=F64)
    causal = torch.ones(5, 5).triu(1).bool()
    for options in (
        {},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"bias": False},
        {"kdim": 4},
    ):
        layer = nn.MultiheadAttention(4, 2, **options).double()
        for args, named in (
            ((x, y, y), {"key_padding_mask": padding}),
            ((x, y, y), {"attn_mask": mask, "average_attn_weights": False}),
            ((x, x, x), {"attn_mask": causal, "need_weights": False, "is_causal": True}),
            ((x[:, 0], y[:, 0], y[:, 0]), {"key_padding_mask": padding[0]}),
        ):
            expected = layer(*args, **named)
            with mo.exact(always=True):
                found = layer(*args, **named)
            torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
            assert (found[1] is None) == (expected[1] is None)
            if expected[1] is not None:
                torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)


def test_rewritten_sdpa_equals_torchs_with_every_option() -> None:
    sdpa = nn.functional.scaled_dot_product_attention
    q, k, v = (torch.randn(2, 4, 3, 6, dtype=F64) for _ in range(3))
    row = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    for named in (
        {},
        {"is_causal": True},
        {"attn_mask": row},
        {"attn_mask": torch.randn(3, 3, dtype=F64)},
        {"scale": 0.3},
    ):
        expected = sdpa(q, k, v, **named)
        with mo.exact(always=True):
            torch.testing.assert_close(sdpa(q, k, v, **named), expected, rtol=1e-10, atol=1e-10)
    expected = sdpa(q, k[:, :2], v[:, :2], enable_gqa=True)
    with mo.exact(always=True):
        torch.testing.assert_close(sdpa(q, k[:, :2], v[:, :2], enable_gqa=True), expected)
        half = sdpa(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_rewritten_weight_norm_equals_torchs(dim: int) -> None:
    v = torch.randn(4, 3, 2, dtype=F64)
    g = torch.randn([n if i == dim else 1 for i, n in enumerate(v.shape)] if dim >= 0 else [], dtype=F64)
    expected = torch._weight_norm(v, g, dim) if dim in (0, 2) else None
    with mo.exact():
        found = torch._weight_norm(v, g, dim)
    axes = [i for i in range(3) if i != dim] if dim >= 0 else [0, 1, 2]
    by_hand = v * g / v.square().sum(axes, keepdim=dim >= 0).sqrt()
    torch.testing.assert_close(found, by_hand)
    if expected is not None:
        torch.testing.assert_close(found, expected)
