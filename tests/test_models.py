"""Loading, adapting and reloading a policy, on a Llama made on the spot."""

import dataclasses

import pytest
import torch

from problama_utils.config import get_profile
from problama_utils.errors import CourseError
from problama_utils.models import attach_lora, load_adapter, load_policy, model_source, parameter_counts


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
