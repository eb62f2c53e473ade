"""Read the final answer out of a completion and grade it: right, wrong, or unjudged.

Grading knows nothing of rewards. A reward may pay for form or brevity; whether an answer is *right* is decided here,
once, and the evaluation imports this module and never `rewards`.

The letter of an option is read by `tasks.reading`. Every function here and there is linear in what it reads, and reads
nothing that is longer than `LONGEST` characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import Enum

from problama_utils.tasks.reading import INVISIBLE, LETTERS, LONGEST, MAX_CHARACTERS, folded, read_letter

MARKS_IN_A_ROW = 30  # Unicode's stream-safe bound: normalising takes the square of a longer run

# DOTALL: answers may stand on a line of their own. Without it every multi-line answer silently scores 0.
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
# What a reader takes for a tag: `<answer >`, `< /ANSWER>`, `<answer id="2">`. A second answer must not hide in one.
_OPENING, _CLOSING = (re.compile(rf"<{slash}\s*answer(?:\s[^<>]*)?>", re.IGNORECASE) for slash in ("", r"\s*/"))
_LEADS_IN = re.compile(r"(?<!wrong )(?<!incorrect )\b(?:answer|solution)\s*(?:is\b|:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[!?]|\.(?!\d|\w\.)")

# What stands before a riddle's answer and is no part of it, in words without marks ("it's" is "it s"). Certainty may
# stand there, doubt and denial may not: "not", "maybe", "could be" and "like" stay and make the answer a wrong one.
_BE = (r"(?:am|is|are|was|were|be|must be|should be|would be|will be|ll be|d be|has to be|have to be|had to be"
       r"|can only be|(?:(?:s|ve|has|have) )?(?:gotta|got to) be|s|m|re)")
_WHO = r"(?:i|you|we|they|he|she|it|this|that|these|those|here|there)"
_LEAD_IN = re.compile(
    rf"(?:(?:a|an|the|some|its|my|your|our|their|his|her"
    rf"|(?:what|who) (?:am i|are we|are you|are they|are these|are those|is it|is this|is that|is he|is she)"
    rf"|{_WHO} (?:all |both )?{_BE}"
    r"(?: (?:surely|clearly|certainly|definitely|obviously|simply|just|both|all|of course))?"
    rf"|im|youre|theyre|thats|hes|shes|i (?:think|believe|guess|say|would say|d say)(?: that)?"
    rf"|(?:(?:my|the|your|our) )?(?:final |correct |right )?(?:answer|guess|solution) (?:is|was|must be|would be)) )+")


class Verdict(Enum):
    """What a judge can say of a completion. `UNJUDGED` is not `WRONG`: no single answer could be read."""

    RIGHT = "right"
    WRONG = "wrong"
    UNJUDGED = "unjudged"


def visible(text: str) -> str:
    """Return the text as it is seen: NFKC (full width and ligatures as plain letters), nothing invisible.

    No more than `LONGEST` characters are read, and no more than 30 marks on one letter.

    >>> visible("b\\u200be\\u00ade \\u3164")
    'bee '
    """
    text = text[:LONGEST]
    if text.isascii():
        return text
    return INVISIBLE.sub("", unicodedata.normalize("NFKC", _few_marks(text)))


def _few_marks(text: str) -> str:
    """Return the text without the marks beyond the 30th in a row."""
    kept, row = [], 0
    for character in text:  # the two are Japanese voicing marks of half width, which NFKC makes marks
        row = row + 1 if unicodedata.category(character)[0] == "M" or character in "\uff9e\uff9f" else 0
        if row <= MARKS_IN_A_ROW:
            kept.append(character)
    return "".join(kept)


def strict_answer(completion: str) -> str | None:
    """Return the text between the tags, if the completion has exactly one well-formed, non-empty pair; else None.

    Two pairs are two answers, and a judge does not get to pick the better one. Tags are counted over the whole
    completion and however they are spelled, so that no second answer hides behind the limit or in `<answer >`.

    >>> strict_answer("<answer>A map</answer>")
    'A map'
    >>> strict_answer("<answer>map</answer> or <answer>globe</answer>") is None
    True
    """
    if len(completion) > LONGEST:
        return None
    found = _TAGGED.findall(completion[:MAX_CHARACTERS])
    if len(found) != 1 or _tags(completion) != (1, 1):
        return None
    inside = found[0].strip()
    return inside if visible(inside).strip() else None


def lenient_answer(completion: str, choices: Sequence[str] | None = None) -> str | None:
    """Return the strict answer, or the best reading of a completion without proper tags, or None.

    In this order: one pair of tags, however spelled; what follows an opening tag that was never closed; a letter that
    follows the last "answer is" or "answer:", on its line or the next; of several lines the one that names the only
    letter in the text; whatever is so announced; the whole text, when it is one line. Meant for measuring how much of
    a gain is format. `choices` are the options' texts, where there are any; see `read_letter`.

    >>> lenient_answer("The answer is a map."), lenient_answer("<answer >a map</answer >")
    ('a map', 'a map')
    >>> lenient_answer("The answer is:\\nB"), lenient_answer("B\\nBecause iron rusts")
    ('B', 'B')
    """
    strict = strict_answer(completion)
    if strict is not None or len(completion) > LONGEST:
        return strict
    opened, closed = _tags(completion)
    text = visible(completion[:MAX_CHARACTERS]).strip()
    if opened == 1 and closed <= 1:
        after = _OPENING.split(text, maxsplit=1)[1:]
        return _CLOSING.split(after[0])[0].strip() or None if after else None
    if opened or closed:
        return None
    announced = list(_LEADS_IN.finditer(text))
    told, end = None, len(text)
    for match in reversed(announced):
        told = told or _announced(text[match.end() : end], cut=end < len(text))
        end = match.start()
    if read_letter(told, LETTERS, choices):
        return told
    letter = read_letter(text, LETTERS, choices)
    if letter and "\n" in text:
        return next((line.strip() for line in text.split("\n") if read_letter(line, LETTERS, choices)), text)
    return told or (text if text and (letter or not announced and "\n" not in text) else None)


def _announced(rest: str, cut: bool) -> str | None:
    """Return the first sentence of what follows an announcement, from its line or the next that has any.

    Where the next announcement cuts the text, its beginning ("So the") is no sentence.
    """
    line = next((line for line in rest.split("\n") if any(map(str.isalnum, line))), "")
    whole = not cut or "\n" in rest[rest.find(line) + len(line):]
    line = line.lstrip(" \t:=*_")
    end = re.search(_SENTENCE_END, line)
    if end and re.match(r"\W*\w\.\s+[a-z]", line):  # "B. the magnet", "E. coli": the first stop ends no sentence
        end = _SENTENCE_END.search(line, end.end()) or re.search("$", line)
    return (line[: end.start()] if end else line if whole else "").strip() or None


def normalise(answer: str) -> str:
    """Return the answer as graders compare it: lower case, no lead-in, article or punctuation, single spaces.

    Only the first `MAX_CHARACTERS` are read.

    >>> normalise("  It's  a MAP! "), normalise("They must be maps.")
    ('map', 'maps')
    """
    text = visible(visible(answer[:MAX_CHARACTERS]).casefold())
    # Letters, numbers and the marks that belong to letters: without them Hindi words differ in no vowel.
    text = "".join(mark if unicodedata.category(mark)[0] in "LMN" else " " for mark in text)
    text = " ".join(text.split())
    lead_in = _LEAD_IN.match(text)
    return text[lead_in.end():] if lead_in else text


def grade(answer: str | None, accepted: Iterable[str]) -> Verdict:
    """Compare one read answer with the accepted ones, after normalising both sides.

    None is unjudged, and so is an answer over `MAX_CHARACTERS`. A list of several guesses equals none of the accepted.

    >>> grade("The honeybee.", ["bee", "honeybee"])
    <Verdict.RIGHT: 'right'>
    """
    given = normalise(answer) if answer is not None and len(answer) <= MAX_CHARACTERS else ""
    if not given:
        return Verdict.UNJUDGED
    return Verdict.RIGHT if given in {normalise(text) for text in accepted} else Verdict.WRONG


def judge(
    answer: str | None, right: str, aliases: Iterable[str] | None = None, labels: Sequence[str] | None = None,
    choices: Sequence[str] | None = None,
) -> Verdict:
    """Grade one read answer as its problem wants it: a letter where there are labels, else a text with its aliases.

    A choice is unjudged unless exactly one label is named.

    >>> judge("b.", "B", labels=["A", "B"]), judge("a honeybee", "bee", ["honeybee"])
    (<Verdict.RIGHT: 'right'>, <Verdict.RIGHT: 'right'>)
    """
    if not labels:
        return grade(answer, [right, *(aliases or ())])
    letter = read_letter(answer, labels, choices)
    if letter is None:
        return Verdict.UNJUDGED
    return Verdict.RIGHT if letter == right else Verdict.WRONG


def _tags(completion: str) -> tuple[int, int]:
    """How many opening and closing tags a reader would see, however spelled, over the whole completion."""
    seen = folded(completion)
    return len(_OPENING.findall(seen)), len(_CLOSING.findall(seen))
