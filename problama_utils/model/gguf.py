"""A Llama folder as one GGUF file, the format of llama.cpp, Ollama and LM Studio; nothing is quantised or rounded.

The layout is that of llama.cpp's convert_hf_to_gguf.py: matrices keep the folder's type, vectors are fp32, the rows of
query and key are reordered for its rotary embedding, Llama-3.1's stretched wavelengths become `rope_freqs`. That
converter comes in no package of its own project. What cannot be written right is refused before a byte is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.model.weights import first_line

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter
    from transformers import LlamaConfig, PreTrainedTokenizerBase

ELSE = "convert this one with llama.cpp's own convert_hf_to_gguf.py"
LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
           r"\s+(?!\S)|\s+")  # fmt: skip
# How tokenizer.json cuts a text before it merges → llama.cpp's name for that.
CUTS = {("words",): "gpt-2", ("digits", "words"): "smollm", (LLAMA_3, "bytes"): "llama-bpe"}
# The Llamas that are written here, by their config.json.
PLAIN = {"model_type": ("llama",), "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
         "rope_type": ("default", "llama3")}  # fmt: skip


def write_gguf(folder: Path, file: Path) -> None:
    """Write a folder's Llama and its tokenizer to `file`; one tensor at a time is in memory.

    Raises:
        CourseError: no plain Llama, a weight missing or not finite, or no byte-level BPE that llama.cpp has a name for.
    """
    from gguf import GGUFWriter
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, LlamaConfig

    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        config = LlamaConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CourseError(f"config.json or the tokenizer of {folder.name!r} cannot be read ({first_line(error):.160}): "
                          "write the model and its tokenizer again with save_merged.") from error
    writer = GGUFWriter(file, "llama")
    _describe_model(writer, config, kind, folder.name)
    _describe_tokenizer(writer, tokenizer, config.vocab_size)
    try:
        for name, tensor in _tensors(folder, config):
            numbers, kind = _as_numpy(tensor)
            writer.add_tensor_info(name, numbers.shape, numbers.dtype, numbers.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in _tensors(folder, config):
            writer.write_tensor_data(_as_numpy(tensor)[0])
    except SafetensorError as error:
        raise CourseError(f"The weights of {folder.name!r} cannot be read ({first_line(error):.160}): write the model "
                          "again with save_merged.") from error
    finally:
        writer.close()


def _describe_model(writer: GGUFWriter, config: LlamaConfig, kind: str, name: str) -> None:
    found = {**config.to_dict(), "model_type": kind}  # a LlamaConfig calls itself "llama" whatever it was read from
    found |= found.get("rope_parameters") or {}
    for setting, plain in PLAIN.items():
        if found.get(setting) not in plain:
            raise CourseError(f"config.json has {setting} = {found.get(setting)!r}, and the course writes GGUF files "
                              f"of plain Llamas ({' or '.join(map(repr, plain))}) only: {ELSE}.")
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _describe_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    from gguf import TokenType

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe, merges = parts["model"], parts["model"].get("merges")
    cut = CUTS.get(tuple(_cuts(parts["pre_tokenizer"])))
    normaliser = parts["normalizer"] or {"normalizers": []}
    if bpe["type"] != "BPE" or not merges or cut is None or normaliser.get("normalizers") != [] or (
            bool(bpe.get("ignore_merges")) != (cut == "llama-bpe")):
        raise CourseError("The tokenizer is no byte-level BPE of GPT-2's, SmolLM's or Llama-3's kind with merges, and "
                          f"llama.cpp would cut texts otherwise than this model learned: {ELSE}.")
    if len(tokenizer) > vocab_size:
        raise CourseError(f"The tokenizer has {len(tokenizer):,} tokens and the model {vocab_size:,}: {ELSE}.")
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    kinds = [TokenType.UNUSED] * vocab_size
    for token, i in bpe["vocab"].items():
        tokens[i], kinds[i] = token, TokenType.NORMAL
    for added in parts["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    for role, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id),
                      ("unk", writer.add_unk_token_id), ("pad", writer.add_pad_token_id)):
        if (token_id := getattr(tokenizer, f"{role}_token_id")) is not None:
            add(token_id)
    encoded = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(encoded[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(encoded[-1] == tokenizer.eos_token_id)
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _cuts(node: dict[str, Any] | None) -> Iterator[str]:
    """Yield how tokenizer.json cuts a text, step by step; "?" for what llama.cpp is not known to do alike."""
    kind = (node or {}).get("type")
    if kind == "Sequence":
        for part in node["pretokenizers"]:
            yield from _cuts(part)
    elif kind == "ByteLevel" and not node["add_prefix_space"]:
        yield "words" if node["use_regex"] else "bytes"
    elif kind == "Digits" and node["individual_digits"]:
        yield "digits"
    elif kind == "Split" and node["behavior"] == "Isolated" and not node["invert"]:
        yield node["pattern"].get("Regex", "?")
    else:
        yield "?"


def _tensors(folder: Path, config: LlamaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield llama.cpp's name and numbers of every weight in the folder's safetensors files."""
    import torch
    from gguf import MODEL_ARCH, get_tensor_name_map
    from safetensors import safe_open
    from transformers import LlamaForCausalLM

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  a file, not a mapping
                tensor = weights.get_tensor(key)
                if key == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                if shapes.pop(key, None) != tensor.shape or not tensor.isfinite().all():
                    raise CourseError(f"The weight {key!r} of {folder.name!r} is not part of its architecture, has "
                                      "another shape, or is not finite: save the model again with save_merged.")
                layer = key.split(".")[-2]
                if layer in heads:  # from halves (transformers) to neighbours (llama.cpp), within each head
                    halves = tensor.reshape(heads[layer], 2, -1, *tensor.shape[1:])
                    tensor = halves.transpose(1, 2).reshape(tensor.shape)
                yield f"{names.get_name(key.removesuffix('.weight'))}.weight", tensor
    if shapes:
        raise CourseError(f"{folder.name!r} lacks {len(shapes)} weights, {next(iter(shapes))!r} among them: save the "
                          "model again with save_merged.")
    if config.rope_parameters["rope_type"] == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        halves = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        plain = config.rope_parameters["rope_theta"] ** -halves
        yield "rope_freqs.weight", plain / stretched


def _as_numpy(tensor: torch.Tensor) -> tuple[Any, Any]:
    """Return the numbers as numpy and llama.cpp's name of their type; vectors in fp32, which its kernels expect."""
    import torch
    from gguf import GGMLQuantizationType

    if tensor.dim() == 1 or tensor.dtype not in (torch.bfloat16, torch.float16):
        return tensor.float().numpy(), GGMLQuantizationType.F32
    if tensor.dtype == torch.float16:
        return tensor.numpy(), GGMLQuantizationType.F16
    return tensor.contiguous().view(torch.uint8).numpy(), GGMLQuantizationType.BF16  # numpy knows no bf16
