"""Checks for the exercises of notebook 04, PIQA training."""

from __future__ import annotations

from collections.abc import Callable

from problama_utils.exercises.checking import Case, CheckResult, check_function


def check_fixed_reward(function: Callable | None) -> CheckResult:
    """Exercise 1: the planted bugs in a letter reward have been found and fixed."""
    return check_function("the fixed reward", function, [
        Case("right letter", (["<answer>A</answer>"], ["A"]), [2.0]),
        Case("wrong letter", (["<answer>B</answer>"], ["A"]), [0.0]),
        Case("on its own line", (["<answer>\nB\n</answer>"], ["B"]), [2.0],
             hint="what does . not match unless it is told to?"),
        Case("both letters", (["<answer>A or B</answer>"], ["B"]), [0.0],
             hint="`right in given` is true for every text that contains the letter"),
        Case("small letter", (["<answer>b</answer>"], ["B"]), [2.0], hint="compare after upper()"),
        Case("no tags at all", (["B"], ["B"]), [0.0], hint="search() gives None where nothing matches"),
        Case("a batch", (["<answer>A</answer>", "", "<answer>B</answer>"], ["A", "A", "A"]), [2.0, 0.0, 0.0]),
    ])


def check_constant_policy(function: Callable | None) -> CheckResult:
    """Exercise 2: the accuracy of the best policy that always gives the same letter."""
    return check_function("the best constant policy", function, [
        Case("two to one", (["A", "A", "B"],), 2 / 3),
        Case("balanced", (["A", "B"] * 10,), 0.5),
        Case("four letters", (["A", "C", "C", "D", "C"],), 0.6, hint="count each letter; take the largest share"),
        Case("one item", (["D"],), 1.0),
    ])
