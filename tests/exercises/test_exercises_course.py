"""Notebooks 03 to 06: every check is green on a right answer, names the case of a wrong one, and survives a stub."""

import pytest

from problama_utils.exercises import arc_evaluation, piqa_training, reward_curves, riddle_training

MACHINERY = ("check_function", "check_choice", "check_value")
CHECKS = [getattr(module, name) for module in (arc_evaluation, piqa_training, reward_curves, riddle_training)
          for name in dir(module) if name.startswith("check_") and name not in MACHINERY]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("stub", [None, ...], ids=["None", "dots"])
def test_an_untouched_stub_is_not_yet(check, stub):
    assert check(stub).status == "not yet"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_crash_of_the_learner_is_told_in_a_sentence(check):
    def crash(*args):
        raise IndexError("list index out of range")

    assert check(crash).status in ("failed", "not yet")


def test_greedy_matching_that_swallows_two_pairs_is_named():
    import re

    def greedy(text):
        found = re.search(r"<answer>(.*)</answer>", text, re.DOTALL)
        return found[1].strip() or None if found else None

    result = riddle_training.check_read_tagged(greedy)
    assert result.status == "failed" and "two pairs" in result.message


def test_each_wrong_choice_is_explained_and_the_right_one_passes():
    for check, right in ((riddle_training.check_diagnosis, "C"), (reward_curves.check_hacked, "B"),
                         (arc_evaluation.check_leaderboard, "C")):
        for letter in "ABCD":
            assert bool(check(letter)) == (letter == right), check.__name__
            assert len(check(letter).message) > 40
