"""The chats the model reads."""

import pytest

from problama_utils.tasks.piqa import PIQA, load_piqa
from problama_utils.tasks.riddles import load_riddles, riddle_messages
from problama_utils.tasks.science import load_science, science_messages, science_question


def test_the_slides_examples_stand_before_the_riddle_as_solved_turns():
    chat = riddle_messages({"riddle": "Who buzzes?"})
    assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert chat[2]["content"] == "<answer>A map</answer>" and chat[4]["content"] == "<answer>A piano</answer>"
    assert chat[-1]["content"] == "Riddle: Who buzzes?"


def test_without_examples_only_the_system_prompt_and_the_question_remain():
    assert [turn["role"] for turn in riddle_messages({"riddle": "x"}, few_shot=False)] == ["system", "user"]


def test_the_two_piqa_examples_do_not_vote_for_a_letter():
    turns = PIQA.messages({"goal": "", "sol1": "", "sol2": "", "label": 0})
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    assert sorted(answers) == ["<answer>A</answer>", "<answer>B</answer>"]


def test_science_is_zero_shot_and_the_system_prompt_can_be_left_out():
    row = load_science("test")[0]
    assert [turn["role"] for turn in science_messages(row)] == ["system", "user"]
    assert [turn["role"] for turn in science_messages(row, system=False)] == ["user"]
    assert science_messages(row)[-1] == science_messages(row, system=False)[-1]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_every_choice_appears_once_behind_its_own_label(count):
    row = {"question": "Q?", "choices": [f"choice {i}" for i in range(count)], "labels": list("ABCDE")[:count]}
    expected = [f"{letter}: choice {i}" for i, letter in enumerate("ABCDE"[:count])]
    assert science_question(row).splitlines()[1:] == expected


def test_labels_and_choices_of_different_length_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        science_question({"question": "Q?", "choices": ["one"], "labels": ["A", "B"]})


def test_the_right_option_is_the_one_its_letter_names():
    for row in load_piqa("train").select(range(20)):
        line = PIQA.question(row).splitlines()["AB".index(PIQA.answer(row)) + 1]
        assert line.endswith(row["sol1"] if row["label"] == 0 else row["sol2"])


def test_no_prompt_contains_its_own_answer():
    for row in load_riddles("all").select(range(100)):
        assert f"<answer>{row['answer']}</answer>" not in str(riddle_messages(row, few_shot=False))
