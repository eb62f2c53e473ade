"""The formulas of a Llama layer with their gradients written out, for bf16 and fp32 on a CPU.

Each class is a `torch.autograd.Function`. Against autograd over the stock modules they save passes over memory: no
fp32 copies are kept, low-rank products of one input are taken together, scores and logits are never stored in fp32.
`tests/engine/test_batching.py` compares every one of them with the stock modules.

Letters: N tree nodes, D hidden size, H heads, d head size, K blocks of Q queries and S keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from problama_utils.engine.tree import AttentionLevel

HEAD_ROWS = 64  # rows of logits at a time: 64 × 49,152 fp32 values are 12 MB, which a level-3 cache still holds


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):
        x, weight, scale = ctx.saved_tensors
        unit = x * scale  # promoted to fp32
        inner = (grad * weight).float()
        inner -= unit.mul_((inner * unit).mean(-1, keepdim=True))
        return inner.mul_(scale).to(x.dtype), None, None


class LoraLinears(torch.autograd.Function):
    """y_i = W_i x + s_i B_i (A_i x); the A_i x of all i are one product."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weights: tuple, scales: tuple, *flat: torch.Tensor):
        outputs = [F.linear(x, weight) for weight in weights]
        downs = [tensor.to(x.dtype) for tensor in flat[0::2]]
        ups = [tensor.to(x.dtype) for tensor in flat[1::2]]
        ctx.weights, ctx.scales, ctx.ranks = weights, scales, [down.shape[0] for down in downs]
        ctx.dtypes = [tensor.dtype for tensor in flat]
        if downs:
            stacked = torch.cat(downs)
            inner = F.linear(x, stacked)
            for y, scale, z, up in _adapted(outputs, scales, inner.split(ctx.ranks, 1), ups):
                y.addmm_(z, up.t(), alpha=scale)
            ctx.save_for_backward(x, stacked, inner, *ups)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor):
        dx = None
        if ctx.needs_input_grad[0]:
            dx = grads[0] @ ctx.weights[0]
            for grad, weight in zip(grads[1:], ctx.weights[1:], strict=True):
                dx.addmm_(grad, weight)
        if not ctx.ranks:
            return dx, None, None
        x, stacked, inner, *ups = ctx.saved_tensors
        d_inner = torch.empty_like(inner)
        d_ups = []
        inners = zip(inner.split(ctx.ranks, 1), d_inner.split(ctx.ranks, 1), strict=True)
        for grad, scale, (z, dz), up in _adapted(grads, ctx.scales, inners, ups):
            dz.copy_((grad @ up).mul_(scale))
            d_ups.append((grad.t() @ z).mul_(scale))
        if dx is not None:
            dx.addmm_(d_inner, stacked)
        d_downs = (d_inner.t() @ x).split(ctx.ranks)
        pairs = [part for pair in zip(d_downs, d_ups, strict=True) for part in pair]
        return dx, None, None, *(part.to(dtype) for part, dtype in zip(pairs, ctx.dtypes, strict=True))


def _adapted(values: Sequence, scales: Sequence[float | None], inners: Any, ups: Sequence[torch.Tensor]):
    """Walk the outputs that have an adapter, with its scale, its inner activation and its B."""
    with_adapter = [(value, scale) for value, scale in zip(values, scales, strict=True) if scale is not None]
    return ((value, scale, inner, up) for (value, scale), inner, up in zip(with_adapter, inners, ups, strict=True))


class Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):
        cos, sin = ctx.saved_tensors
        return turn(grad, cos, -sin), None, None


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    left, right = out.chunk(2, -1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return out


class SiluTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class TreeAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale) v, block by block of a tree; (N, H, d) queries, (N, H_kv, d) keys and values."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, levels: tuple, scale: float):
        out = torch.empty_like(q)
        saved = []
        for level in levels:
            queries = _take_queries(q * scale, level, k.shape[1])
            keys, values = _take_keys(k, level), _take_keys(v, level)
            weights = _softmax_scores(queries, keys, level)
            _put_queries(out, torch.bmm(weights, values), level, k.shape[1])
            saved += [queries, keys, values, weights]
        ctx.save_for_backward(*saved)
        ctx.levels, ctx.scale, ctx.kv_heads = levels, scale, k.shape[1]
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):
        dq = torch.empty_like(grad)
        shape = (grad.shape[0], ctx.kv_heads, grad.shape[2])
        dk, dv = torch.zeros(shape, device=grad.device), torch.zeros(shape, device=grad.device)  # fp32 sums
        for number, level in enumerate(ctx.levels):
            queries, keys, values, weights = ctx.saved_tensors[4 * number : 4 * number + 4]
            d_out = _take_queries(grad, level, ctx.kv_heads, blank_padding=True)
            _add_keys(dv, torch.bmm(weights.transpose(1, 2), d_out), level)
            d_weights = torch.bmm(d_out, values.transpose(1, 2))
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            _add_keys(dk, torch.bmm(d_scores.transpose(1, 2), queries), level)
            _put_queries(dq, torch.bmm(d_scores, keys).mul_(ctx.scale), level, ctx.kv_heads)
        return dq, dk.to(grad.dtype), dv.to(grad.dtype), None, None


