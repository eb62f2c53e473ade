"""A model's weights laid out for decoding: few rows at a time, the same frozen weights at every step.

Weights that are not plain or LoRA-adapted `nn.Linear` layers (4-bit, DoRA) stay where they are and their module is
called.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from problama_utils.engine.layers import llama_parts, lora_terms

COPY_LIMIT = 2**30  # bytes: a second copy of larger models would not be worth its memory
FEW_ROWS = 32  # rows of a product that the layout is chosen for


class DecodingWeights:
    """A model's projections laid out for steps of a few rows: kept between calls, since frozen weights do not change.

    In bf16 on a CPU the frozen weights are copied once into the blocked layout of oneDNN, which otherwise is produced
    anew for every product of a decoding step. Adapters are read afresh at every call of `refresh`.

    Args:
        model: a `LlamaForCausalLM`, plain or with LoRA.
        copy_limit: bytes of weights above which nothing is copied.

    Raises:
        UnsupportedModelError: not a Llama.
    """

    def __init__(self, model: nn.Module, *, copy_limit: int = COPY_LIMIT):
        self.parts = llama_parts(model)
        copies = sum(weight.numel() * weight.element_size() for weight in model.parameters()) <= copy_limit
        self.layers = [
            (
                layer.input_layernorm,
                Projection((layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj), copies),
                Projection((layer.self_attn.o_proj,), copies),
                layer.post_attention_layernorm,
                Projection((layer.mlp.gate_proj, layer.mlp.up_proj), copies),
                Projection((layer.mlp.down_proj,), copies),
            )
            for layer in self.parts.layers
        ]
        self.head = Projection((self.parts.head,), copies)

    def refresh(self) -> None:
        """Read the adapters (and any base weight that has changed) as they are now."""
        for _, *projections in self.layers:
            for projection in projections:
                if isinstance(projection, Projection):
                    projection.refresh()
        self.head.refresh()


class Projection:
    """Several linear layers on one input: y = W x + B (A x), with the W stacked, the A stacked and B block-diagonal."""

    def __init__(self, modules: Sequence[nn.Module], copies: bool):
        self.modules, self.copies = modules, copies
        self.sources: list[tuple[int, int]] = []

    def refresh(self) -> None:
        plans = [lora_terms(module) for module in self.modules]
        self.ready = all(plan is not None for plan in plans)
        if not self.ready:
            return
        weights = [plan[0] for plan in plans]
        sources = [(weight.data_ptr(), weight._version) for weight in weights]
        if sources != self.sources:
            self.sources, self.weight = sources, None
            self.weight = _blocked(weights) if self.copies else weights
        self.sizes = [weight.shape[0] for weight in weights]
        dtype = weights[0].dtype
        terms = [plan[1] for plan in plans]
        present = [term for term in terms if term]
        self.down = torch.cat([term[0] for term in present]).to(dtype) if present else None
        ups = [
            term[1] * term[2] if term else weight.new_zeros(weight.shape[0], 0)
            for term, weight in zip(terms, weights, strict=True)
        ]
        self.up_t = torch.block_diag(*ups).to(dtype).t().contiguous() if present else None

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self.ready:
            return tuple(module(x) for module in self.modules)
        if isinstance(self.weight, list):
            outputs = [F.linear(x, weight) for weight in self.weight]
            y = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
        else:
            y = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        if self.down is not None:
            y.addmm_(F.linear(x, self.down), self.up_t)
        return y.split(self.sizes, 1) if len(self.sizes) > 1 else (y,)


def _blocked(weights: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """Stack weights in oneDNN's blocked layout, or return them as they are where that is not to be had."""
    if weights[0].dtype != torch.bfloat16 or weights[0].device.type != "cpu":
        return weights
    try:
        return torch.ops.mkldnn._reorder_linear_weight(torch.cat([weight.detach() for weight in weights]), FEW_ROWS)
    except (AttributeError, RuntimeError, NotImplementedError):  # a private operator: another torch may lack it
        return weights
