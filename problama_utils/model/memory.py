"""What PPO and GRPO keep in memory, byte by byte, counted from a model's architecture. No torch, no weights.

Counted is what stays in memory between two steps: weights of policy, reference and value model, gradients and
Adam's state. It leaves out activations, the KV cache and the logits, which depend on batch and length. Rewards are
verifiable functions here, so there is no reward model.

Bytes per number: mixed precision keeps a trainable number in bf16 with an fp32 master copy, a bf16 gradient and
Adam's two fp32 moments: 2 + 4 + 2 + 4 + 4 = 16 (ZeRO, arXiv:1910.02054, section 3.1). A LoRA adapter is fp32
throughout (PEFT's default): 4 + 4 + 4 + 4 = 16 too. NF4 with double quantisation costs 4.127 bits per weight (QLoRA,
arXiv:2305.14314, section 3), on the seven projections; embeddings, head and norms stay in bf16.
"""

from __future__ import annotations

from dataclasses import dataclass

METHODS, REGIMES = ("ppo", "grpo"), ("full", "lora", "qlora")
NF4_BITS = 4.0 + 0.127
GIB = 1024**3
# Two fp32 moments, or two bytes and the fp32 scale of each block of 256 (bitsandbytes, arXiv:2110.02861).
ADAM_BYTES = {"adamw_torch_fused": 8.0, "adamw_8bit": 2 + 2 * 4 / 256}


@dataclass(frozen=True)
class Architecture:
    """A Llama-style decoder, by the names of its `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool = False

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each projection in one layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        kv = hidden // self.num_attention_heads * self.num_key_value_heads
        return {"q_proj": (hidden, hidden), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (hidden, hidden),
                "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}

    @property
    def projection_parameters(self) -> int:
        """Weights in the seven projections of all layers: what LoRA adapts and QLoRA quantises."""
        return self.num_hidden_layers * sum(inputs * outputs for inputs, outputs in self.shapes().values())

    @property
    def head_parameters(self) -> int:
        """The output layer, hidden → vocabulary; 0 when it shares the embedding's weights."""
        return 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights: embedding, projections, two norms per layer and the last one, head.

        >>> LLAMA_3_1_8B.parameters
        8030261248
        """
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.vocab_size * self.hidden_size + self.projection_parameters + norms + self.head_parameters

    @property
    def value_parameters(self) -> int:
        """A value model of the same size: the vocabulary head gives way to one number per token."""
        return self.parameters - self.head_parameters + self.hidden_size

    def lora_parameters(self, rank: int) -> int:
        """Trainable numbers of LoRA on the seven projections: rank · (inputs + outputs) each.

        >>> LLAMA_3_1_8B.lora_parameters(64)
        167772160
        """
        return self.num_hidden_layers * rank * sum(inputs + outputs for inputs, outputs in self.shapes().values())


LLAMA_3_1_8B = Architecture(128_256, 4_096, 14_336, 32, 32, 8)
SMOLLM2_135M = Architecture(49_152, 576, 1_536, 30, 9, 3, tie_word_embeddings=True)


def training_bytes(
    model: Architecture, method: str, regime: str, rank: int = 64, share_base: bool = False, adam_bytes: float = 8,
    peft_path: bool = False,
) -> dict[str, int]:
    """Bytes that training keeps, by part: "policy", "reference", "value", "gradients", "Adam" (and master weights).

    Under LoRA the reference is the policy with its adapters switched off and costs nothing (`peft_path` apart).

    Args:
        model: the policy's architecture; the value model has the same one with a head of one output.
        method: "ppo" (with value model) or "grpo" (without).
        regime: "full" fine-tuning, "lora" on a bf16 base, "qlora" on an NF4 base.
        rank: r of LoRA.
        share_base: PPO's value model hangs its adapters on the policy's frozen base instead of loading a second one.
        adam_bytes: of the two moments of a trained adapter number; `ADAM_BYTES` has them by optimiser.
        peft_path: count what transformers + peft + TRL really keep under "qlora": `prepare_model_for_kbit_training`
            turns embedding, norms and head to fp32, and TRL copies the adapter's start as the reference policy.
            False counts QLoRA as its paper and unsloth keep it, with both parts in bf16 and no copy.

    Raises:
        ValueError: for an unknown method or regime.
    """
    if method not in METHODS or regime not in REGIMES:
        raise ValueError(f"({method!r}, {regime!r}) is unknown: methods are {METHODS}, regimes {REGIMES}.")
    ppo = method == "ppo"
    if regime == "full":
        trained = model.parameters + (model.value_parameters if ppo else 0)
        return {
            "policy": 2 * model.parameters,
            "reference": 2 * model.parameters,
            "value": 2 * model.value_parameters if ppo else 0,
            "gradients": 2 * trained,
            "Adam": 12 * trained,
        }
    adapter, value_head = model.lora_parameters(rank), model.hidden_size
    trained = adapter + (adapter + value_head if ppo else 0)
    base, others = 2 * model.parameters, model.parameters - model.projection_parameters
    if regime == "qlora":
        base = round(model.projection_parameters * NF4_BITS / 8) + 2 * others
    value_base = 0 if share_base else base - 2 * model.head_parameters
    return {
        "policy": base + 4 * adapter + (2 * others if peft_path and regime == "qlora" else 0),
        "reference": 4 * adapter if peft_path else 0,
        "value": value_base + 4 * (adapter + value_head) if ppo else 0,
        "gradients": 4 * trained,
        "Adam": round(adam_bytes * trained),
    }


def memory_table(model: Architecture, rank: int = 64) -> list[dict[str, object]]:
    """One row per regime and method: the parts and the total, in GiB."""
    rows = []
    for regime in REGIMES:
        for method in METHODS:
            parts = training_bytes(model, method, regime, rank)
            parts["total"] = sum(parts.values())
            rows.append({"regime": regime, "method": method} | {name: size / GIB for name, size in parts.items()})
    return rows
