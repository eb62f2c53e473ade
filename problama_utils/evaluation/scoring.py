"""Score a policy on held-out problems: one record per question, so that every figure can be taken apart.

Two ways of asking. *Generated*: the policy answers a chat greedily and its letter is read strictly (inside the tags)
and leniently; what cannot be read is counted, not hidden. *Log-likelihood*: the choice whose text the policy finds most
likely, which needs no format at all, as it is (`acc` of lm-evaluation-harness) and per character (`acc_norm`). Grading
comes from `tasks.answers`; rewards play no part.

What is read before a choice whose likelihood is taken (`likelihood_context`): without the system prompt the harness's
plain "Question: …\\nAnswer:"; with it a chat of system prompt and that same question, up to where the assistant begins
(the harness's --system_instruction with --apply_chat_template). Neither contains the choices.

`python -m problama_utils.evaluation --results assets/results` prints the table of a finished study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.evaluation.records import prompt_hash
from problama_utils.evaluation.uncertainty import wilson_interval
from problama_utils.model.completions import Chat, complete, render
from problama_utils.model.likelihood import likeliest, per_character, text_log_likelihoods
from problama_utils.tasks.answers import Verdict, grade_letter, lenient_answer, read_letter, strict_answer
from problama_utils.tasks.base import Task
from problama_utils.tasks.piqa import PIQA
from problama_utils.tasks.reading import LETTERS
from problama_utils.tasks.registry import get_task
from problama_utils.tasks.riddles import RIDDLES
from problama_utils.tasks.science import SCIENCE, science_messages

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from problama_utils.engine.decoding import DecodingWeights

MAX_NEW_TOKENS = 12  # "<answer>B</answer>" and its end take 8


def lettered(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a multiple-choice question with its labels as letters (ARC has keys 1 to 4 among its A to D).

    >>> row = {"id": "q", "question": "?", "choices": ["x", "y", "z"], "labels": ["1", "2", "3"], "answer": "3"}
    >>> lettered(row)["answer"]
    'C'

    Raises:
        CourseError: not 2 to 8 choices with a label each, or an answer that is none of the labels.
    """
    labels, choices = list(row["labels"]), list(row["choices"])
    if not 2 <= len(choices) <= len(LETTERS) or len(set(labels)) != len(choices) or len(labels) != len(choices):
        raise CourseError(f"Question {row['id']!r} has {len(choices)} choices and {len(set(labels))} different labels: "
                          f"expected 2 to {len(LETTERS)} choices with a label each.")
    if row["answer"] not in labels:
        raise CourseError(f"Question {row['id']!r} has the answer {row['answer']!r}, which is none of its labels "
                          f"({', '.join(labels)}).")
    letters = list(LETTERS[: len(labels)])
    return {**row, "labels": letters, "answer": letters[labels.index(row["answer"])]}


def likelihood_context(tokenizer: PreTrainedTokenizerBase, question: str, *, system: bool) -> tuple[str, str]:
    """Return `(context, delimiter)`: what comes before a choice, and between the two; see the module."""
    cloze = f"Question: {question}\nAnswer:"
    if not system:
        return cloze, " "
    head = {"role": "system", "content": SCIENCE.system}
    return render(tokenizer, [[head, {"role": "user", "content": cloze}]])[0], ""


def choice_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Iterable[Mapping[str, Any]], *, system: bool
) -> list[list[float]]:
    """Return the log-likelihood (nats, summed over tokens) of every choice of every question."""
    rows = list(questions)
    pairs = []
    for row in rows:
        context, delimiter = likelihood_context(tokenizer, row["question"], system=system)
        pairs += [(context, delimiter + choice) for choice in row["choices"]]
    scores = iter(text_log_likelihoods(model, tokenizer, pairs))
    return [[next(scores) for _ in row["choices"]] for row in rows]


