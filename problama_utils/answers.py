"""Read the final answer out of a completion and grade it: right, wrong, or unjudged.

Grading knows nothing of rewards. A reward may pay for form or brevity; whether an answer is *right* is decided here,
once, and the evaluation imports this module and never `rewards`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import Enum

# DOTALL: answers may stand on a line of their own. Without it every multi-line answer silently scores 0.
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_LEADS_IN = re.compile(r"\b(?:answer|solution)\s*(?:is|:)\s*([^\n.!?]+)", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:a|an|the|it is|it's|its|my|your|i am|i'm)\s+")
MAX_CHARACTERS = 2_000  # a completion longer than this is read up to here; the budget of tokens ends far earlier


class Verdict(Enum):
    """What a judge can say of a completion. `UNJUDGED` is not `WRONG`: no single answer could be read."""

    RIGHT = "right"
    WRONG = "wrong"
    UNJUDGED = "unjudged"


def strict_answer(completion: str) -> str | None:
    """Return the text between the tags, if the completion has exactly one well-formed, non-empty pair; else None.

    Two pairs are two answers, and a judge does not get to pick the better one.

    >>> strict_answer("<answer>A map</answer>")
    'A map'
    >>> strict_answer("<answer>map</answer> or <answer>globe</answer>") is None
    True
    """
    text = completion[:MAX_CHARACTERS]
    found = _TAGGED.findall(text)
    if len(found) != 1 or len(_TAG.findall(text)) != 2:
        return None
    inside = found[0].strip()
    return inside or None


def lenient_answer(completion: str) -> str | None:
    """Return the strict answer, or the best reading of a completion without proper tags, or None.

    In this order: the tags; what follows an opening tag that was never closed; what follows "answer is" or
    "answer:"; the whole text, when it is one line. Meant for measuring how much of a gain is format.

    >>> lenient_answer("The answer is a map.")
    'a map'
    """
    text = completion[:MAX_CHARACTERS].strip()
    strict = strict_answer(text)
    if strict is not None:
        return strict
    tags = _TAG.findall(text)
    if len(tags) == 1 and text.lower().count("<answer>") == 1:
        return text[text.lower().index("<answer>") + len("<answer>") :].strip() or None
    if tags:
        return None
    led_in = _LEADS_IN.findall(text)
    if led_in:
        return led_in[-1].strip() or None
    return text if text and "\n" not in text else None


def normalise(answer: str) -> str:
    """Return the answer as graders compare it: lower case, no article or punctuation, single spaces.

    >>> normalise("  It's  a MAP! ")
    'map'
    """
    text = unicodedata.normalize("NFKC", answer).casefold().replace("’", "'").strip()
    text = _ARTICLE.sub("", text)
    text = re.sub(r"[^\w\s]", " ", text)
    text = " ".join(text.split())
    return _ARTICLE.sub("", text)


def grade(answer: str | None, accepted: Iterable[str]) -> Verdict:
    """Compare one read answer with the accepted ones, after normalising both sides.

    Args:
        answer: from `strict_answer` or `lenient_answer`; None is unjudged.
        accepted: the answer and its aliases. A list of several guesses inside the tags equals none of them.

    >>> grade("The honeybee.", ["bee", "honeybee"])
    <Verdict.RIGHT: 'right'>
    """
    if answer is None or not normalise(answer):
        return Verdict.UNJUDGED
    return Verdict.RIGHT if normalise(answer) in {normalise(text) for text in accepted} else Verdict.WRONG


def read_letter(answer: str | None, labels: Sequence[str]) -> str | None:
    """Return the one choice label that an answer names, else None ("A or B" names two and is not read).

    >>> read_letter("(b) the magnet", ["A", "B", "C", "D"])
    'B'
    >>> read_letter("A or B", ["A", "B", "C", "D"]) is None
    True
    """
    if answer is None:
        return None
    # A lone capital, or a letter set off by brackets or punctuation; the article "a" in a sentence is not a choice.
    text = unicodedata.normalize("NFKC", answer).strip()
    if text.upper().strip("().:[] ") in labels:
        return text.upper().strip("().:[] ")
    named = {m.upper() for m in re.findall(r"\b([A-Z])\b(?!['’])", text) if m in labels and m != "A"}
    named |= {m.upper() for m in re.findall(r"(?:^|[\s(\[])([A-Za-z])(?=[):.\]])", text) if m.upper() in labels}
    after_word = re.findall(r"\b(?:option|choice|letter)\s+([A-Za-z])\b", text, re.IGNORECASE)
    named |= {m.upper() for m in after_word if m.upper() in labels}
    if re.search(r"\bA\b(?=\s*(?:$|,|or\b|and\b|/))", text) and "A" in labels:
        named.add("A")
    return named.pop() if len(named) == 1 else None


def grade_letter(answer: str | None, right: str, labels: Sequence[str]) -> Verdict:
    """Grade a multiple-choice answer: unjudged unless exactly one label is named."""
    letter = read_letter(answer, labels)
    if letter is None:
        return Verdict.UNJUDGED
    return Verdict.RIGHT if letter == right else Verdict.WRONG
