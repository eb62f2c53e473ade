"""How many parameters a Llama has and how many bytes they take, counted without its weights.

torch's `meta` device knows the shape of every tensor and stores none, so an 8-billion-parameter model is built in a
second on any laptop, by the very classes that would hold its weights. `model.memory` counts the same by formulas.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from problama_utils.config import SEVEN_PROJECTIONS
from problama_utils.model.memory import Architecture
from problama_utils.model.quantisation import BLOCK, SECOND_BLOCK, bits_per_weight

if TYPE_CHECKING:
    from torch import nn
    from transformers import LlamaForCausalLM, PreTrainedModel

FORMATS = ("fp32", "bf16", "int8", "NF4")
KINDS = {"lora_": "adapter", "embed_tokens": "embedding", "lm_head": "head",
         **{name: name for name in SEVEN_PROJECTIONS}}  # part of a parameter's name → its kind  # fmt: skip


def build_on_meta(architecture: Architecture) -> LlamaForCausalLM:
    """Return transformers' own Llama of this architecture on the `meta` device: shapes without numbers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**asdict(architecture)))


def with_adapter(model: PreTrainedModel, rank: int, targets: tuple[str, ...] = SEVEN_PROJECTIONS) -> nn.Module:
    """Return the model with peft's LoRA adapter of this rank on the named projections."""
    from peft import LoraConfig, get_peft_model

    shape = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), task_type="CAUSAL_LM")
    return get_peft_model(model, shape, low_cpu_mem_usage=True)


def count_by_kind(model: nn.Module) -> dict[str, int]:
    """Return the parameters of a Llama by kind: embedding, the seven projections, norms, head, adapter, in total.

    A head that shares the embedding's weights counts once, as the embedding. A 4-bit weight counts its logical size.
    """
    counts = dict.fromkeys(("embedding", *SEVEN_PROJECTIONS, "norms", "head", "adapter"), 0)
    for name, weight in model.named_parameters():
        kind = next((kind for part, kind in KINDS.items() if part in name), "norms")
        counts[kind] += logical_size(weight)
    return {**counts, "total": sum(counts.values())}


def logical_size(weight: nn.Parameter) -> int:
    """Return how many numbers a parameter stands for; bitsandbytes packs two 4-bit ones into a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters, of their 4-bit scales and of the buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        while state is not None:
            tensors.append(state.absmax)
            state = getattr(state, "state2", None)  # of the scales themselves
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weight_bytes(architecture: Architecture, form: str) -> int:
    """Return the bytes of the weights alone.

    fp32 and bf16 hold every number in 4 and 2 bytes. int8 and NF4 apply to the projections only, as bitsandbytes does:
    int8 adds one fp32 scale per output row, NF4 its doubly quantised absmax; embedding, head and norms stay bf16.

    Raises:
        ValueError: `form` is none of FORMATS.
    """
    if form not in FORMATS:
        raise ValueError(f"There is no format {form!r}: choose one of {', '.join(FORMATS)}.")
    everything, projections = architecture.parameters, architecture.projection_parameters
    rows = architecture.num_hidden_layers * sum(outputs for _, outputs in architecture.shapes().values())
    return {
        "fp32": 4 * everything,
        "bf16": 2 * everything,
        "int8": projections + 4 * rows + 2 * (everything - projections),
        "NF4": round(projections * bits_per_weight(BLOCK, SECOND_BLOCK) / 8) + 2 * (everything - projections),
    }[form]


def kv_cache_bytes(architecture: Architecture, sequences: int, tokens: int) -> int:
    """Return the bytes of a bf16 key-value cache: 2 (keys, values) · layers · KV heads · head size per token."""
    head = architecture.hidden_size // architecture.num_attention_heads
    per_token = 2 * architecture.num_hidden_layers * architecture.num_key_value_heads * head * 2
    return per_token * sequences * tokens
