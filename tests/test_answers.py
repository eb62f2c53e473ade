"""Reading and grading: truth tables with the reason per row, and properties on any text."""

import doctest
import time

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
    visible,
)
from problama_utils.truth_tables import LETTERS, READING

READ = [(row.completion, *row.expected) for row in READING.rows]
WHY = [row.why for row in READING.rows]


def test_the_tables_are_long_enough_and_every_row_has_a_reason_of_its_own():
    assert min(len(READING.rows), len(LETTERS.rows)) >= 25 and len(set(WHY)) == len(WHY)
    assert sum(row.attack for row in READING.rows) >= 10 and sum(row.attack for row in LETTERS.rows) >= 10


@pytest.mark.parametrize(("completion", "strict", "lenient", "verdict"), READ, ids=WHY)
def test_what_is_read_strictly_and_leniently_and_the_verdict(completion, strict, lenient, verdict):
    assert (strict_answer(completion), lenient_answer(completion)) == (strict, lenient)
    assert grade(strict_answer(completion), ["bee", "honeybee", "bees"]) is Verdict(verdict)


def test_the_last_announcement_counts_and_two_pairs_stay_unread_even_leniently():
    assert lenient_answer("The answer is hard to see. The answer is a bee.") == "a bee"
    assert lenient_answer("<answer>wasp</answer><answer>bee</answer>") is None


@pytest.mark.parametrize("text", ["<" + " " * 50_000, "<answer>" * 20_000, "<answer " * 20_000, "answer:" * 20_000,
                                  "</ " * 50_000, "A " * 50_000, "not " * 50_000])
def test_no_long_text_keeps_the_reader_busy(text):
    started = time.process_time()
    read_letter(lenient_answer(text), ["A", "B"])
    assert time.process_time() - started < 2.0  # a pattern that backtracks takes minutes here


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


@pytest.mark.parametrize("row", LETTERS.rows, ids=lambda row: row.why)
def test_exactly_one_letter_is_read_or_none(row):
    assert (read_letter(row.completion, ["A", "B", "C", "D"]),) == row.expected


@pytest.mark.parametrize("dress", ["{}", "{}.", "{}!", "**{}**", "({})", "'{}'", "{} - yes", "{}\nYes.", "I say {}."])
def test_no_letter_is_easier_to_read_than_another(dress):
    # Once "B!" was read and "A!" was not: a policy that prefers A would have looked worse than it is.
    assert [read_letter(dress.format(letter), "ABCD") for letter in "ABCD"] == list("ABCD")


@pytest.mark.parametrize("text", ["AB", "", "BC", "ABCD"])
def test_labels_given_as_one_string_are_still_single_letters(text):
    assert read_letter(text, "ABCD") is None


def test_a_letter_outside_the_labels_is_unjudged_not_wrong():
    assert grade_letter("D", "A", ["A", "B"]) is Verdict.UNJUDGED
    assert grade_letter("B", "A", ["A", "B"]) is Verdict.WRONG


ANYTHING = st.text(st.characters())  # lone surrogates too, as half an emoji at the token budget leaves them
TAGGISH = st.lists(st.sampled_from(["<answer>", "</answer>", "<answer >", "A", "B", "bee", " ", "\n", "\u200b", "not ",
                                    "\u3164", "answer is ", "<", "_"]), max_size=12).map("".join)


@given(ANYTHING | TAGGISH)
def test_no_text_makes_a_reader_raise(text):
    for read in (strict_answer, lenient_answer):
        answer = read(text)
        assert answer is None or visible(answer).strip()
        grade(answer, ["bee"])
        read_letter(answer, ["A", "B"])


@given(TAGGISH)
def test_what_is_read_strictly_has_one_pair_of_tags_that_a_reader_sees(text):
    if strict_answer(text) is not None:
        assert [visible(text).count(tag) for tag in ("<answer", "</answer")] == [1, 1]


def test_vowel_marks_and_invisible_characters():
    assert normalise("कि") != normalise("का") and normalise("cafe\u0301") == normalise("café")
    assert normalise("b\u200be\u00ade\ufeff") == "bee" and normalise("a the a bee") == "bee"


@given(ANYTHING.filter(lambda text: len(text) < 40) | TAGGISH)
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
