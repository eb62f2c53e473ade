"""Score a policy on held-out problems: one record per question, so that every figure can be taken apart.

Two ways of asking. *Generated*: the policy answers a chat greedily and its letter is read strictly (inside the tags)
and leniently; what cannot be read is counted, not hidden. *Log-likelihood*: the choice whose text the policy finds most
likely after "Question: … Answer:", which needs no format at all. Grading comes from `answers`; rewards play no part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from problama_utils import prompts
from problama_utils.answers import Verdict, grade, grade_letter, lenient_answer, read_letter, strict_answer
from problama_utils.uncertainty import wilson_interval

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Chat = list[dict[str, str]]


def render(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> list[str]:
    """Return the text that the model really reads for each chat, up to where its answer begins."""
    return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 16,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Return one completion per chat, in order.

    Args:
        model: policy; left in evaluation mode.
        tokenizer: with left padding (see `models.load_policy`).
        chats: N chats.
        max_new_tokens: budget per completion, tokens.
        batch_size: chats per call; sorted by length, so that little padding is computed.
        temperature: 0 takes the likeliest token each time (greedy); above 0 samples.
        seed: of the sampling.
    """
    import torch

    model.eval()
    texts = render(tokenizer, chats)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    how: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens}
    if temperature > 0:
        how["temperature"] = temperature
        torch.manual_seed(seed)
    answers = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True, add_special_tokens=False)
        batch = batch.to(model.device)
        with torch.inference_mode():
            ids = model.generate(**batch, **how, pad_token_id=tokenizer.pad_token_id)
        new = ids[:, batch["input_ids"].shape[1] :]
        for i, text in zip(rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[i] = text
    return answers


def text_log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 32,
) -> list[float]:
    """Return log p(continuation | context) in nats for each `(context, continuation)` pair, summed over its tokens."""
    import torch

    model.eval()
    rows = []
    for context, continuation in pairs:
        head = tokenizer(context, add_special_tokens=False)["input_ids"]
        rows.append((head, tokenizer(context + continuation, add_special_tokens=False)["input_ids"]))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][1]))
    scores = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        width = len(rows[picked[0]][1])
        ids = torch.full((len(picked), width), tokenizer.pad_token_id)
        for row, i in enumerate(picked):  # right padding: with causal attention it cannot reach the tokens before it
            ids[row, : len(rows[i][1])] = torch.tensor(rows[i][1])
        first = min(len(rows[i][0]) for i in picked)  # logits before the shortest context's end are never read
        with torch.inference_mode():
            logits = model(ids.to(model.device), logits_to_keep=width - first + 1).logits.float()
        for row, i in enumerate(picked):
            head, whole = rows[i]
            at = torch.arange(len(head) - 1, len(whole) - 1) - (first - 1)
            chosen = torch.tensor(whole[len(head) :], device=logits.device)
            scores[i] = logits[row, at].log_softmax(-1).gather(-1, chosen[:, None]).sum().item()
    return scores


def score_science(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    system: bool,
    max_new_tokens: int = 24,
) -> pd.DataFrame:
    """Return one row per science question, answered zero-shot with or without the system prompt.

    Columns: `policy, system, id, prompt_hash, completion, right, strict, lenient, correct_strict, correct_lenient`,
    where `strict` and `lenient` are verdicts ("right", "wrong", "unjudged").
    """
    import pandas as pd

    rows = list(questions)
    chats = [prompts.science_messages(row, system=system) for row in rows]
    completions = complete(model, tokenizer, chats, max_new_tokens=max_new_tokens)
    records = []
    hashes = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in render(tokenizer, chats)]
    for row, text, prompt_hash in zip(rows, completions, hashes, strict=True):
        records.append({"policy": policy, "system": system, "id": row["id"], "prompt_hash": prompt_hash,
                        "completion": text, "right": row["answer"],
                        **_letter_verdicts(text, row["answer"], row["labels"])})
    return pd.DataFrame(records)