def _softmax_scores(queries: torch.Tensor, keys: torch.Tensor, level: AttentionLevel) -> torch.Tensor:
    scores = torch.bmm(queries, keys.transpose(1, 2))
    blocks, longest_q, longest_s = level.blocked_KQS.shape
    blocked = level.blocked_KQS.to(scores.device)[:, None, None]
    scores.view(blocks, -1, queries.shape[1] // longest_q, longest_q, longest_s).masked_fill_(blocked, float("-inf"))
    return torch.softmax(scores, -1)


def _take_queries(
    x: torch.Tensor, level: AttentionLevel, kv_heads: int, *, blank_padding: bool = False
) -> torch.Tensor:
    """(N, H, d) → (K·H_kv, H/H_kv·Q, d): the heads that share keys are in one product."""
    _, heads, dim = x.shape
    blocks, longest = level.queries_KQ.shape
    taken = x.index_select(0, level.queries_KQ.reshape(-1).to(x.device))
    if blank_padding and not bool(level.query_is_real_KQ.all()):
        taken[~level.query_is_real_KQ.reshape(-1).to(x.device)] = 0
    taken = taken.view(blocks, longest, kv_heads, heads // kv_heads, dim).permute(0, 2, 3, 1, 4)
    return taken.reshape(blocks * kv_heads, -1, dim)


def _put_queries(out: torch.Tensor, x: torch.Tensor, level: AttentionLevel, kv_heads: int) -> None:
    blocks, longest = level.queries_KQ.shape
    rows = x.view(blocks, kv_heads, -1, longest, x.shape[-1]).permute(0, 3, 1, 2, 4).reshape(blocks * longest, -1)
    index, real = level.queries_KQ.reshape(-1).to(x.device), level.query_is_real_KQ.reshape(-1).to(x.device)
    if not bool(real.all()):
        index, rows = index[real], rows[real]
    out.view(out.shape[0], -1).index_copy_(0, index, rows)


def _take_keys(x: torch.Tensor, level: AttentionLevel) -> torch.Tensor:
    """(N, H_kv, d) → (K·H_kv, S, d)."""
    blocks, longest = level.keys_KS.shape
    taken = x.index_select(0, level.keys_KS.reshape(-1).to(x.device)).view(blocks, longest, *x.shape[1:])
    return taken.transpose(1, 2).reshape(blocks * x.shape[1], longest, x.shape[2])


def _add_keys(total: torch.Tensor, x: torch.Tensor, level: AttentionLevel) -> None:
    blocks, longest = level.keys_KS.shape
    rows = x.view(blocks, -1, longest, x.shape[-1]).transpose(1, 2).reshape(blocks * longest, *total.shape[1:])
    total.index_add_(0, level.keys_KS.reshape(-1).to(x.device), rows.to(total.dtype))


class Head(torch.autograd.Function):
    """Head, softmax, selected log-probability and entropy in one pass over the vocabulary.

    ∂ log p(t) / ∂ h = (W_t - Σ_v p(v) W_v) / temperature does not depend on the loss, so the forward pass computes
    Σ_v p(v) W_v while p is in the cache, and the logits are never stored.
    """

    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, predictor_of, temperature):
        wants_gradient = ctx.needs_input_grad[0]
        order = torch.argsort(predictor_of, stable=True)
        logprobs = torch.empty(targets.numel(), device=hidden.device)
        entropies = torch.empty(hidden.shape[0], device=hidden.device)
        expected = torch.empty_like(hidden) if wants_gradient else None
        firsts = torch.arange(0, hidden.shape[0] + HEAD_ROWS, HEAD_ROWS, device=hidden.device)
        borders = torch.searchsorted(predictor_of[order], firsts).tolist()
        for number, first in enumerate(range(0, hidden.shape[0], HEAD_ROWS)):
            span = slice(first, first + HEAD_ROWS)
            log_p = F.linear(hidden[span], weight).float().div_(temperature).log_softmax(-1)
            which = order[borders[number] : borders[number + 1]]
            logprobs[which] = log_p[predictor_of[which] - first, targets[which]]
            p = log_p.exp()
            entropies[span] = -torch.linalg.vecdot(p, log_p)
            if expected is not None:
                expected[span] = p.to(weight.dtype) @ weight
        ctx.temperature, ctx.weight = temperature, weight
        ctx.save_for_backward(expected, targets, predictor_of)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _):
        expected, targets, predictor_of = ctx.saved_tensors
        chosen = ctx.weight.index_select(0, targets).float()
        difference = chosen - expected.index_select(0, predictor_of).float()
        d_hidden = torch.zeros(expected.shape, device=expected.device)
        d_hidden.index_add_(0, predictor_of, difference * (grad / ctx.temperature)[:, None])
        return d_hidden.to(expected.dtype), None, None, None, None
