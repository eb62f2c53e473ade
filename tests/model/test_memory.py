"""The memory table: counts equal the real architectures', parts add up, the known figures come out."""

import pytest

from problama_utils.model.memory import (
    GIB,
    LLAMA_3_1_8B,
    METHODS,
    REGIMES,
    SMOLLM2_135M,
    memory_table,
    training_bytes,
)


def real_model(shape):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    names = [name for name in shape.__dataclass_fields__]
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**{name: getattr(shape, name) for name in names}))


@pytest.mark.parametrize(("shape", "count"), [(LLAMA_3_1_8B, 8_030_261_248), (SMOLLM2_135M, 134_515_008)])
def test_parameters_equal_those_of_the_real_architecture_on_the_meta_device(shape, count):
    assert shape.parameters == count == sum(p.numel() for p in real_model(shape).parameters())


def test_lora_parameters_equal_those_that_peft_trains():
    peft = pytest.importorskip("peft")
    import torch

    config = peft.LoraConfig(r=64, target_modules=list(LLAMA_3_1_8B.shapes()), task_type="CAUSAL_LM")
    with torch.device("meta"):
        adapted = peft.get_peft_model(real_model(LLAMA_3_1_8B), config)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert LLAMA_3_1_8B.lora_parameters(64) == trained == 167_772_160


def test_full_fine_tuning_costs_16_bytes_per_trained_and_2_per_frozen_number():
    parts = training_bytes(LLAMA_3_1_8B, "grpo", "full")
    assert sum(parts.values()) == 18 * LLAMA_3_1_8B.parameters
    value = sum(training_bytes(LLAMA_3_1_8B, "ppo", "full").values()) - sum(parts.values())
    assert value == 16 * LLAMA_3_1_8B.value_parameters


def test_a_reference_is_free_with_adapters_and_a_value_model_never_is():
    for regime in ("lora", "qlora"):
        assert training_bytes(LLAMA_3_1_8B, "grpo", regime)["reference"] == 0
        ppo, shared = (training_bytes(LLAMA_3_1_8B, "ppo", regime, share_base=s)["value"] for s in (False, True))
        assert ppo > shared == 4 * (LLAMA_3_1_8B.lora_parameters(64) + LLAMA_3_1_8B.hidden_size)


def test_the_bill_has_every_pair_and_its_parts_add_up():
    rows = memory_table(LLAMA_3_1_8B)
    assert {(row["regime"], row["method"]) for row in rows} == {(r, m) for r in REGIMES for m in METHODS}
    for row in rows:
        parts = sum(row[name] for name in ("policy", "reference", "value", "gradients", "Adam"))
        assert row["total"] == pytest.approx(parts)
    totals = {(row["regime"], row["method"]): row["total"] for row in rows}
    assert all(totals[regime, "ppo"] > totals[regime, "grpo"] for regime in REGIMES)
    assert totals["full", "grpo"] == pytest.approx(18 * 8_030_261_248 / GIB)


def test_an_unknown_regime_is_refused_in_words():
    with pytest.raises(ValueError, match="regimes"):
        training_bytes(LLAMA_3_1_8B, "grpo", "8bit")


def test_the_peft_path_holds_what_is_not_quantised_in_fp32_and_a_copy_of_the_adapter():
    plain, peft = (training_bytes(LLAMA_3_1_8B, "grpo", "qlora", peft_path=path) for path in (False, True))
    rest = LLAMA_3_1_8B.parameters - LLAMA_3_1_8B.projection_parameters
    assert peft["policy"] - plain["policy"] == 2 * rest and peft["reference"] == 4 * 167_772_160
    assert peft["gradients"] == plain["gradients"] and peft["Adam"] == plain["Adam"]
