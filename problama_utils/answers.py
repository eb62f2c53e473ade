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
# What a reader takes for a tag: `<answer >`, `< /ANSWER>`, `<answer id="2">`. A second answer must not hide in one.
_OPENING, _CLOSING = (re.compile(rf"<{slash}\s*answer(?:\s[^<>]*)?>", re.IGNORECASE) for slash in ("", r"\s*/"))
_LEADS_IN = re.compile(r"\b(?:answer|solution)\s*(?:is|:)\s*([^\n.!?]+)", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:(?:a|an|the|it is|it's|its|my|your|i am|i'm)\s+)+")
# "not B", "neither A", "isn't B", "B is wrong": a judge does not infer the answer from what it is not.
_DENIED = re.compile(r"(?i:\bnot|n't|\bneither|\bnor|\bnever|\bexcept|\banything but)\s+(?i:(?:the\s+)?"
                     r"(?:option|choice|letter|answer)\s+)?[\"'(\[*]*([A-Z]|[a-z](?!\s+\w))\b(?!['’])"
                     r"|\b([A-Z])\s+(?:is|was)(?:\s+not\b|n't|\s+(?:wrong|incorrect|false)\b)")
# Unicode's Default_Ignorable_Code_Point: nothing is drawn for them, and several count as letters.
_INVISIBLE = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
                        "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
                        "\U000e0000-\U000e0fff]")
MAX_CHARACTERS = 2_000  # a completion longer than this is read up to here; the budget of tokens ends far earlier


class Verdict(Enum):
    """What a judge can say of a completion. `UNJUDGED` is not `WRONG`: no single answer could be read."""

    RIGHT = "right"
    WRONG = "wrong"
    UNJUDGED = "unjudged"


def visible(text: str) -> str:
    """Return the text as it is seen: NFKC (full width and ligatures as plain letters), nothing invisible.

    >>> visible("b\\u200be\\u00ade \\u3164")
    'bee '
    """
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))


def strict_answer(completion: str) -> str | None:
    """Return the text between the tags, if the completion has exactly one well-formed, non-empty pair; else None.

    Two pairs are two answers, and a judge does not get to pick the better one. Tags are counted over the whole
    completion and however they are spelled, so that no second answer hides behind the limit or in `<answer >`.

    >>> strict_answer("<answer>A map</answer>")
    'A map'
    >>> strict_answer("<answer>map</answer> or <answer>globe</answer>") is None
    True
    """
    found = _TAGGED.findall(completion[:MAX_CHARACTERS])
    if len(found) != 1 or _tags(completion) != (1, 1):
        return None
    inside = found[0].strip()
    return inside if visible(inside).strip() else None


def lenient_answer(completion: str) -> str | None:
    """Return the strict answer, or the best reading of a completion without proper tags, or None.

    In this order: one pair of tags, however spelled; what follows an opening tag that was never closed; what follows
    the last "answer is" or "answer:"; the whole text, when it is one line. Meant for measuring how much of a gain is
    format.

    >>> lenient_answer("The answer is a map."), lenient_answer("<answer >a map</answer >")
    ('a map', 'a map')
    """
    strict = strict_answer(completion)
    if strict is not None:
        return strict
    opened, closed = _tags(completion)
    text = visible(completion[:MAX_CHARACTERS]).strip()
    if opened == 1 and closed <= 1:
        after = _OPENING.split(text, maxsplit=1)[1:]
        return _CLOSING.split(after[0])[0].strip() or None if after else None
    if opened or closed:
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
    text = visible(visible(answer).casefold()).translate({ord(mark): "'" for mark in "‘’ʼ"}).strip()
    text = _ARTICLE.sub("", text)
    # Letters, numbers and the marks that belong to letters: without them Hindi words differ in no vowel.
    text = "".join(mark if unicodedata.category(mark)[0] in "LMN" else " " for mark in text)
    return _ARTICLE.sub("", " ".join(text.split()))


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
    text = visible(answer).strip()
    alone = text.upper().strip(".,;:!?()[]{}<>*_`\"'“”‘’ \n")
    if alone in list(labels):
        return alone
    if any((m[1] or m[2]).upper() in labels for m in _DENIED.finditer(text)):
        return None
    # A lone capital, or a letter set off by brackets or punctuation; the article "A" before a word is not a choice,
    # unless that word joins it to another choice ("A or B") or is one ("A B").
    named = {m for m in re.findall(r"\b([B-Z])\b(?!['’])", text) if m in labels}
    named |= {m.upper() for m in re.findall(r"(?:^|[\s(\[])([A-Za-z])(?=[):.\]])", text) if m.upper() in labels}
    after_word = re.findall(r"\b(?:option|choice|letter)\s+([A-Za-z])\b", text, re.IGNORECASE)
    named |= {m.upper() for m in after_word if m.upper() in labels}
    if "A" in labels and re.search(r"\bA\b(?!['’])(?!\s+\w)|\bA\s+(?:(?:or|and|nor)\b|[A-Z]\b)|\bA *\n", text):
        named.add("A")
    return named.pop() if len(named) == 1 else None


def grade_letter(answer: str | None, right: str, labels: Sequence[str]) -> Verdict:
    """Grade a multiple-choice answer: unjudged unless exactly one label is named."""
    letter = read_letter(answer, labels)
    if letter is None:
        return Verdict.UNJUDGED
    return Verdict.RIGHT if letter == right else Verdict.WRONG


def judge(
    answer: str | None, right: str, aliases: Iterable[str] | None = None, labels: Sequence[str] | None = None
) -> Verdict:
    """Grade one read answer as its problem wants it: a letter where there are labels, else a text with its aliases.

    >>> judge("b.", "B", labels=["A", "B"]), judge("a honeybee", "bee", ["honeybee"])
    (<Verdict.RIGHT: 'right'>, <Verdict.RIGHT: 'right'>)
    """
    return grade_letter(answer, right, labels) if labels else grade(answer, [right, *(aliases or ())])


def _tags(completion: str) -> tuple[int, int]:
    """How many opening and closing tags a reader would see, however spelled, over the whole completion."""
    seen = visible(completion)
    return len(_OPENING.findall(seen)), len(_CLOSING.findall(seen))
