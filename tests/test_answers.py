"""Reading and grading: truth tables with the reason per row, and properties on any text."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from problama_utils import answers
from problama_utils.answers import (
    Verdict,
    grade,
    grade_letter,
    lenient_answer,
    normalise,
    read_letter,
    strict_answer,
)

STRICT = [  # completion, what is read, why
    ("<answer>bee</answer>", "bee", "as asked"),
    ("So:\n<answer>\nbee\n</answer>\n", "bee", "several lines: the pattern needs DOTALL"),
    ("<ANSWER>bee</Answer>", "bee", "capitals do not matter"),
    ("I think <answer>a bee</answer>, yes.", "a bee", "text around the pair"),
    ("<answer>bee</answer><answer>bee</answer>", None, "two pairs are two answers, even equal ones"),
    ("<answer>wasp</answer> or <answer>bee</answer>", None, "a list of guesses"),
    ("<answer><answer>bee</answer></answer>", None, "nested"),
    ("<answer>bee", None, "never closed"),
    ("bee</answer>", None, "never opened"),
    ("</answer>bee<answer>", None, "the wrong way round"),
    ("<answer></answer>", None, "empty"),
    ("<answer> \n </answer>", None, "only space"),
    ("", None, "nothing at all"),
    ("bee", None, "no tags"),
    ("<answer>bee</answer" + " " * 10, None, "truncated inside the closing tag"),
    ("x" * 3000 + "<answer>bee</answer>", None, "the answer comes after the reading limit"),
    ("<answer>пчела</answer>", "пчела", "another script"),
]


@pytest.mark.parametrize(("completion", "expected", "why"), STRICT, ids=[row[2] for row in STRICT])
def test_strict_reading(completion, expected, why):
    assert strict_answer(completion) == expected


LENIENT = [
    ("<answer>bee</answer>", "bee", "strict comes first"),
    ("<answer>a bee", "a bee", "an opening tag that was cut off before its end"),
    ("The answer is a bee.", "a bee", "announced"),
    ("Answer: bee", "bee", "announced with a colon"),
    ("bee", "bee", "the whole of a single line"),
    ("first line\nsecond line", None, "prose without an announcement is not an answer"),
    ("<answer>wasp</answer><answer>bee</answer>", None, "lenient is not arbitrary: two answers stay unread"),
    ("", None, "empty"),
]


@pytest.mark.parametrize(("completion", "expected", "why"), LENIENT, ids=[row[2] for row in LENIENT])
def test_lenient_reading(completion, expected, why):
    assert lenient_answer(completion) == expected


@pytest.mark.parametrize(
    ("given", "accepted", "verdict"),
    [
        ("A Bee.", ["bee"], Verdict.RIGHT), ("the honey-bee", ["honey bee"], Verdict.RIGHT),
        ("It's a bee!", ["bee"], Verdict.RIGHT), ("bees", ["bee", "bees"], Verdict.RIGHT),
        ("bees", ["bee"], Verdict.WRONG), ("bee wasp fly", ["bee"], Verdict.WRONG), ("be", ["bee"], Verdict.WRONG),
        (None, ["bee"], Verdict.UNJUDGED), ("...", ["bee"], Verdict.UNJUDGED), ("ＢＥＥ", ["bee"], Verdict.RIGHT),
    ],
)
def test_grading_normalises_both_sides_and_accepts_no_lists(given, accepted, verdict):
    assert grade(given, accepted) is verdict


LETTERS = [
    ("B", "B"), ("b", "B"), ("(b)", "B"), ("B.", "B"), ("B: the magnet", "B"), ("Option B", "B"), ("choice c", "C"),
    ("A", "A"), ("a", "A"), ("A magnet", None), ("A or B", None), ("A, B, C, D", None), ("E", None), ("", None),
    ("the letter d", "D"), ("I'd say it is B because it attracts iron", "B"), ("neither", None),
]


@pytest.mark.parametrize(("text", "letter"), LETTERS, ids=[repr(row[0]) for row in LETTERS])
def test_exactly_one_letter_is_read_or_none(text, letter):
    assert read_letter(text, ["A", "B", "C", "D"]) == letter


def test_a_letter_outside_the_labels_is_unjudged_not_wrong():
    assert grade_letter("D", "A", ["A", "B"]) is Verdict.UNJUDGED
    assert grade_letter("B", "A", ["A", "B"]) is Verdict.WRONG


@given(st.text())
def test_no_text_makes_a_reader_raise(text):
    for read in (strict_answer, lenient_answer):
        answer = read(text)
        assert answer is None or answer.strip()
        grade(answer, ["bee"])
        read_letter(answer, ["A", "B"])


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(
    st.sampled_from(["bee", "sea lion", "x"]),
    st.sampled_from(["", "a ", "The ", "an "]),
    st.sampled_from(["", ".", "!"]),
)
def test_dress_does_not_change_the_verdict(word, article, mark):
    assert grade(article + word.upper() + mark, [word]) is Verdict.RIGHT


def test_examples_in_the_docstrings_run():
    assert doctest.testmod(answers).failed == 0
