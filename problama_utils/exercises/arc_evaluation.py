"""Checks for the exercises of notebook 06, ARC evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from problama_utils.exercises.checking import Case, CheckResult, check_choice, check_function, check_value


def check_possible(function: Callable | None) -> CheckResult:
    """Exercise 1: can k right answers out of n give this percentage, to two decimals?"""
    return check_function("possible percentages", function, [
        Case("41.72 of 1,172", (41.72, 1172), True),
        Case("71.20 of 1,172", (71.20, 1172), False,
             hint="try every k from 0 to n and round 100 · k / n to two decimals"),
        Case("50 of 2", (50.0, 2), True),
        Case("33.33 of 100", (33.33, 100), False),
    ])


def check_questions_needed(function: Callable | None) -> CheckResult:
    """Exercise 2: questions needed until ± z·SE of a share p is at most a given half-width."""
    return check_function("questions needed", function, [
        Case("p = 0.5 to ± 5 points", (0.5, 0.05), 385, hint="solve 1.96 · √(p(1 − p)/n) ≤ h for n and round up"),
        Case("p = 0.5 to ± 1 point", (0.5, 0.01), 9604),
        Case("p = 0.9 to ± 5 points", (0.9, 0.05), 139),
    ])


def check_leaderboard(answer: Any) -> CheckResult:
    """Exercise 3: 62 % against 58 % on the same 100 questions; is the claim supported?"""
    return check_choice("the leaderboard claim", answer, "C", {
        "A": "62 is more than 58, but each is a sample of 100, with an interval of about 10 points to either side.",
        "B": "Overlapping intervals alone do not refute a difference on the same questions; pairing can settle it.",
        "C": "Only the questions where the two disagree can tell, and the claim does not say how many there were.",
        "D": "More questions would narrow the interval, but no number of questions replaces looking at the pairs.",
    })


def check_format_gain(answer: Any) -> CheckResult:
    """Exercise 4: of a rise from 20 to 50 right of 100 strict answers, how much was format?"""
    return check_value("the format's share", answer, 25, hint="what could already be read leniently was known before: "
                       "45 − 20 is what the tags alone account for")
