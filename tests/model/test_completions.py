"""Completions through transformers' `generate`: with any tokenizer and model, prompts end where answers
begin and nothing shapes the distribution but the temperature."""

import pytest
import torch

from problama_utils.model import completions
from problama_utils.model.completions import complete

CHATS = [[{"role": "user", "content": text}] for text in ("a", "a bee or a wasp?", "what is it, " * 9, "b" * 57)]


@pytest.fixture
def by_generate(monkeypatch):
    """Turn our own sampler off, as on a GPU."""
    monkeypatch.setattr(completions, "llama_for_cpu", lambda model: None)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_tokenizers_padding_side_decides_nothing(side, batch_size, policy, by_generate, monkeypatch):
    """unsloth sets it to "right" in get_peft_model, in its trainer and before every rollout."""
    model, tokenizer = policy
    alone = [complete(model, tokenizer, [chat], max_new_tokens=8)[0] for chat in CHATS]
    monkeypatch.setattr(tokenizer, "padding_side", side)
    assert complete(model, tokenizer, CHATS, max_new_tokens=8, batch_size=batch_size) == alone


SHAPING = [
    {"top_p": 0.05}, {"top_k": 1}, {"min_p": 0.99}, {"typical_p": 0.05}, {"epsilon_cutoff": 0.1}, {"eta_cutoff": 0.1},
    {"top_h": 0.01}, {"repetition_penalty": 9.0}, {"no_repeat_ngram_size": 1}, {"num_beams": 3},
    {"num_return_sequences": 2, "num_beams": 2}, {"suppress_tokens": [*range(3, 140)]},
    {"begin_suppress_tokens": [*range(3, 140)]}, {"bad_words_ids": [[token] for token in range(3, 140)]},
    {"forced_eos_token_id": 9}, {"sequence_bias": [[[7], 99.0]]}, {"min_new_tokens": 8}, {"guidance_scale": 3.0},
    {"exponential_decay_length_penalty": (1, 9.0)}, {"temperature": 0.01},
]  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("own", SHAPING, ids=[next(iter(row)) for row in SHAPING])
def test_the_models_own_generation_settings_shape_nothing(own, temperature, policy, by_generate, monkeypatch):
    """Llama-3.1's generation_config.json says top_p = 0.9 and temperature = 0.6, others' a repetition penalty."""
    model, tokenizer = policy
    ask = dict(max_new_tokens=8, temperature=temperature, seed=5)
    plain = complete(model, tokenizer, CHATS, **ask)
    for name, value in own.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert complete(model, tokenizer, CHATS, **ask) == plain


def test_sampling_by_generate_draws_from_all_tokens(policy, by_generate, monkeypatch):
    """The frequencies of the first token are the softmax; false alarm below 1e-6 (Hoeffding, 256 tokens)."""
    model, tokenizer = policy
    monkeypatch.setattr(model.generation_config, "top_p", 0.5)
    n, chat = 4000, CHATS[:1]
    ids = tokenizer(completions.render(tokenizer, chat)[0], add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = (model(ids).logits[0, -1].float() / 2.0).softmax(-1)
    seen = torch.zeros_like(expected)
    rows = completions._generate_rows(model, tokenizer, [ids[0].tolist()] * n, 1, 2.0)
    for row in rows:
        seen[row[0]] += 1 / n
    assert (seen - expected).abs().max() < 0.055
    assert seen[expected < expected.median()].sum() > 0.3  # a top-p of 0.5 would leave these out
