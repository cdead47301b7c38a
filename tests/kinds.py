"""The module kinds that people meta-learn, each a tiny float64 net: the rows of the exactness tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

TASKS, BATCH = 3, 4


class Kind(NamedTuple):
    """``make()`` gives the layer; ``shape`` is one example's input; ``batch_norm`` functional's mode."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_norm: Any = None
    tokens: int = 0  # integer inputs below this number


class Net(nn.Module):
    """layer → tanh → Linear: what goes in is scaled by a parameter, so that it is differentiated too."""

    def __init__(self, kind: Kind):
        super().__init__()
        self.scale = None if kind.tokens else nn.Parameter(torch.ones(kind.shape))
        self.layer = kind.make()
        self.train(self.layer.training)
        with torch.no_grad():
            width = self.features(data(kind, 2)[0]).shape[1]
        self.head = nn.Linear(width, 2)

    def features(self, x: Tensor) -> Tensor:
        out = self.layer(x if self.scale is None else x * self.scale)
        while isinstance(out, tuple):
            out = out[0]
        return out.flatten(1).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Fn(nn.Module):
    """A function with an inner module, for what is no single layer."""

    def __init__(self, fn: Callable[..., Tensor], *modules: nn.Module):
        super().__init__()
        self.fn = fn
        self.inner = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, *self.inner)


def data(kind: Kind, *lead: int) -> tuple[Tensor, Tensor]:
    """One batch (x, y) with these leading axes."""
    if kind.tokens:
        x = torch.randint(kind.tokens, (*lead, *kind.shape))
    else:
        x = torch.randn(*lead, *kind.shape, dtype=torch.float64)
    return x, torch.randn(*lead, 2, dtype=torch.float64)


def build(kind: Kind, seed: int = 0) -> tuple[nn.Module, Any]:
    """The net, its parameters and running statistics away from their first values, and an episode stack."""
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        net = Net(kind)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for name, b in net.named_buffers():
            if "running" in name:
                b.add_(0.2 * torch.rand_like(b))
    episodes = (data(kind, TASKS, BATCH), data(kind, TASKS, BATCH))
    return net, episodes


def frozen(module: nn.Module, *names: str) -> nn.Module:
    for name, p in module.named_parameters():
        if name in names:
            p.requires_grad_(False)
    return module


def hooked() -> nn.Module:
    layer = nn.Linear(3, 4)
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    layer.register_forward_hook(lambda module, args, out: out + out.sin())
    return layer


def twice() -> nn.Module:
    shared = nn.Linear(3, 3)
    return nn.Sequential(shared, nn.LayerNorm(3), nn.Tanh(), shared)


def tied() -> nn.Module:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b)


def attend(**options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        def fn(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (2, 2)).transpose(1, 2) for f in (q, k, v))
            return nn.functional.scaled_dot_product_attention(q, k, v, **options)

        return Fn(fn, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))

    return make