def science_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Iterable[Mapping[str, Any]], *, system: bool
) -> list[tuple[Chat, str]]:
    """Return `(chat, hash)` per question; the hash covers all that is read, by generation and by likelihood."""
    found = []
    for row in questions:
        chat = science_messages(row, system=system)
        context = likelihood_context(tokenizer, row["question"], system=system)
        found.append((chat, prompt_hash(*render(tokenizer, [chat]), *context, *row["choices"])))
    return found


def score_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    system: bool,
    max_new_tokens: int = MAX_NEW_TOKENS,
    weights: DecodingWeights | None = None,
) -> list[dict[str, Any]]:
    """Return one record per science question, answered zero-shot in both ways; its columns are `records.COLUMNS`.

    `strict` and `lenient` are the letters read, None where none could be (also where a letter is no label of the
    question); `chosen` and `chosen_norm` those of the likeliest choice, as it is and per character.
    """
    rows = [lettered(row) for row in questions]
    asked = science_prompts(tokenizer, rows, system=system)
    texts = complete(model, tokenizer, [chat for chat, _ in asked], max_new_tokens=max_new_tokens, weights=weights)
    records = []
    for row, (_, digest), text, scores in zip(
        rows, asked, texts, choice_scores(model, tokenizer, rows, system=system), strict=True
    ):
        labels = row["labels"]
        records.append({
            "policy": policy, "system": system, "id": row["id"], "prompt_hash": digest, "right": row["answer"],
            **read_letters(text, labels, row["choices"]),
            "chosen": labels[likeliest(scores)],
            "chosen_norm": labels[likeliest(per_character(scores, row["choices"]))],
            "scores": scores, "completion": text,
        })  # fmt: skip
    return records


def read_letters(text: str, labels: Sequence[str], choices: Sequence[str]) -> dict[str, str | None]:
    """Return the letters read strictly and leniently of a completion, None where none could be.

    >>> read_letters("It has vitamin B.\\nA", "AB", ["salt", "vitamin B"])
    {'strict': None, 'lenient': 'A'}
    """
    read = {"strict": strict_answer(text), "lenient": lenient_answer(text, choices)}
    return {name: read_letter(answer, labels, choices) for name, answer in read.items()}


def score_science(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    system: bool,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> pd.DataFrame:
    """Return one row per science question, answered zero-shot with or without the system prompt.

    Columns: `policy, system, id, prompt_hash, completion, right, strict, lenient, correct_strict, correct_lenient`,
    where `strict` and `lenient` are verdicts ("right", "wrong", "unjudged").
    """
    rows = [lettered(row) for row in questions]
    asked = science_prompts(tokenizer, rows, system=system)
    hashes = {row["id"]: digest for row, (_, digest) in zip(rows, asked, strict=True)}

    def read(row: Mapping[str, Any], text: str) -> dict[str, Any]:
        return {"system": system, "id": row["id"], "prompt_hash": hashes[row["id"]], "completion": text,
                "right": row["answer"], **_letter_verdicts(text, row["answer"], row["labels"], row["choices"])}

    return _answered(model, tokenizer, rows, [chat for chat, _ in asked], read, policy, max_new_tokens=max_new_tokens)


def score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str | Task,
    rows: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    few_shot: bool = True,
    max_new_tokens: int = 16,
) -> pd.DataFrame:
    """Return one row per problem of any task, answered greedily: `policy, id, answer, completion, verdict, correct`."""
    task, rows = get_task(task), list(rows)
    asked = [task.asked(row, few_shot=few_shot) for row in rows]

    def read(row: Mapping[str, Any], text: str) -> dict[str, Any]:
        verdict = task.judge(text, row)
        return {"id": row["id"], "answer": row["answer"], "completion": text, "verdict": verdict.value,
                "correct": verdict is Verdict.RIGHT}

    return _answered(model, tokenizer, asked, [row["prompt"] for row in asked], read, policy,
                     max_new_tokens=max_new_tokens)


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
    rows = list(riddles)
    table = score_task(model, tokenizer, RIDDLES, rows, policy=policy, few_shot=few_shot, max_new_tokens=max_new_tokens)
    if rows:
        table.insert(table.columns.get_loc("answer"), "riddle", [row["riddle"] for row in rows])
    return table


