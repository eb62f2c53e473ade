"""The three rewards: amounts, bounds, attacks that must not pay, and TRL's batch signature."""

import doctest
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from problama_utils.config import course_root
from problama_utils.rewards import slides as rewards
from problama_utils.rewards.slides import (
    SLIDE_REWARDS,
    correct_answer_reward,
    short_response_reward,
    soft_format_reward,
    total_reward,
)
from problama_utils.rewards.truth_tables import CHOICE, CHOICES, REWARDS, RIDDLE, RIGHT
from problama_utils.tasks.piqa import load_piqa
from problama_utils.tasks.riddles import load_riddles

PROBLEMS = {"rewards": RIDDLE, "choices": CHOICE}
ROWS = [pytest.param(PROBLEMS[table.name], row, id=f"{table.name}: {row.why}")
        for table in (REWARDS, CHOICES) for row in table.rows]


@pytest.mark.parametrize(("problem", "row"), ROWS)
def test_what_each_completion_earns(problem, row):
    batch = {"completions": [row.completion], **{name: [value] for name, value in problem.items()}}
    correct, short, form, total = row.expected
    assert [function(**batch) for function in SLIDE_REWARDS] == [[correct], [pytest.approx(short)], [form]]
    assert total_reward(**batch) == [pytest.approx(total)]


def test_the_table_is_long_enough_and_no_attack_beats_the_honest_answer_it_hides():
    assert len(REWARDS.rows) >= 25 and sum(row.attack for row in REWARDS.rows) >= 10
    for _, row in (param.values for param in ROWS):
        correct, *_, total = row.expected
        assert total <= (3.0 if correct else 1.0), row.why


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


@pytest.mark.parametrize("turn", [{}, {"role": "assistant"}, {"content": None}, {"content": []},
                                  {"content": [{"type": "image"}]}, {"role": "user", "content": RIGHT}])
def test_a_turn_without_the_policys_own_text_earns_nothing(turn):
    assert total_reward(completions=[[turn], None], answer=["bee"] * 2, aliases=[None, []]) == [0.0, 0.0]


def test_a_missing_list_of_aliases_or_labels_in_one_row_is_an_empty_one():
    batch = {"completions": ["<answer>bee</answer>", "<answer>B</answer>"], "answer": ["bee", "B"]}
    assert correct_answer_reward(**batch, aliases=[None, None], labels=[None, ["A", "B"]]) == [2.0, 2.0]


@pytest.mark.parametrize(("said", "choices", "paid"), [
    ("bulb B", ["both", "bulb B"], 0.0), ("B: bulb A", ["both", "bulb A"], 2.0), ("B: bulb A", None, 0.0),
    ("B", ["A and B", "B and C"], 2.0),
    ("the one with wire B", ["wire A", "the one with wire B"], 0.0),
    ("move it from A to B", ["drop it", "move it from A to B"], 0.0),
    ("B) from A to B", ["drop it", "from A to B"], 2.0),
])
def test_a_letter_of_a_known_options_text_is_not_paid_and_hides_no_choice(said, choices, paid):
    batch = {"completions": [f"<answer>{said}</answer>"], "answer": ["B"], "labels": [["A", "B"]]}
    assert correct_answer_reward(**batch, choices=[choices]) == [paid]


def test_completions_of_the_shipped_runs_are_paid_as_they_were():
    rows = {row["id"]: row for load in (load_riddles, load_piqa) for row in load("train", source="embedded")}
    paid = 0
    for path in sorted((course_root() / "assets" / "runs").rglob("completions.jsonl")):
        for said in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            row = rows[said["id"]]
            problem = ({"answer": ["AB"[row["label"]]], "labels": ["AB"], "choices": [[row["sol1"], row["sol2"]]]}
                       if "label" in row else {"answer": [row["answer"]], "aliases": [row["aliases"]]})
            for function in SLIDE_REWARDS:
                # A tag with a word in it has been read leniently since; it was not when that run was made.
                if function.__name__ in said and "<answer I>" not in said["completion"]:
                    assert function([said["completion"]], **problem) == [pytest.approx(said[function.__name__])], said
                    paid += 1
    assert paid > 4_000


@given(st.lists(st.text(st.characters()), min_size=1, max_size=4))
def test_rewards_are_bounded_and_never_raise(texts):
    batch = {"completions": texts, "answer": ["bee"] * len(texts)}
    assert all(0.0 <= value <= 3.0 for value in total_reward(**batch))


PIECES = st.sampled_from(["<answer>", "</answer>", "bee", "wasp", " ", "\n", "_", "\u3164", "x" * 30, "</answer >"])


@given(st.text(alphabet="<>/answer be\n", max_size=60) | st.lists(PIECES, max_size=10).map("".join))
def test_without_a_right_answer_no_text_earns_more_than_one(text):
    if correct_answer_reward(completions=[text], answer=["bee"]) == [0.0]:
        assert total_reward(completions=[text], answer=["bee"])[0] <= 1.0


@given(st.integers(0, 60))
def test_more_words_never_earn_more_for_brevity(words):
    shorter, longer = (short_response_reward(["<answer>x</answer>" + " y" * n])[0] for n in (words, words + 1))
    assert shorter >= longer


@pytest.mark.parametrize("glue", ["-", "_", "\u200b", "/", ""])
def test_words_glued_together_lose_the_marks_for_brevity_too(glue):
    paid = [short_response_reward(["<answer>x</answer> " + glue.join(["because"] * n)])[0] for n in (1, 20, 40, 100)]
    assert paid[0] == 0.5 and paid == sorted(paid, reverse=True) and paid[2] < 0.5 and paid[3] == 0.0


def test_the_soft_format_allows_text_around_the_pair():
    assert soft_format_reward(["Well, <answer>bee</answer> it is."]) == [0.5]


def test_examples_in_the_docstrings_run():
    assert doctest.testmod(rewards).failed == 0
