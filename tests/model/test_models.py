"""Loading, adapting and reloading a policy, on a Llama made on the spot."""

import dataclasses

import pytest
import torch

from problama_utils import CourseError
from problama_utils.config import get_profile
from problama_utils.model.loading import (
    DTYPE_VARIABLE,
    attach_lora,
    compute_dtype,
    load_adapter,
    load_policy,
    model_source,
    parameter_counts,
)


@pytest.fixture
def profile(tiny_model_dir, monkeypatch):
    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    return get_profile("cpu")


def test_the_environment_names_another_model(profile, tiny_model_dir):
    assert model_source(profile) == str(tiny_model_dir)


def test_a_loaded_tokenizer_pads_on_the_left_and_can_pad(profile):
    _, tokenizer = load_policy(profile)
    assert tokenizer.padding_side == "left" and tokenizer.pad_token is not None


def test_a_fresh_adapter_leaves_the_policy_at_the_reference(profile):
    model, tokenizer = load_policy(profile, seed=1)
    ids = tokenizer("a bee", return_tensors="pt").input_ids
    before = model(ids).logits
    assert torch.equal(attach_lora(model, profile)(ids).logits, before)


def test_only_the_adapter_is_trainable_and_its_size_is_the_formula(profile):
    model, _ = load_policy(profile, seed=1)
    counts = parameter_counts(attach_lora(model, profile))
    r, d, kv, ff, layers = profile.lora.r, 32, 16, 64, 2
    per_layer = r * (2 * (d + d) + 2 * (d + kv) + 3 * (d + ff))  # q, o; k, v; gate, up, down
    assert counts["trainable"] == layers * per_layer


def test_the_adapters_seed_decides_its_random_half(profile):
    def first_a(seed):
        model = attach_lora(load_policy(profile)[0], profile, seed=seed)
        return next(weight for name, weight in model.named_parameters() if "lora_A" in name)

    assert torch.equal(first_a(1), first_a(1)) and not torch.equal(first_a(1), first_a(2))


def test_a_saved_adapter_comes_back_equal_and_frozen(profile, tmp_path):
    model = attach_lora(load_policy(profile)[0], profile)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    again = load_adapter(load_policy(profile)[0], tmp_path)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert not any(weight.requires_grad for weight in again.parameters())
    assert not list(tmp_path.glob("*.bin")), "weights are saved as safetensors only"


def test_a_missing_adapter_says_which_notebook_makes_it(profile, tmp_path):
    with pytest.raises(CourseError, match="run the training"):
        load_adapter(load_policy(profile)[0], tmp_path / "adapter")


def test_an_adapter_for_another_model_is_refused_in_words(profile, tmp_path):
    wide = dataclasses.replace(profile, lora=dataclasses.replace(profile.lora, r=4))
    model = attach_lora(load_policy(profile)[0], wide)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: torch.zeros(w.shape[0] + 1, w.shape[1] + 1) for name, w in load_file(weights).items()}, weights)
    with pytest.raises(CourseError, match="does not fit this model"):
        load_adapter(load_policy(profile)[0], tmp_path)


def test_a_model_folder_that_does_not_exist_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBLAMA_MODEL", str(tmp_path / "nothing"))
    with pytest.raises(CourseError, match="PROBLAMA_MODEL"):
        load_policy(get_profile("cpu"))


def test_a_gpu_profile_without_unsloth_says_how_to_go_on(profile):
    with pytest.raises(CourseError, match="PROBLAMA_PROFILE=cpu"):
        load_policy(get_profile("slides"))


@pytest.fixture
def probes(monkeypatch):
    """Set what torch says about this machine: `probes(card=(8, 0))` or `probes(_is_avx512_bf16_supported=True)`."""
    names = ("_is_avx512_bf16_supported", "_is_amx_bf16_supported", "_is_amx_tile_supported")

    def answer(card=None, **found):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: card)
        for name in names:
            monkeypatch.delattr(torch.cpu, name, raising=False)
            if name in found:
                value = found[name]
                monkeypatch.setattr(torch.cpu, name, value if callable(value) else lambda value=value: value,
                                    raising=False)

    monkeypatch.delenv(DTYPE_VARIABLE, raising=False)
    return answer


def broken_probe():
    raise RuntimeError("no such processor")


@pytest.mark.parametrize(("machine", "expected"), [
    ({"_is_avx512_bf16_supported": True}, torch.bfloat16), ({"_is_avx512_bf16_supported": False}, torch.float32),
    ({"_is_amx_tile_supported": True}, torch.bfloat16), ({"_is_amx_bf16_supported": True}, torch.bfloat16),
    ({"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": True}, torch.bfloat16),
    ({}, torch.float32), ({"_is_avx512_bf16_supported": broken_probe}, torch.float32),
    ({"_is_avx512_bf16_supported": None}, torch.float32),
    ({"card": (8, 0)}, torch.bfloat16), ({"card": (9, 0)}, torch.bfloat16), ({"card": (7, 5)}, torch.float16),
])  # fmt: skip
def test_without_a_wish_the_machine_decides_the_type(probes, machine, expected):
    probes(**machine)
    assert compute_dtype() is expected


@pytest.mark.parametrize(("wish", "expected"), [
    ("float32", torch.float32), ("fp32", torch.float32), ("FP32", torch.float32), (" float32 ", torch.float32),
    ("bfloat16", torch.bfloat16), ("bf16", torch.bfloat16), ("BFloat16", torch.bfloat16),
    ("torch.bfloat16", torch.bfloat16), ("", torch.float32), ("  ", torch.float32),
])  # fmt: skip
def test_a_wish_decides_the_type_on_a_cpu(probes, monkeypatch, wish, expected):
    probes(_is_avx512_bf16_supported=False)
    monkeypatch.setenv(DTYPE_VARIABLE, wish)
    assert compute_dtype() is expected


@pytest.mark.parametrize("wish", ["float16", "fp16", "float32", "bf16"])
def test_a_wish_decides_the_type_on_a_card(probes, monkeypatch, wish):
    probes(card=(7, 5))
    monkeypatch.setenv(DTYPE_VARIABLE, wish)
    assert str(compute_dtype()) == {"fp16": "torch.float16", "bf16": "torch.bfloat16"}.get(wish, f"torch.{wish}")


@pytest.mark.parametrize("wish", ["half", "16", "float64", "int8", "fp8", "bf-16", "auto", "none", "0", "fp16",
                                  "float16", "Float16"])  # fmt: skip
def test_an_impossible_type_is_a_sentence(probes, monkeypatch, wish):
    probes(_is_avx512_bf16_supported=True)
    monkeypatch.setenv(DTYPE_VARIABLE, wish)
    with pytest.raises(CourseError, match=f"{DTYPE_VARIABLE}.*float32.*unset it"):
        compute_dtype()


@pytest.mark.parametrize(("wish", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_loaded_model_has_the_type_that_was_wished_for(profile, monkeypatch, wish, expected):
    monkeypatch.setenv(DTYPE_VARIABLE, wish)
    assert load_policy(profile)[0].dtype is expected


def test_unsloth_is_told_a_type_only_where_one_was_wished_for(profile, monkeypatch):
    import sys
    import types

    told = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**arguments):
            told.update(arguments)
            raise CourseError("far enough")

    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastLanguageModel=FastLanguageModel))
    for wish, expected in (("", None), ("fp32", torch.float32)):
        monkeypatch.setenv(DTYPE_VARIABLE, wish)
        told.clear()
        with pytest.raises(CourseError, match="far enough"):
            load_policy(get_profile("slides"))
        assert told.get("dtype") is expected