def self_attention(need_weights: bool = True, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        return Fn(lambda x, m: m(x, x, x, need_weights=need_weights)[0], attention)

    return make


def cross_attention() -> nn.Module:
    attention = nn.MultiheadAttention(4, 2, batch_first=True, kdim=3, vdim=2, add_bias_kv=True)
    mask = torch.tensor([[False, False, True]])

    def fn(x: Tensor, m: nn.Module) -> Tensor:
        padding = mask.expand(x.shape[0], 3)
        return m(x, x[..., :3], x[..., :2], key_padding_mask=padding, average_attn_weights=False)[0]

    return Fn(fn, attention)


def cell(make: Callable[[int, int], nn.Module]) -> Callable[[], nn.Module]:
    def run(x: Tensor, layer: nn.Module) -> Tensor:
        h = None
        for t in range(x.shape[1]):
            h = layer(x[:, t], h)
        return h[0] if isinstance(h, tuple) else h

    return lambda: Fn(run, make(2, 3))


KINDS: dict[str, Kind] = {
    "linear": Kind(lambda: nn.Linear(3, 4), (3,)),
    "bilinear": Kind(lambda: Fn(lambda x, m: m(x, x), nn.Bilinear(3, 3, 2)), (3,)),
    "conv1d": Kind(lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 5)),
    "conv2d": Kind(lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 4, 4)),
    "conv2d groups circular": Kind(
        lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2, padding_mode="circular"), (2, 4, 4)
    ),
    "conv3d": Kind(lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "conv transpose1d": Kind(lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 4)),
    "conv transpose2d": Kind(lambda: nn.ConvTranspose2d(2, 3, 2), (2, 3, 3)),
    "conv transpose3d": Kind(lambda: nn.ConvTranspose3d(1, 2, 2), (1, 2, 2, 2)),
    "layer norm": Kind(lambda: nn.Sequential(nn.LayerNorm(4), nn.Tanh(), nn.LayerNorm(4)), (4,)),
    "layer norm 2 axes": Kind(lambda: nn.LayerNorm((2, 3)), (2, 3)),
    "layer norm bare": Kind(lambda: nn.LayerNorm(4, elementwise_affine=False), (4,)),
    "layer norm no bias": Kind(lambda: nn.LayerNorm(4, bias=False), (4,)),
    "group norm": Kind(lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Tanh(), nn.GroupNorm(1, 4)), (4, 3)),
    "rms norm": Kind(lambda: nn.Sequential(nn.RMSNorm(4), nn.Tanh(), nn.RMSNorm(4)), (4,)),
    "local response norm": Kind(lambda: nn.LocalResponseNorm(2), (4, 3)),
    "instance norm1d": Kind(lambda: nn.InstanceNorm1d(2, affine=True), (2, 4)),
    "instance norm2d": Kind(lambda: nn.InstanceNorm2d(2, affine=True), (2, 3, 3)),
    "instance norm3d": Kind(lambda: nn.InstanceNorm3d(2, affine=True), (2, 2, 2, 2)),
    "instance norm bare": Kind(lambda: nn.InstanceNorm1d(2), (2, 4)),
    "instance norm frozen": Kind(
        lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True), (2, 4), "frozen"
    ),
    "instance norm transductive": Kind(
        lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True), (2, 4), "transductive"
    ),
    "batch norm1d transductive": Kind(
        lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3)), (3,), "transductive"
    ),
    "batch norm1d time": Kind(lambda: nn.BatchNorm1d(2), (2, 3), "transductive"),
    "batch norm2d transductive": Kind(lambda: nn.BatchNorm2d(2), (2, 3, 3), "transductive"),
    "batch norm3d transductive": Kind(lambda: nn.BatchNorm3d(2), (2, 2, 2, 2), "transductive"),
    "batch norm no tracking": Kind(lambda: nn.BatchNorm2d(2, track_running_stats=False), (2, 3, 3)),
    "batch norm bare": Kind(lambda: nn.BatchNorm1d(3, affine=False), (3,), "transductive"),
    "batch norm1d frozen": Kind(lambda: nn.BatchNorm1d(3), (3,), "frozen"),
    "batch norm2d frozen": Kind(lambda: nn.BatchNorm2d(2), (2, 3, 3), "frozen"),
    "batch norm eval": Kind(lambda: nn.BatchNorm1d(3).eval(), (3,)),
    "max pool1d": Kind(lambda: nn.MaxPool1d(2), (2, 4)),
    "max pool2d": Kind(lambda: nn.MaxPool2d(2, 1), (1, 3, 3)),
    "max pool3d": Kind(lambda: nn.MaxPool3d(2), (1, 2, 2, 4)),
    "avg pool1d": Kind(lambda: nn.AvgPool1d(2), (2, 4)),
    "avg pool2d": Kind(lambda: nn.AvgPool2d(2, 1), (1, 3, 3)),
    "avg pool3d": Kind(lambda: nn.AvgPool3d(2), (1, 2, 2, 4)),
    "lp pool1d": Kind(lambda: nn.LPPool1d(2, 2), (2, 4)),
    "lp pool2d": Kind(lambda: nn.LPPool2d(2, 2), (1, 4, 4)),
    "adaptive avg pool1d": Kind(lambda: nn.AdaptiveAvgPool1d(2), (2, 5)),
    "adaptive avg pool2d": Kind(lambda: nn.AdaptiveAvgPool2d(2), (1, 3, 3)),
    "adaptive avg pool3d": Kind(lambda: nn.AdaptiveAvgPool3d(2), (1, 2, 3, 3)),
    "adaptive max pool1d": Kind(lambda: nn.AdaptiveMaxPool1d(2), (2, 5)),
    "adaptive max pool2d": Kind(lambda: nn.AdaptiveMaxPool2d(2), (1, 3, 3)),
    "adaptive max pool3d": Kind(lambda: nn.AdaptiveMaxPool3d(2), (1, 2, 3, 3)),
    "fractional max pool2d": Kind(lambda: nn.FractionalMaxPool2d(2, 2), (1, 4, 4)),
    "fractional max pool3d": Kind(lambda: nn.FractionalMaxPool3d(2, 2), (1, 4, 4, 4)),
    "max unpool": Kind(lambda: Fn(lambda x: nn.functional.max_unpool1d(
        *nn.functional.max_pool1d(x, 2, return_indices=True), 2)), (2, 4)),
    "dropout": Kind(lambda: nn.Dropout(0.4), (6,)),
    "dropout1d": Kind(lambda: nn.Dropout1d(0.4), (4, 2)),
    "dropout2d": Kind(lambda: nn.Dropout2d(0.4), (4, 2, 2)),
    "dropout3d": Kind(lambda: nn.Dropout3d(0.4), (4, 1, 2, 2)),
    "alpha dropout": Kind(lambda: nn.AlphaDropout(0.4), (6,)),
    "feature alpha dropout": Kind(lambda: nn.FeatureAlphaDropout(0.4), (4, 2)),
    "rrelu": Kind(lambda: nn.RReLU(), (6,)),
    "gaussian noise": Kind(lambda: Fn(lambda x: x + torch.randn_like(x)), (6,)),
    "gumbel softmax": Kind(lambda: Fn(lambda x: nn.functional.gumbel_softmax(x)), (6,)),
    "embedding": Kind(lambda: nn.Embedding(5, 3), (2,), tokens=5),
    "embedding padding": Kind(lambda: nn.Embedding(5, 3, padding_idx=1), (3,), tokens=5),
    "rnn": Kind(lambda: nn.RNN(2, 3, batch_first=True), (3, 2)),
    "rnn relu": Kind(lambda: nn.RNN(2, 3, nonlinearity="relu"), (3, 2)),
    "gru": Kind(lambda: nn.GRU(2, 3, batch_first=True), (3, 2)),
    "gru deep": Kind(lambda: nn.GRU(2, 2, num_layers=2, bidirectional=True, batch_first=True), (2, 2)),
    "gru dropout": Kind(lambda: nn.GRU(2, 2, num_layers=2, dropout=0.5, batch_first=True), (2, 2)),
    "gru no bias": Kind(lambda: nn.GRU(2, 3, bias=False), (3, 2)),
    "lstm": Kind(lambda: nn.LSTM(2, 3, batch_first=True), (3, 2)),
    "lstm projected": Kind(lambda: nn.LSTM(2, 3, proj_size=2, batch_first=True), (3, 2)),
    "lstm deep": Kind(lambda: nn.LSTM(2, 2, num_layers=2, bidirectional=True), (2, 2)),
    "rnn cell": Kind(cell(nn.RNNCell), (3, 2)),
    "gru cell": Kind(cell(nn.GRUCell), (3, 2)),
    "lstm cell": Kind(cell(nn.LSTMCell), (3, 2)),
    "attention": Kind(self_attention(), (3, 4)),
    "attention no weights": Kind(self_attention(need_weights=False), (3, 4)),
    "attention dropout": Kind(self_attention(dropout=0.3), (3, 4)),
    "attention cross": Kind(cross_attention, (3, 4)),
    "attention zero": Kind(self_attention(add_zero_attn=True, bias=False), (3, 4)),
    "transformer encoder layer": Kind(
        lambda: nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True), (3, 4)
    ),
    "transformer encoder dropout": Kind(
        lambda: nn.TransformerEncoderLayer(4, 2, 4, dropout=0.2, batch_first=True, norm_first=True), (3, 4)
    ),
    "transformer encoder eval": Kind(
        lambda: nn.TransformerEncoderLayer(4, 2, 4, batch_first=True).eval(), (3, 4)
    ),
    "transformer decoder layer": Kind(
        lambda: Fn(lambda x, m: m(x, x), nn.TransformerDecoderLayer(4, 1, 4, 0.0, batch_first=True)), (2, 4)
    ),
    "sdpa": Kind(attend(), (3, 4)),
    "sdpa causal": Kind(attend(is_causal=True), (3, 4)),
    "sdpa mask": Kind(attend(attn_mask=torch.ones(3, 3).tril().bool(), scale=0.7), (3, 4)),
    "sdpa dropout": Kind(attend(dropout_p=0.3), (3, 4)),
    "weight norm": Kind(lambda: parametrizations.weight_norm(nn.Linear(3, 4)), (3,)),
    "spectral norm": Kind(lambda: parametrizations.spectral_norm(nn.Linear(3, 4)), (3,)),
    "spectral norm eval": Kind(lambda: parametrizations.spectral_norm(nn.Linear(3, 4)).eval(), (3,)),
    "spectral norm conv": Kind(lambda: parametrizations.spectral_norm(nn.Conv1d(2, 3, 2)), (2, 4)),
    "orthogonal": Kind(lambda: parametrizations.orthogonal(nn.Linear(3, 3)), (3,)),
    "tied": Kind(tied, (3,)),
    "registered twice": Kind(twice, (3,)),
    "frozen": Kind(lambda: frozen(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "0.weight"), (3,)),
    "hooks": Kind(hooked, (3,)),
    "prelu": Kind(lambda: nn.PReLU(), (6,)),
    "gelu softmax": Kind(lambda: nn.Sequential(nn.GELU(), nn.Softmax(-1)), (6,)),
    "glu": Kind(lambda: nn.GLU(), (6,)),
    "upsample": Kind(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 2)),
    "pixel shuffle": Kind(lambda: nn.PixelShuffle(2), (4, 2, 2)),
    "unfold": Kind(lambda: nn.Unfold(2), (1, 3, 3)),
}  # fmt: skip
