"""Shared pieces of the tests: a Llama small enough to be made on the spot, with a chat template."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

import problama_utils  # noqa: F401  before any test loads torch: it sets how torch's threads wait

# A shell that starts tests in the background lets them ignore Ctrl-C, and with them the children that tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub, nor wait for one that is not there


def pytest_generate_tests(metafunc):
    """PROBLAMA_TEST_SEED="0 1 2" runs every test that takes `seed` once for each of them (benchmarks/robust.py)."""
    given = {name for mark in metafunc.definition.iter_markers("parametrize") for name in str(mark.args[0]).split(",")}
    seeds = os.environ.get("PROBLAMA_TEST_SEED", "").split()
    if seeds and "seed" in metafunc.fixturenames and "seed" not in given:
        metafunc.parametrize("seed", [int(seed) for seed in seeds], indirect=True, scope="module",
                             ids=[f"seed {seed}" for seed in seeds])


def pytest_collection_modifyitems(items):
    """What teaches a policy and then trains it takes many seconds: it belongs to the slow group."""
    for item in items:
        if "taught" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def seed(request) -> int:
    """The seed of a test's training or sampling: the module's SEED, or each of PROBLAMA_TEST_SEED."""
    return getattr(request, "param", getattr(request.module, "SEED", 0))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A folder with a two-layer Llama and a byte-level tokenizer: what PROBLAMA_MODEL may point at."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*special, *alphabet])}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<|im_end|>",
                                        additional_special_tokens=["<|im_start|>"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
                         pad_token_id=0, eos_token_id=2, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(tiny_model_dir):
    """The two-layer Llama in fp32 and its tokenizer, loaded as the course loads a policy."""
    from problama_utils.config import get_profile
    from problama_utils.model.loading import load_policy

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
        model, tokenizer = load_policy(get_profile("cpu"), seed=0)
    return model.float(), tokenizer
