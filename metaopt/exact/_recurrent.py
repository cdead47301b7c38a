"""RNN, GRU and LSTM in primitives.

torch's kernels accumulate in place into tensors that are not mapped, so that they fail under ``vmap``
(pytorch/pytorch#105982), cuDNN's have no double backward, and oneDNN's LSTM has a slow one: two derivatives
of it take 1.1 to 1.3 times as long as those of the primitives, which lose by far where one is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from metaopt.errors import VmapError
from metaopt.exact._dropout import dropout
from metaopt.exact._levels import calling_module

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn_relu", "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell"]

Carry = tuple[Tensor, ...]
Gates = Callable[[Tensor, Tensor, Carry], Carry]  # (gates of x, gates of h, carry) -> carry


def refuse_packing(*_: Any, **__: Any) -> Any:
    """Packing reads memory that torch.func's tensors do not show, and lengths that differ by task."""
    raise VmapError(
        "inner_step(pack_padded_sequence)",
        "a padded batch",
        "a PackedSequence",
        at=calling_module() or "the loss",
        remedy="Pass the padded tensor, and mask the loss.",
    )


def _rnn(act: Callable[[Tensor], Tensor]) -> Gates:
    """h' = act(x̂ + ĥ)."""
    return lambda xs, hs, carry: (act(xs + hs),)


def _gru(xs: Tensor, hs: Tensor, carry: Carry) -> Carry:
    """r = σ(x̂_r + ĥ_r), z = σ(x̂_z + ĥ_z), n = tanh(x̂_n + r ĥ_n), h' = n + z (h − n)."""
    (xr, xz, xn), (hr, hz, hn) = xs.chunk(3, -1), hs.chunk(3, -1)
    r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    n = torch.tanh(xn + r * hn)
    return (n + z * (carry[0] - n),)


def _lstm(xs: Tensor, hs: Tensor, carry: Carry) -> Carry:
    """i, f, g, o = σ, σ, tanh, σ of x̂ + ĥ;  c' = f c + i g,  h' = o tanh(c')."""
    i, f, g, o = (xs + hs).chunk(4, -1)
    c = torch.sigmoid(f) * carry[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _direction(
    gates: Gates, xs: Tensor, carry: Carry, weights: Sequence[Tensor], biased: bool, reverse: bool
) -> tuple[Tensor, Carry]:
    """One layer in one direction over [time, example, ...]; weights as torch lays them out."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = (rest.pop(0), rest.pop(0)) if biased else (None, None)
    project = rest.pop() if rest else None
    inputs = linear(xs, w_ih, b_ih).unbind(0)
    outputs = []
    for x in reversed(inputs) if reverse else inputs:
        carry = gates(x, linear(carry[0], w_hh, b_hh), carry)
        if project is not None:
            carry = (carry[0] @ project.mT, *carry[1:])
        outputs.append(carry[0])
    return torch.stack(outputs[::-1] if reverse else outputs), carry


def _layers(gates: Gates) -> Callable[..., tuple[Tensor, ...]]:
    """torch's recurrent signature, over all layers and directions."""

    def run(
        input: Tensor,
        hx: Any,
        weights: Any,
        biased: bool,
        num_layers: int,
        p: float,
        training: bool,
        bidirectional: bool,
        batch_first: bool = False,
    ) -> tuple[Tensor, ...]:
        if isinstance(hx, Tensor) and not hx.is_floating_point():  # the batch sizes of a PackedSequence
            refuse_packing()
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        xs = input.transpose(0, 1) if batch_first else input
        directions = 2 if bidirectional else 1
        each = len(weights) // (num_layers * directions)
        last: list[Carry] = []
        for layer in range(num_layers):
            outputs = []
            for reverse in range(directions):
                k = layer * directions + reverse
                carry = tuple(s[k] for s in state)
                some = weights[k * each : (k + 1) * each]
                ys, carry = _direction(gates, xs, carry, some, biased, bool(reverse))
                outputs.append(ys)
                last.append(carry)
            xs = torch.cat(outputs, -1)
            if p and training and layer < num_layers - 1:
                xs = dropout(xs, p)
        output = xs.transpose(0, 1) if batch_first else xs
        return output, *(torch.stack(column) for column in zip(*last, strict=True))

    return run


def _cell(gates: Gates) -> Callable[..., Any]:
    """torch's signature of a cell."""

    def run(input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
        carry = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        out = gates(linear(input, w_ih, b_ih), linear(carry[0], w_hh, b_hh), carry)
        return out if len(out) > 1 else out[0]

    return run


rnn_tanh, rnn_relu = _layers(_rnn(torch.tanh)), _layers(_rnn(torch.relu))
gru, lstm = _layers(_gru), _layers(_lstm)
rnn_tanh_cell, rnn_relu_cell = _cell(_rnn(torch.tanh)), _cell(_rnn(torch.relu))
gru_cell, lstm_cell = _cell(_gru), _cell(_lstm)