def score_piqa(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    few_shot: bool = True,
    **sampling: Any,
) -> pd.DataFrame:
    """Return one row per two-option question, answered with a letter: greedily, or sampled at a temperature above 0.

    Columns: `policy, id, goal, answer, completion, letter, strict, lenient, correct_strict, correct_lenient`; `letter`
    is what could be read strictly, None where nothing could. `sampling` goes to `complete` (16 new tokens by default).
    """

    def read(row: Mapping[str, Any], text: str) -> dict[str, Any]:
        right, labels, choices = PIQA.answer(row), ("A", "B"), (row["sol1"], row["sol2"])
        return {"id": row["id"], "goal": row["goal"], "answer": right, "completion": text,
                "letter": read_letter(strict_answer(text), labels, choices),
                **_letter_verdicts(text, right, labels, choices)}

    rows = list(questions)
    chats = [PIQA.messages(row, few_shot=few_shot) for row in rows]
    return _answered(model, tokenizer, rows, chats, read, policy, **{"max_new_tokens": 16, **sampling})


def score_science_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    system: bool = False,
) -> pd.DataFrame:
    """Return one row per question, answered by the choice with the highest log-likelihood (nats).

    Columns: `policy, id, right, scores, chosen, chosen_norm, correct, correct_norm`.
    """
    import pandas as pd

    rows = [lettered(row) for row in questions]
    records = []
    for row, scores in zip(rows, choice_scores(model, tokenizer, rows, system=system), strict=True):
        chosen = row["labels"][likeliest(scores)]
        chosen_norm = row["labels"][likeliest(per_character(scores, row["choices"]))]
        records.append({"policy": policy, "id": row["id"], "right": row["answer"], "scores": scores, "chosen": chosen,
                        "chosen_norm": chosen_norm, "correct": chosen == row["answer"],
                        "correct_norm": chosen_norm == row["answer"]})
    return pd.DataFrame(records)


def score_piqa_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Iterable[Mapping[str, Any]], *, policy: str
) -> pd.DataFrame:
    """Return one row per two-option question, answered by the option whose full text is likelier.

    Columns: `policy, id, score1, score2, chosen, correct`; scores are log-likelihoods in nats, `chosen` is 1 or 2.
    """
    import pandas as pd

    rows = [{**row, "question": row["goal"], "choices": [row["sol1"], row["sol2"]]} for row in questions]
    records = []
    for row, (first, second) in zip(rows, choice_scores(model, tokenizer, rows, system=False), strict=True):
        chosen = 1 + likeliest([first, second])
        records.append({"policy": policy, "id": row["id"], "score1": first, "score2": second, "chosen": chosen,
                        "correct": chosen == row["label"] + 1})
    return pd.DataFrame(records)


def _answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]],
    chats: Sequence[Chat], read: Callable[[Mapping[str, Any], str], dict[str, Any]], policy: str, **sampling: Any,
) -> pd.DataFrame:
    """Return `policy` and what `read` makes of each row and its completion, one row each."""
    import pandas as pd

    texts = complete(model, tokenizer, chats, **sampling)
    return pd.DataFrame([{"policy": policy, **read(row, text)} for row, text in zip(rows, texts, strict=True)])


def _letter_verdicts(text: str, right: str, labels: Sequence[str], choices: Sequence[str]) -> dict[str, Any]:
    strict = grade_letter(strict_answer(text), right, labels, choices)
    lenient = grade_letter(lenient_answer(text, choices), right, labels, choices)
    return {"strict": strict.value, "lenient": lenient.value,
            "correct_strict": strict is Verdict.RIGHT, "correct_lenient": lenient is Verdict.RIGHT}


def share_with_interval(correct: pd.Series) -> str:
    """Return a share of right answers as text with its 95 % Wilson interval: `25.0 % (17 to 35 %, n = 80)`."""
    right, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(right, n)
    return f"{100 * right / n:.1f} % ({100 * low:.0f} to {100 * high:.0f} %, n = {n})"
