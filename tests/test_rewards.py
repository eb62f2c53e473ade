"""The three rewards: amounts, bounds, attacks that must not pay, and TRL's batch signature."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from problama_utils import rewards
from problama_utils.rewards import (
    SLIDE_REWARDS,
    correct_answer_reward,
    short_response_reward,
    soft_format_reward,
    total_reward,
)

TABLE = [  # completion to a riddle whose answer is "bee": correct, short, format
    ("<answer>bee</answer>", 2.0, 0.5, 0.5),
    ("<answer>A honeybee.</answer>", 2.0, 0.5, 0.5),
    ("Think.\n<answer>\nbee\n</answer>", 2.0, 0.5, 0.5),
    ("<answer>wasp</answer>", 0.0, 0.5, 0.5),
    ("It is a bee", 0.0, 0.5, 0.0),
    ("<answer>bee", 0.0, 0.5, 0.0),
    ("<answer>bee, wasp, ant</answer>", 0.0, 0.5, 0.5),
    ("<answer>wasp</answer><answer>bee</answer>", 0.0, 0.0, 0.0),
    ("<answer><answer>bee</answer></answer>", 0.0, 0.0, 0.0),
    ("<answer></answer>", 0.0, 0.0, 0.0),
    ("<answer>!?</answer>", 0.0, 0.0, 0.0),
    ("", 0.0, 0.0, 0.0),
    (" \n ", 0.0, 0.0, 0.0),
    ("<answer>bee</answer>" + " bee" * 19, 2.0, 0.25, 0.5),  # 20 words: half way from 10 to 30
    ("<answer>bee</answer>" + " bee" * 40, 2.0, 0.0, 0.5),
]


@pytest.mark.parametrize(("completion", "correct", "short", "form"), TABLE, ids=[repr(row[0][:30]) for row in TABLE])
def test_what_each_completion_earns(completion, correct, short, form):
    batch = {"completions": [completion], "answer": ["bee"], "aliases": [["honeybee"]]}
    assert [function(**batch) for function in SLIDE_REWARDS] == [[correct], [short], [form]]
    assert total_reward(**batch) == [correct + short + form]


@pytest.mark.parametrize(
    ("completion", "correct"),
    [("<answer>B</answer>", 2.0), ("<answer>option b</answer>", 2.0), ("<answer>A or B</answer>", 0.0),
     ("<answer>A</answer>", 0.0), ("B", 0.0), ("<answer>AB</answer>", 0.0)],
)
def test_letters_are_judged_as_letters(completion, correct):
    assert correct_answer_reward(completions=[completion], answer=["B"], labels=[["A", "B"]]) == [correct]


def test_what_cannot_be_judged_is_none_and_not_zero():
    assert correct_answer_reward(completions=["<answer>x</answer>"], answer=[""]) == [None]


def test_chat_completions_are_read_like_plain_ones():
    chat = [[{"role": "assistant", "content": "<answer>bee</answer>"}]]
    assert total_reward(completions=chat, answer=["bee"]) == [3.0]


def test_columns_of_unequal_length_are_an_error_not_a_silent_cut():
    with pytest.raises(ValueError, match="zip"):
        correct_answer_reward(completions=["a", "b"], answer=["a"])


def test_extra_columns_from_the_trainer_are_ignored():
    extra = {"prompts": ["?"], "completion_ids": [[1]], "trainer_state": None}
    for function in SLIDE_REWARDS:
        assert len(function(completions=["<answer>x</answer>"], answer=["x"], **extra)) == 1


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_rewards_are_bounded_and_never_raise(texts):
    batch = {"completions": texts, "answer": ["bee"] * len(texts)}
    assert all(0.0 <= value <= 3.0 for value in total_reward(**batch))


@given(st.text(alphabet="<>/answer be\n", max_size=60))
def test_without_a_right_answer_no_text_earns_more_than_one(text):
    if correct_answer_reward(completions=[text], answer=["bee"]) == [0.0]:
        assert total_reward(completions=[text], answer=["bee"])[0] <= 1.0


@given(st.integers(0, 60))
def test_more_words_never_earn_more_for_brevity(words):
    shorter, longer = (short_response_reward(["<answer>x</answer>" + " y" * n])[0] for n in (words, words + 1))
    assert shorter >= longer


def test_the_soft_format_allows_text_around_the_pair():
    assert soft_format_reward(["Well, <answer>bee</answer> it is."]) == [0.5]


def test_examples_in_the_docstrings_run():
    assert doctest.testmod(rewards).failed == 0
