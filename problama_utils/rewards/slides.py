"""The slides' three rewards, their total, and nothing else.

TRL calls a reward function with keyword columns of equal length and wants one number per completion. The functions
here never raise on any text. They are:

    correct answer   2.0 when the strictly tagged answer is right, else 0.0
    short response   0.5 up to 10 words, falling in a line to 0.0 at 30 words; 0.0 when there is no answer to be short;
                     20 characters without a space are a word, so that glued words have a length too
    soft format      0.5 for exactly one `<answer>…</answer>` pair with something inside, text around it allowed

The deck shows the curves of these rewards but not their code, so the amounts are ours: a right answer (2.0) must
outweigh everything that can be had without one (1.0). The total that GRPO sees is their sum, 3.0 at most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from problama_utils.tasks.answers import LONGEST, Verdict, judge, lenient_answer, normalise, strict_answer
from problama_utils.tasks.base import Task

Completion = str | list[dict[str, object]] | None
RewardFunction = Callable[..., list[float | None]]

CORRECT, SHORT, FORMAT = 2.0, 0.5, 0.5
WORD_CHARACTERS = 20  # a longer run without a space counts as several words
_TAG = re.compile(r"</?answer>", re.IGNORECASE)


def completion_text(completion: Completion) -> str:
    """Return the text of a completion; TRL hands over a list of chat messages where the prompt was a chat.

    Only the assistant's turns are its answer, each on lines of its own; a turn may have no content (a tool call) or
    a list of parts, of which the text counts.

    >>> completion_text([{"role": "assistant", "content": None}, {"role": "assistant", "content": "a map"}])
    'a map'
    """
    if completion is None or isinstance(completion, str):
        return completion or ""
    texts = []
    for turn in completion:
        content = turn.get("content") if turn.get("role", "assistant") == "assistant" else None
        if isinstance(content, list):
            content = " ".join(part["text"] for part in content if isinstance(part.get("text"), str))
        texts += [content] if content else []
    return "\n".join(texts)


def word_count(text: str) -> int:
    """Return how many words a text has, its answer tags not counted; 20 characters without a space are one word.

    Only the first `LONGEST` characters are read; a longer text is no answer, and earns nothing.

    >>> word_count("It is <answer>a bee</answer>"), word_count("because-" * 50)
    (4, 20)
    """
    return sum(max(1, math.ceil(len(_TAG.sub("", chunk)) / WORD_CHARACTERS)) for chunk in text[:LONGEST].split())


def correct_answer_reward(
    completions: Sequence[Completion],
    answer: Sequence[str],
    aliases: Sequence[Sequence[str] | None] | None = None,
    labels: Sequence[Sequence[str] | None] | None = None,
    choices: Sequence[Sequence[str] | None] | None = None,
    **_: object,
) -> list[float | None]:
    """Pay 2.0 for a right answer inside the tags, else 0.0.

    Args:
        completions: P·G completions, as TRL passes them.
        answer: P·G right answers: a short text, or a choice letter where `labels` is given.
        aliases: P·G lists of other answers that count as right (riddles).
        labels: P·G lists of the letters on offer (multiple choice).
        choices: P·G lists of the options' texts in that order, where they are known: their letters are no choice.

    Returns:
        P·G rewards; None where a row has no answer to compare with ("cannot be judged" is not 0).
    """
    columns = (column if column is not None else [None] * len(answer) for column in (aliases, labels, choices))
    rewards: list[float | None] = []
    for completion, right, others, letters, texts in zip(completions, answer, *columns, strict=True):
        if not right:
            rewards.append(None)
            continue
        given = strict_answer(completion_text(completion))
        verdict = judge(given, right, others, letters, texts)
        rewards.append(CORRECT if verdict is Verdict.RIGHT else 0.0)
    return rewards


def short_response_reward(completions: Sequence[Completion], **_: object) -> list[float | None]:
    """Pay up to 0.5 for brevity: all of it to 10 words, none from 30; an empty answer is not a short one.

    >>> short_response_reward(["<answer>map</answer>", ""])
    [0.5, 0.0]
    """
    return [brevity(completion_text(completion)) for completion in completions]


def brevity(text: str, full: int = 10, none: int = 30) -> float:
    """Return what a text earns for brevity: 0.5 up to `full` words, falling in a line to 0.0 at `none`."""
    share = (none - word_count(text)) / (none - full)
    answered = bool(normalise(lenient_answer(text) or ""))
    return SHORT * min(1.0, max(0.0, share)) if answered else 0.0


def soft_format_reward(completions: Sequence[Completion], **_: object) -> list[float | None]:
    """Pay 0.5 when exactly one pair of answer tags holds something that can be compared.

    >>> soft_format_reward(["I think <answer>map</answer>.", "<answer></answer>", "map"])
    [0.5, 0.0, 0.0]
    """
    read = [strict_answer(completion_text(completion)) for completion in completions]
    return [FORMAT if answer is not None and normalise(answer) else 0.0 for answer in read]


SLIDE_REWARDS: tuple[RewardFunction, ...] = (correct_answer_reward, short_response_reward, soft_format_reward)


def rewards_of(task: Task) -> tuple[RewardFunction, ...]:
    """Return the reward functions of a task: its own, else the slides' three."""
    return task.rewards or SLIDE_REWARDS


def total_reward(completions: Sequence[Completion], **columns: object) -> list[float]:
    """Return the sum of the slides' three rewards per completion; a component that cannot be judged adds nothing."""
    parts = [function(completions=completions, **columns) for function in SLIDE_REWARDS]
    return [sum(value for value in row if value is not None) for row in zip(*parts, strict=True)]
