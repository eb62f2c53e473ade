"""Checks for the exercises of notebook 05, reward curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from problama_utils.exercises.checking import Case, CheckResult, check_choice, check_function


def check_running_mean(function: Callable | None) -> CheckResult:
    """Exercise 1: the mean of the last `window` values, of what there is at the start."""
    return check_function("the running mean", function, [
        Case("window 2", ([1.0, 3.0, 5.0], 2), [1.0, 2.0, 4.0],
             hint="the first value has no predecessor: it is its own mean"),
        Case("window 1 changes nothing", ([4.0, 2.0], 1), [4.0, 2.0]),
        Case("window longer than the run", ([1.0, 2.0, 6.0], 10), [1.0, 1.5, 3.0]),
        Case("it never looks ahead", ([0.0, 0.0, 9.0], 3), [0.0, 0.0, 3.0], hint="use values up to this step only"),
    ])


def check_difference(function: Callable | None) -> CheckResult:
    """Exercise 2: difference of two means and its standard error, over seeds."""
    return check_function("difference and standard error", function, [
        Case("four seeds", ([1.0, 1.0, 1.0, 1.0], [2.0, 3.0, 2.0, 3.0]), [1.5, math.sqrt(1 / 3) / 2],
             hint="take the difference seed by seed first, then its mean and its deviation (n - 1) over the root of n"),
        Case("equal gain in every seed", ([0.0, 1.0, 5.0], [1.0, 2.0, 6.0]), [1.0, 0.0],
             hint="the seeds differ, their gains do not: that is what pairing is for"),
    ])


def check_hacked(answer: Any) -> CheckResult:
    """Exercise 3: which pattern in a log betrays a hacked reward."""
    return check_choice("the hacked reward", answer, "B", {
        "A": "That is what healthy learning looks like: the aim itself rises.",
        "B": "The sum rises although the aim falls: the policy is paid for something else, here for brevity.",
        "C": "That is a run that has not begun to learn, or cannot; nothing is being gamed.",
        "D": "KL grows in every run that learns; alone it says nothing about the reward.",
    })


def check_band(function: Callable | None) -> CheckResult:
    """Exercise 4: mean and half-width of a 2-standard-error band, per step, over seeds."""
    return check_function("the band over seeds", function, [
        Case("two seeds, two steps", ([[0.0, 1.0], [2.0, 1.0]],), [[1.0, 1.0], [2.0, 0.0]],
             hint="two standard errors of two values 0 and 2: 2 · (√2 / √2) = 2"),
        Case("four equal seeds", ([[1.0, 2.0]] * 4,), [[1.0, 2.0], [0.0, 0.0]]),
    ])
