"""A Llama's forward pass over a prefix tree, written out for a CPU: same weights, same formulas, less copying.

The stock modules compute the right thing for a packed tree too, but slowly on a CPU: PEFT runs its adapters in fp32,
the head copies its weight once per sequence, and attention pays for the masked part. The functions here read the
modules' own parameters (nothing is copied or replaced) and differ from them by rounding only (tests/engine). Adapters
stay fp32 parameters, so the optimiser and the checkpoints have full-precision master weights; only the products are
taken in the base model's dtype.

A projection that is not a plain or LoRA-adapted `nn.Linear` with frozen weights (4-bit, DoRA, dropout at work, biases
under training) is called as the module it is. Letters: N tree nodes, D hidden size, H heads, r LoRA rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from problama_utils import CourseError
from problama_utils.engine.gradients import Head, LoraLinears, RMSNorm, Rotate, SiluTimes, TreeAttention
from problama_utils.engine.tree import PackedTree


class UnsupportedModelError(TypeError):
    """The model is not one whose layers this module can walk; train it the stock way."""


@dataclass(frozen=True)
class LlamaParts:
    """The modules of a `LlamaForCausalLM`, under any wrapper."""

    embed: nn.Module
    layers: Sequence[nn.Module]
    norm: nn.Module
    rotary: nn.Module
    head: nn.Module
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int


def llama_parts(model: nn.Module) -> LlamaParts:
    """Find the layers of a Llama, through a `PeftModel` with LoRA or none.

    Raises:
        UnsupportedModelError: another architecture or kind of adapter; the message names it.
    """
    configs = getattr(model, "peft_config", {})
    for config in configs.values() if isinstance(configs, dict) else ():
        if str(getattr(config, "peft_type", "")).split(".")[-1] != "LORA":
            raise UnsupportedModelError(f"the adapter is {config.peft_type}, not LoRA")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if type(base).__name__ != "LlamaForCausalLM":
        raise UnsupportedModelError(f"the model is {type(base).__name__}, not LlamaForCausalLM")
    body = base.model
    attention = body.layers[0].self_attn
    if getattr(base.config, "pretraining_tp", 1) != 1 or getattr(attention, "sliding_window", None):
        raise UnsupportedModelError("its configuration has tensor slicing or windows, unknown to the packed pass")
    return LlamaParts(
        body.embed_tokens, body.layers[: base.config.num_hidden_layers], body.norm, body.rotary_emb, base.lm_head,
        body.norm.weight.dtype, base.config.num_attention_heads, base.config.num_key_value_heads, attention.head_dim,
    )  # fmt: skip


def rms_norm(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """LlamaRMSNorm: x / sqrt(mean(x²) + ε) · weight (arXiv:1910.07467, equation 4), statistics in fp32."""
    if norm.weight.requires_grad:
        return norm(x)
    return RMSNorm.apply(x, norm.weight, norm.variance_epsilon)


def project(x: torch.Tensor, modules: Sequence[nn.Module]) -> tuple[torch.Tensor, ...]:
    """Apply several projections to the same (N, D_in) input: W x + s · B (A x) each, adapters in x's dtype."""
    plans = [lora_terms(module) for module in modules]
    if any(plan is None for plan in plans):
        return tuple(module(x) for module in modules)
    weights = [plan[0] for plan in plans]
    terms = [plan[1] for plan in plans]
    flat = [tensor for term in terms if term for tensor in term[:2]]
    scales = tuple(term[2] if term else None for term in terms)
    return LoraLinears.apply(x, tuple(weights), scales, *flat)