def score_science_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Iterable[Mapping[str, Any]], *, policy: str
) -> pd.DataFrame:
    """Return one row per question, answered by the choice with the highest log-likelihood in plain cloze form.

    Columns: `policy, id, right, chosen, correct`. The prompt is "Question: …\\nAnswer:", as in lm-evaluation-harness.
    """
    import pandas as pd

    rows = list(questions)
    pairs = [(f"Question: {row['question']}\nAnswer:", f" {choice}") for row in rows for choice in row["choices"]]
    scores = iter(text_log_likelihoods(model, tokenizer, pairs))
    records = []
    for row in rows:
        of_choices = [next(scores) for _ in row["choices"]]
        chosen = row["labels"][of_choices.index(max(of_choices))]
        records.append({"policy": policy, "id": row["id"], "right": row["answer"], "chosen": chosen,
                        "correct": chosen == row["answer"]})
    return pd.DataFrame(records)


def score_riddles(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    riddles: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    few_shot: bool = True,
    max_new_tokens: int = 16,
) -> pd.DataFrame:
    """Return one row per riddle, answered greedily: `policy, id, riddle, answer, completion, verdict, correct`."""
    import pandas as pd

    rows = list(riddles)
    chats = [prompts.riddle_messages(row, few_shot=few_shot) for row in rows]
    completions = complete(model, tokenizer, chats, max_new_tokens=max_new_tokens)
    records = []
    for row, text in zip(rows, completions, strict=True):
        verdict = grade(strict_answer(text), [row["answer"], *row["aliases"]])
        records.append({"policy": policy, "id": row["id"], "riddle": row["riddle"], "answer": row["answer"],
                        "completion": text, "verdict": verdict.value, "correct": verdict is Verdict.RIGHT})
    return pd.DataFrame(records)


def score_physical(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    few_shot: bool = True,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row per two-option question, answered with a letter: greedily, or sampled at a temperature above 0.

    Columns: `policy, id, goal, answer, completion, letter, strict, lenient, correct_strict, correct_lenient`; `letter`
    is what could be read strictly, None where nothing could.
    """
    import pandas as pd

    rows, labels = list(questions), ("A", "B")
    chats = [prompts.piqa_messages(row, few_shot=few_shot) for row in rows]
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    completions = complete(model, tokenizer, chats, **sampling)
    records = []
    for row, text in zip(rows, completions, strict=True):
        right = prompts.piqa_letter(row)
        records.append({"policy": policy, "id": row["id"], "goal": row["goal"], "answer": right, "completion": text,
                        "letter": read_letter(strict_answer(text), labels), **_letter_verdicts(text, right, labels)})
    return pd.DataFrame(records)


def score_physical_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Iterable[Mapping[str, Any]], *, policy: str
) -> pd.DataFrame:
    """Return one row per two-option question, answered by the option whose full text is likelier.

    Columns: `policy, id, score1, score2, chosen, correct`; scores are log-likelihoods in nats, `chosen` is 1 or 2.
    """
    import pandas as pd

    rows = list(questions)
    pairs = [(f"Question: {row['goal']}\nAnswer:", f" {row[key]}") for row in rows for key in ("sol1", "sol2")]
    scores = iter(text_log_likelihoods(model, tokenizer, pairs))
    records = []
    for row in rows:
        first, second = next(scores), next(scores)
        chosen = 1 if first >= second else 2
        records.append({"policy": policy, "id": row["id"], "score1": first, "score2": second, "chosen": chosen,
                        "correct": chosen == row["label"] + 1})
    return pd.DataFrame(records)


def _letter_verdicts(text: str, right: str, labels: Sequence[str]) -> dict[str, Any]:
    strict = grade_letter(strict_answer(text), right, labels)
    lenient = grade_letter(lenient_answer(text), right, labels)
    return {"strict": strict.value, "lenient": lenient.value,
            "correct_strict": strict is Verdict.RIGHT, "correct_lenient": lenient is Verdict.RIGHT}


def share_with_interval(correct: pd.Series) -> str:
    """Return a share of right answers as text with its 95 % Wilson interval: `25.0 % (17 to 35 %, n = 80)`."""
    right, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(right, n)
    return f"{100 * right / n:.1f} % ({100 * low:.0f} to {100 * high:.0f} %, n = {n})"
