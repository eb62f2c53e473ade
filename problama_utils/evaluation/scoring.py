"""Score a policy on held-out problems: one record per question, so that every figure can be taken apart.

`score_task` judges an open answer, as training does. `score_questions` asks questions with options in two ways.
*Letters*: the policy answers a chat and its letter is read strictly (inside the tags) and leniently; what cannot be
read is counted, not hidden. *Likelihood*: the choice whose text the policy finds most likely, which needs no format at
all, as it is (`acc` of lm-evaluation-harness) and per character (`acc_norm`). The records have the same columns in a
notebook as on disk (`evaluation.records`). Grading comes from `tasks.answers`; rewards play no part.

What is read before a choice whose likelihood is taken (`likelihood_context`): without the system prompt the harness's
plain "Question: …\\nAnswer:"; with it a chat of system prompt and that same question, up to where the assistant begins
(the harness's --system_instruction with --apply_chat_template). Neither contains the choices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.evaluation.records import COLUMNS, prompt_hash, with_verdicts
from problama_utils.evaluation.uncertainty import wilson_interval
from problama_utils.model.completions import complete, render
from problama_utils.model.likelihood import likeliest, per_character, text_log_likelihoods
from problama_utils.tasks.answers import Verdict, lenient_answer, read_letter, strict_answer
from problama_utils.tasks.base import Message, Task
from problama_utils.tasks.reading import LETTERS
from problama_utils.tasks.registry import get_task
from problama_utils.tasks.science import SCIENCE

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WAYS = ("letters", "likelihood")
MAX_NEW_TOKENS = 12  # "<answer>B</answer>" and its end take 8


def lettered(row: Mapping[str, Any], task: Task = SCIENCE) -> dict[str, Any]:
    """Return a question with `question`, `choices`, `labels` and `answer`, its labels as letters (ARC has some 1 to 4).

    >>> row = {"id": "q", "question": "?", "choices": ["x", "y", "z"], "labels": ["1", "2", "3"], "answer": "3"}
    >>> lettered(row)["answer"]
    'C'

    Raises:
        CourseError: not 2 to 8 choices with a label each, or an answer that is none of the labels.
    """
    columns, answer = task.columns(row), task.answer(row)
    labels, choices = list(columns.get("labels", ())), list(columns.get("choices", ()))
    paired = len(choices) == len(labels) == len(set(labels))
    if not paired or not 2 <= len(choices) <= len(LETTERS) or answer not in labels:
        raise CourseError(f"Question {row['id']!r} has {len(choices)} choices, the labels {labels} and the answer "
                          f"{answer!r}: expected 2 to {len(LETTERS)} choices, a label each, one of them the answer.")
    letters = list(LETTERS[: len(labels)])
    return {**row, "question": row["question"] if "question" in row else row["goal"],  # as PIQA calls it
            "choices": choices, "labels": letters, "answer": letters[labels.index(answer)]}


def likelihood_context(
    tokenizer: PreTrainedTokenizerBase, question: str, *, system: bool, task: Task = SCIENCE
) -> tuple[str, str]:
    """Return `(context, delimiter)`: what comes before a choice, and between the two; see the module."""
    cloze = f"Question: {question}\nAnswer:"
    if not system:
        return cloze, " "
    head = {"role": "system", "content": task.system}
    return render(tokenizer, [[head, {"role": "user", "content": cloze}]])[0], ""


def choice_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Iterable[Mapping[str, Any]], *,
    system: bool, task: Task = SCIENCE,
) -> list[list[float]]:
    """Return the log-likelihood (nats, summed over tokens) of every choice of every question."""
    rows = list(questions)
    pairs = []
    for row in rows:
        context, delimiter = likelihood_context(tokenizer, row["question"], system=system, task=task)
        pairs += [(context, delimiter + choice) for choice in row["choices"]]
    scores = iter(text_log_likelihoods(model, tokenizer, pairs))
    return [[next(scores) for _ in row["choices"]] for row in rows]


def question_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Iterable[Mapping[str, Any]], *, system: bool,
    few_shot: bool = False, task: Task = SCIENCE,
) -> list[tuple[list[Message], str]]:
    """Return `(chat, hash)` per question; the hash covers all that is read, by letter and by likelihood."""
    found = []
    for row in questions:
        chat = task.messages(row, few_shot=few_shot, system=system)
        context = likelihood_context(tokenizer, row["question"], system=system, task=task)
        found.append((chat, prompt_hash(*render(tokenizer, [chat]), *context, *row["choices"])))
    return found


def score_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str | Task,
    questions: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    system: bool = True,
    few_shot: bool = False,
    ways: str | Sequence[str] = WAYS,
    **sampling: Any,
) -> pd.DataFrame:
    """Return one record per question with options: science, PIQA, or a task of your own with `labels` and `choices`.

    Args:
        model: policy; left in evaluation mode.
        policy: a name for the records.
        system: with or without the system prompt, in both ways.
        few_shot: the task's solved examples before each question; letters alone read them.
        ways: "letters", "likelihood", or both; the columns of a way left out are missing.
        sampling: goes to `complete`; by default greedy, 12 new tokens.

    Returns:
        Columns `policy, system, id, prompt_hash, right`; by letters `strict`, `lenient` (the letters read, "" where
        none could be, also where it is no label of the question) and `completion`; by likelihood `chosen`,
        `chosen_norm` (the likeliest choice, as it is and per character) and `scores` (nats); then the verdicts that
        `records.with_verdicts` adds.

    Raises:
        CourseError: an unknown way, or a row without choices; see `lettered`.
    """
    import pandas as pd

    task, ways = get_task(task), [ways] if isinstance(ways, str) else list(ways)
    if not ways or set(ways) - set(WAYS):
        raise CourseError(f"Questions cannot be asked in the ways {ways}: choose of {', '.join(WAYS)}.")
    rows = [lettered(row, task) for row in questions]
    if not rows:
        raise CourseError("There are no questions to score: give at least one row.")
    asked = question_prompts(tokenizer, rows, system=system, few_shot=few_shot, task=task)
    records = [{"policy": policy, "system": system, "id": row["id"], "prompt_hash": digest, "right": row["answer"]}
               for row, (_, digest) in zip(rows, asked, strict=True)]
    if "letters" in ways:
        texts = complete(model, tokenizer, [chat for chat, _ in asked],
                         **{"max_new_tokens": MAX_NEW_TOKENS, **sampling})
        for record, row, text in zip(records, rows, texts, strict=True):
            record |= {**read_letters(text, row["labels"], row["choices"]), "completion": text}
    if "likelihood" in ways:
        found = choice_scores(model, tokenizer, rows, system=system, task=task)
        for record, row, scores in zip(records, rows, found, strict=True):
            best, best_norm = likeliest(scores), likeliest(per_character(scores, row["choices"]))
            record |= {"chosen": row["labels"][best], "chosen_norm": row["labels"][best_norm], "scores": scores}
    return with_verdicts(pd.DataFrame(records, columns=[name for name in COLUMNS if name in records[0]]))


def read_letters(text: str, labels: Sequence[str], choices: Sequence[str]) -> dict[str, str]:
    """Return the letters read strictly and leniently of a completion, "" where none could be.

    >>> read_letters("It has vitamin B.\\nA", "AB", ["salt", "vitamin B"])
    {'strict': '', 'lenient': 'A'}
    """
    read = {"strict": strict_answer(text), "lenient": lenient_answer(text, choices)}
    return {name: read_letter(answer, labels, choices) or "" for name, answer in read.items()}


def score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str | Task,
    rows: Iterable[Mapping[str, Any]],
    *,
    policy: str,
    few_shot: bool = True,
    **sampling: Any,
) -> pd.DataFrame:
    """Return one row per problem of any task, judged as in training; `sampling` goes to `complete` (greedy, 16 tokens).

    Columns: `policy, id, question, answer, completion, verdict, correct`.
    """
    import pandas as pd

    task, rows = get_task(task), list(rows)
    asked = [task.asked(row, few_shot=few_shot) for row in rows]
    texts = complete(model, tokenizer, [row["prompt"] for row in asked], **{"max_new_tokens": 16, **sampling})
    verdicts = [task.judge(text, row) for text, row in zip(texts, asked, strict=True)]
    return pd.DataFrame([
        {"policy": policy, "id": row["id"], "question": row["prompt"][-1]["content"], "answer": row["answer"],
         "completion": text, "verdict": verdict.value, "correct": verdict is Verdict.RIGHT}
        for row, text, verdict in zip(asked, texts, verdicts, strict=True)
    ])  # fmt: skip


def share_with_interval(correct: pd.Series) -> str:
    """Return a share of right answers as text with its 95 % Wilson interval: `25.0 % (17 to 35 %, n = 80)`."""
    right, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(right, n)
    return f"{100 * right / n:.1f} % ({100 * low:.0f} to {100 * high:.0f} %, n = {n})"