def lora_terms(module: nn.Module) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, float] | None] | None:
    """Return `(W, (A, B, scale) or None)` of a frozen plain or LoRA-adapted linear layer, None for anything else."""
    base = getattr(module, "base_layer", module)
    if type(base) is not nn.Linear or base.bias is not None or base.weight.requires_grad:
        return None
    if base is module or module.disable_adapters or module.merged:
        return base.weight, None
    names = [name for name in module.active_adapters if name in module.lora_A]
    if not names:
        return base.weight, None
    name = names[0]
    dropout = module.lora_dropout[name]
    plain = (
        len(names) == 1
        and name not in module.lora_variant
        and module.lora_B[name].bias is None
        and (isinstance(dropout, nn.Identity) or dropout.p == 0.0 or not dropout.training)
    )
    if not plain:
        return None
    return base.weight, (module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (arXiv:2104.09864, equation 34) on (N, H, d); cos and sin are (N, 1, d/2)."""
    return Rotate.apply(x, cos, sin)


def rotary_tables(parts: LlamaParts, positions_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of shape (N, 1, d/2) in the model's dtype; the model's own scaling of positions applies."""
    like = torch.empty(0, dtype=parts.dtype, device=positions_N.device)
    cos, sin = parts.rotary(like, positions_N[None])
    half = parts.head_dim // 2
    return cos[0, :, None, :half], sin[0, :, None, :half]


def mlp(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """SwiGLU (arXiv:2002.05202, equation 6): down(act(gate x) · up x)."""
    gate, up = project(x, (module.gate_proj, module.up_proj))
    silu = isinstance(module.act_fn, nn.SiLU) or type(module.act_fn).__name__ == "SiLUActivation"
    hidden = SiluTimes.apply(gate, up) if silu else module.act_fn(gate) * up
    return project(hidden, (module.down_proj,))[0]


def tree_hidden(
    parts: LlamaParts, tree: PackedTree, caches: list[tuple[torch.Tensor, torch.Tensor]] | None = None
) -> torch.Tensor:
    """Run the model's body over a packed tree.

    Args:
        parts: the model.
        tree: N nodes.
        caches: where given, each layer's keys (positions applied) and values, both (N, H_kv, d), are appended to it.

    Returns:
        The last hidden state after the final norm, (N, D).
    """
    device = parts.norm.weight.device
    hidden = parts.embed(tree.tokens_N.to(device))
    cos, sin = rotary_tables(parts, tree.positions_N.to(device))
    for layer in parts.layers:
        attention = layer.self_attn
        x = rms_norm(hidden, layer.input_layernorm)
        q, k, v = project(x, (attention.q_proj, attention.k_proj, attention.v_proj))
        q = rotate(q.view(-1, parts.heads, parts.head_dim), cos, sin)
        k = rotate(k.view(-1, parts.kv_heads, parts.head_dim), cos, sin)
        v = v.view(-1, parts.kv_heads, parts.head_dim)
        if caches is not None:
            caches.append((k, v))
        mixed = TreeAttention.apply(q, k, v, tree.levels, attention.scaling)
        hidden = hidden + project(mixed.reshape(tree.size, -1), (attention.o_proj,))[0]
        hidden = hidden + mlp(rms_norm(hidden, layer.post_attention_layernorm), layer.mlp)
    return rms_norm(hidden, parts.norm)


def tree_logprobs(
    parts: LlamaParts, tree: PackedTree, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy at every completion token of a packed batch.

    Args:
        parts: the model.
        tree: the batch.
        temperature: logits are divided by it, as in sampling.
        entropy_gradient: let gradients flow through the entropy (TRL's entropy bonus); slower.

    Returns:
        `(logprobs_BT, entropies_BT)`, both fp32 in nats, 0 at padding.
    """
    hidden = tree_hidden(parts, tree)
    device = hidden.device
    rows = hidden.index_select(0, tree.predictors_R.to(device))
    targets = tree.tokens_N[tree.scored_nodes_C].to(device)
    predictor_of = tree.predictor_of_C.to(device)
    head = lora_terms(parts.head)
    if head is None or head[1] is not None or entropy_gradient:
        logprobs, entropies_R = _plain_head(parts.head(rows).float() / temperature, targets, predictor_of)
    else:
        logprobs, entropies_R = Head.apply(rows, head[0], targets, predictor_of, temperature)
    return tree.to_rows(logprobs), tree.to_rows(entropies_R.index_select(0, predictor_of))


def _plain_head(logits: torch.Tensor, targets: torch.Tensor, predictor_of: torch.Tensor):
    logprobs = logits.log_softmax(-1)
    return logprobs[predictor_of, targets], -(logprobs.exp() * logprobs).sum(-1)


def first_broken_weight(model: nn.Module, *, trained: bool = False) -> str | None:
    """Return the name of the first weight that holds NaN or infinite values, None where all are sound (or packed).

    Args:
        model: any module.
        trained: look only at weights under training.
    """
    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for name, weight in model.named_parameters():
        if (weight.requires_grad or not trained) and weight.dtype in plain and weight.numel() and not weight.is_meta:
            ends = torch.stack(torch.aminmax(weight.detach()))  # NaN wins both; several times faster than isfinite
            if not ends.isfinite().all():
                return name
    return None


def not_finite(model: nn.Module, found: str) -> CourseError:
    """Return the error for numbers that are none: what was `found`, and the first broken weight of the model."""
    broken = first_broken_weight(model)
    why = f"its weight {broken!r} holds NaN or infinite values" if broken else "its weights are broken or far too large"
    return CourseError(f"The model's logits are not finite numbers ({found}): {why}; load another adapter or "
                       "checkpoint.")
