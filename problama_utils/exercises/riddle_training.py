"""Checks for the exercises of notebook 03, riddle training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from problama_utils.exercises.checking import Case, CheckResult, check_choice, check_function


def check_read_tagged(function: Callable | None) -> CheckResult:
    """Exercise 1: read the one tagged answer of a completion, or None."""
    return check_function("reading the tagged answer", function, [
        Case("plain", ("<answer>bee</answer>",), "bee"),
        Case("on several lines", ("So:\n<answer>\nbee\n</answer>",), "bee",
             hint="by default . does not match a line break in a regular expression"),
        Case("no tags", ("bee",), None),
        Case("two pairs are two answers", ("<answer>wasp</answer><answer>bee</answer>",), None,
             hint="find all pairs and insist on exactly one"),
        Case("nothing inside", ("<answer>  </answer>",), None,
             hint="strip, then look whether text is left"),
        Case("text around it", ("I say <answer>a bee</answer>!",), "a bee"),
    ])


def check_silent_share(function: Callable | None) -> CheckResult:
    """Exercise 2: the share of groups whose rewards are all equal (TRL's frac_reward_zero_std)."""
    return check_function("the share of silent groups", function, [
        Case("one of two", ([[1.0, 1.0], [0.0, 2.0]],), 0.5),
        Case("all alike", ([[3.0] * 4, [0.0] * 4],), 1.0),
        Case("none", ([[0.0, 1.0, 0.0], [1.0, 0.5, 0.0]],), 0.0),
        Case("equal means are not equal rewards", ([[0.0, 2.0], [1.0, 1.0]],), 0.5,
             hint="compare the rewards inside a group with each other, not the groups' means"),
    ])


def check_passes(function: Callable | None) -> CheckResult:
    """Exercise 3: how many times a run of S steps of P prompts visits each of N problems."""
    return check_function("passes over the data", function, [
        Case("48 steps of 4 prompts, 16 riddles", (48, 4, 16), 12.0),
        Case("the slides' riddles: 800 steps of 1 prompt, 800 riddles", (800, 1, 800), 1.0,
             hint="the group size G plays no part: a prompt is visited once, however many completions it gets"),
        Case("less than one pass", (10, 1, 40), 0.25, hint="do not round"),
    ])


def check_diagnosis(answer: Any) -> CheckResult:
    """Exercise 4: a log with reward 0.0, clipped_ratio 1.0 and frac_reward_zero_std 1.0 from the first step on."""
    return check_choice("the flat reward", answer, "C", {
        "A": "A higher rate multiplies the gradient, and the gradient is exactly zero: every group is silent.",
        "B": "More training changes nothing while no group has any spread; the log says 1.0 from the first step.",
        "C": "Every completion runs into the token budget, so no closing tag is ever written and every reward is 0.",
        "D": "β weighs the KL penalty, which starts at 0; it cannot be what keeps every reward at 0.",
    })
