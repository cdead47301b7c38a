"""Attention in primitives: softmax(q kᵀ / √E) v.

The flash and memory-efficient kernels of scaled_dot_product_attention have no double backward
(pytorch/pytorch#116350, #181177) and no forward mode (#128971).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metaopt.exact._dropout import dropout

__all__ = ["multi_head_attention_forward", "scaled_dot_product_attention"]


def _softmax(scores: Tensor) -> Tensor:
    """softmax over the last axis; a row that is masked throughout is 0, and so is its derivative."""
    masked = (scores == -math.inf).all(-1, keepdim=True)
    return torch.where(masked, 0.0, scores).softmax(-1) * ~masked


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask that is added to the scores: 0 where attention is allowed, −∞ elsewhere."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention``; in float32 for half precision, as torch's math kernel."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    half = query.dtype in (torch.float16, torch.bfloat16)
    q, k = (query.float(), key.float()) if half else (query, key)
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if attn_mask is not None:
        scores = scores + _additive(~attn_mask if attn_mask.dtype == torch.bool else attn_mask, scores)
    weights = _softmax(scores) if is_causal or attn_mask is not None else scores.softmax(-1)
    if dropout_p:
        weights = dropout(weights, dropout_p)
    return weights.to(value.dtype) @ value


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.mT if bias is None else x @ weight.mT + bias


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``F.multi_head_attention_forward``: query [target, example, E], key and value [source, example, ·]."""
    batched = query.ndim == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    length, examples, width = query.shape
    if use_separate_proj_weight:
        weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3)
    biases: Any = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (_project(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    padded = 0
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.expand(1, examples, width)])
        v = torch.cat([v, bias_v.expand(1, examples, width)])
        padded += 1

    def heads(x: Tensor) -> Tensor:  # [example, head, position, E / heads]
        return x.reshape(x.shape[0], examples, num_heads, -1).permute(1, 2, 0, 3)

    q = heads(q)
    k = heads(k) if static_k is None else static_k.unflatten(0, (examples, num_heads))
    v = heads(v) if static_v is None else static_v.unflatten(0, (examples, num_heads))
    if add_zero_attn:
        k, v = (torch.cat([x, x.new_zeros(*x.shape[:2], 1, x.shape[3])], 2) for x in (k, v))
        padded += 1
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if is_causal and key_padding_mask is None and not need_weights:  # torch drops the mask for the hint
        attn_mask = None
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if attn_mask is not None:
        mask = torch.nn.functional.pad(_additive(attn_mask, scores), (0, padded))
        scores = scores + (mask if mask.ndim == 2 else mask.unflatten(0, (examples, num_heads)))
    if key_padding_mask is not None:
        mask = torch.nn.functional.pad(_additive(key_padding_mask, scores), (0, padded))
        scores = scores + mask[:, None, None, :]
    attention = scores.softmax(-1) if need_weights else _softmax(scores)
    if training and dropout_p:
        attention = dropout(attention, dropout_p)
    out = (attention @ v).permute(2, 0, 1, 3).reshape(length, examples, -1)
    out = _project(out, out_proj_weight, out_proj_bias)
    out = out if batched else out.squeeze(1)
    if not need_weights:
        return out, None
    attention = attention.mean(1) if average_attn_weights else attention
    return out, attention if batched else attention.squeeze(0)
