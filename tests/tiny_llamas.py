"""Random Llamas of a few thousand weights, made on the spot: the real architecture in milliseconds."""

import torch

VOCABULARY = 32
PAD, EOS = 30, 31
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_llama(seed=0, *, heads=4, kv_heads=2, hidden=32, **settings):
    """A LlamaForCausalLM with weights large enough that its distributions are far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=256,
        initializer_range=0.25, pad_token_id=PAD, bos_token_id=None, eos_token_id=EOS, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def with_lora(model, *, targets=SEVEN, **settings):
    """A LoRA adapter whose B is random as well, so that it changes the outputs."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(model, LoraConfig(target_modules=list(targets), **options))


def tiny_tokenizer():
    """Words w0 … w29, <pad> and <eos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(PAD)} | {"<pad>": PAD, "<eos>": EOS}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", padding_side="left")
