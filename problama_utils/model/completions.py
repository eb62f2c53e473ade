"""What a policy answers to chats: one completion each, greedily or sampled.

A Llama on a CPU answers through `engine.sampling`, which reads what prompts share once; every other model, and every
GPU, through transformers' `generate`. Greedily both say the same (in fp32, where nothing is rounded apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from problama_utils.model.likelihood import llama_for_cpu

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from problama_utils.engine.decoding import DecodingWeights

Chat = list[dict[str, str]]
# `generate` takes what a call leaves open from the model's own generation_config; Llama-3.1's says top_p = 0.9.
ALL_TOKENS = {"top_k": 0, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0,
              "eta_cutoff": 0.0}  # fmt: skip
UNSHAPED = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
            "min_length": 0, "min_new_tokens": None, "bad_words_ids": None, "suppress_tokens": None,
            "begin_suppress_tokens": None, "forced_eos_token_id": None, "sequence_bias": None,
            "exponential_decay_length_penalty": None, "guidance_scale": None}  # fmt: skip


def render(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> list[str]:
    """Return the text that the model really reads for each chat, up to where its answer begins."""
    return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], *, max_new_tokens: int = 24,
    batch_size: int = 32, temperature: float = 0.0, seed: int = 0, weights: DecodingWeights | None = None,
) -> list[str]:
    """Return one completion per chat, in order; the model is left in evaluation mode.

    Args:
        max_new_tokens: budget per completion, tokens.
        batch_size: chats per call; sorted by length, so that little padding is computed.
        temperature: 0 takes the likeliest token each time (greedy); above 0 samples from all tokens, with `seed`.
        weights: the model's projections laid out for decoding, to be kept between calls.

    Raises:
        CourseError: the model's logits are no finite numbers, so its weights are broken.
    """
    import torch

    model.eval()
    texts = render(tokenizer, chats)
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    order = sorted(range(len(tokens)), key=lambda i: (-len(tokens[i]), tokens[i]))
    generator = torch.Generator().manual_seed(seed)
    shares_prompts = weights is not None or llama_for_cpu(model) is not None
    if temperature > 0 and not shares_prompts:
        torch.manual_seed(seed)
    answers = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        prompts = [tokens[i] for i in rows]
        if shares_prompts:
            new = _write_rows(model, tokenizer, prompts, max_new_tokens, temperature, generator, weights)
        else:
            new = _generate_rows(model, tokenizer, prompts, max_new_tokens, temperature)
        for i, text in zip(rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[i] = text
    return answers


def _write_rows(model, tokenizer, rows, max_new_tokens, temperature, generator, weights) -> list[list[int]]:
    from problama_utils.engine.sampling import Sampling, sample_completions

    ends = model.generation_config.eos_token_id  # what `generate` stops at: a number, a list or None
    ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    sampling = Sampling(max_new_tokens, temperature=temperature or 1.0, greedy=temperature == 0,
                        stop_token_ids=tuple({end for end in ends if end is not None}))
    rollouts = sample_completions(model, rows, sampling, generator=generator, weights=weights)
    return [rollout.token_ids for rollout in rollouts]


def _generate_rows(model, tokenizer, rows, max_new_tokens, temperature) -> list[list[int]]:
    import torch
    from transformers import LogitsProcessorList

    def check(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        finite = logits.amax(-1).isfinite()  # NaN wins every maximum; -inf alone is a token that is switched off
        if not finite.all():
            token, row = ids.shape[1] - width + 1, int(finite.int().argmin()) + 1
            from problama_utils.engine.layers import not_finite

            raise not_finite(model, f"NaN or infinite at token {token} of completion {row}")
        return logits

    width = max(map(len, rows))
    # The side is said here: unsloth sets the tokenizer's own to "right" whenever it attaches, trains or samples.
    batch = tokenizer.pad({"input_ids": rows}, padding=True, padding_side="left", return_tensors="pt").to(model.device)
    how = {"do_sample": True, "temperature": temperature, **ALL_TOKENS} if temperature > 0 else {"do_sample": False}
    with torch.inference_mode():
        ids = model.generate(**batch, **how, **UNSHAPED, max_new_tokens=max_new_tokens,
                             pad_token_id=tokenizer.pad_token_id, logits_processor=LogitsProcessorList([check]))
    return ids[:, width:].tolist()
