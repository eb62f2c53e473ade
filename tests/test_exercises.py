"""Exercise checks: never a stack trace, "not yet" on a stub, the failing case by name, green on the solutions."""

import ast
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from problama_utils.exercises import ppo_vs_grpo as checks
from problama_utils.exercises.checking import Case, check_choice, check_function, check_value, difference

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"
EXERCISES_01 = {
    "my_group_advantages": checks.check_group_advantages,
    "my_clip_objective": checks.check_clip_objective,
    "my_gae": checks.check_gae,
    "my_grpo_loss": checks.check_grpo_loss,
}


class Unprintable:
    """A learner's object that breaks whatever touches it."""

    def __repr__(self):
        raise RuntimeError("no text for me")

    def __eq__(self, other):
        raise RuntimeError("no comparison for me")

    __hash__ = None


def stops(*args, **kwargs):
    raise ZeroDivisionError("division by zero")


def leaves(*args, **kwargs):
    sys.exit(3)


def not_started(*args, **kwargs):
    raise NotImplementedError


def first_argument(*args, **kwargs):
    return args[0]


ODD_VALUES = [
    0, -1.5, "text", b"bytes", [], [[]], [1, [2, 3]], {"a": 1}, (1, 2), float("nan"), float("inf"), True, object(),
    set(), Unprintable(), torch.zeros(2, 3), torch.full((4,), float("nan")), torch.tensor([1, 1, 0, 0]),
    torch.zeros(4, dtype=torch.bfloat16), torch.zeros(0), np.ones((1, 4)), lambda: 1, type, ValueError("as a value"),
]  # fmt: skip


@pytest.mark.parametrize("check", EXERCISES_01.values(), ids=EXERCISES_01)
@pytest.mark.parametrize("odd", range(len(ODD_VALUES)))
def test_no_returned_value_makes_a_check_crash_or_pass(check, odd):
    result = check(lambda *args: ODD_VALUES[odd])
    assert result.status == "failed" and len(repr(result)) < 900


@pytest.mark.parametrize("check", EXERCISES_01.values(), ids=EXERCISES_01)
@pytest.mark.parametrize("function", [stops, leaves, first_argument, lambda: 1], ids=lambda f: f.__name__)
def test_no_exception_of_the_learner_comes_through(check, function):
    result = check(function)
    assert result.status == "failed" and "case 1 of" in result.message and "Traceback" not in result.message


@pytest.mark.parametrize("check", EXERCISES_01.values(), ids=EXERCISES_01)
@pytest.mark.parametrize("stub", [lambda *a: None, lambda *a: ..., not_started, None, ..., 3])
def test_an_empty_stub_is_not_yet_done(check, stub):
    assert check(stub).status == "not yet"
    assert not check(stub)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(value=values, expected=values)
@settings(deadline=None)
def test_difference_always_answers_with_one_line(value, expected):
    answer = difference(value, expected)
    assert answer is None or (isinstance(answer, str) and "\n" not in answer)


@given(value=st.recursive(st.integers() | st.floats(allow_nan=False), lambda inner: st.lists(inner, max_size=4)))
@settings(deadline=None)
def test_a_value_agrees_with_itself_and_not_with_a_longer_one(value):
    assert difference(value, value) is None
    assert difference([value, value], [value]) is not None


@pytest.mark.parametrize(
    ("value", "expected", "agrees"),
    [
        (torch.tensor([1.0, 2.0]), [1, 2], True),  # kind of container does not matter
        (np.float64(0.5), 0.5, True),
        ((1, 2), [1, 2], True),
        (torch.tensor([[1.0, 2.0]]), [1, 2], False),  # shape does
        (float("nan"), 0.0, False),
        (float("nan"), float("nan"), False),  # NaN is never an answer
        (True, True, True),
        (1, True, False),  # a yes/no answer is not a number
        ("a map", "a map", True),
        ("A map", "a map", False),
        ({"a": 1.0}, {"a": 1.0}, True),
        ({"b": 1.0}, {"a": 1.0}, False),
        (float("inf"), float("inf"), True),
    ],
)
def test_what_counts_as_equal(value, expected, agrees):
    assert (difference(value, expected) is None) == agrees


def test_the_message_names_the_case_both_values_and_the_hint():
    result = check_function("doubling", lambda x: 2 * x if x < 3 else x, [
        Case("small", (1,), 2), Case("large", (5,), 10, hint="also above 3"),
    ])  # fmt: skip
    assert repr(result) == "[failed] doubling, case 2 of 2 (large): expected 10, got 5. Hint: also above 3"


def test_a_learner_who_changes_the_inputs_does_not_spoil_them():
    shared = torch.ones(2)
    cases = [Case("one", (shared,), [2.0, 2.0]), Case("two", (shared,), [2.0, 2.0])]
    assert check_function("in place", lambda x: x.add_(1), cases).passed
    assert shared.tolist() == [1.0, 1.0]


def test_values_and_choices():
    assert check_value("v", None, 3).status == "not yet"
    assert check_value("v", 3.00001, 3).passed and check_value("v", 3.1, 3).status == "failed"
    reasons = {"A": "because.", "B": "no, since."}
    assert check_choice("q", ..., "A", reasons).status == "not yet"
    assert check_choice("q", " a", "A", reasons).passed
    assert repr(check_choice("q", "B", "A", reasons)) == "[failed] q: B is not it. no, since."
    assert "A, B" in check_choice("q", "Z", "A", reasons).message


# Plausible wrong answers that a check must catch.
def max_for_negative_advantages(ratio, advantage, low, high):
    clipped = ratio.clamp(1 - low, 1 + high) * advantage
    free = ratio * advantage
    return torch.where(advantage > 0, torch.minimum(free, clipped), torch.maximum(free, clipped))


def detached_ratio(logprobs, old, ref, advantages, mask, beta, epsilon):
    ratio = torch.exp(logprobs - old).detach()
    objective = torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - epsilon, 1 + epsilon) * advantages[:, None])
    u = ref - logprobs
    per_token = objective - beta * (u.exp() - u - 1)
    return -((per_token * mask).sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize(
    ("check", "wrong", "words"),
    [
        (checks.check_group_advantages, lambda r, u: (r - r.mean()) / r.std(), "population"),
        (checks.check_group_advantages, lambda r, u: (r - r.mean()) / r.std(correction=int(u)), "an equal group"),
        (checks.check_clip_objective, max_for_negative_advantages, "A < 0"),
        (checks.check_clip_objective, lambda r, a, low, high: r.clamp(1 - low, 1 + high) * a, "A > 0, ratio low"),
        (checks.check_gae, lambda rewards, values, *rest: rewards - values, "λ = 0"),
        (checks.check_grpo_loss, detached_ratio, "gradient is off"),
    ],
)
def test_known_mistakes_are_named(check, wrong, words):
    result = check(wrong)
    assert result.status == "failed" and words in result.message


def definitions(notebook):
    """The functions that a notebook defines, ready to call."""
    nbformat = pytest.importorskip("nbformat")
    found = {}
    for cell in nbformat.read(notebook, 4).cells:
        if cell.cell_type != "code" or "def my_" not in cell.source:
            continue
        tree = ast.parse(cell.source)
        tree.body = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.Import, ast.ImportFrom))]
        namespace = {"torch": torch}
        exec(compile(tree, str(notebook), "exec"), namespace)
        found.update({name: value for name, value in namespace.items() if name.startswith("my_")})
    return found


@pytest.mark.parametrize("name", EXERCISES_01)
def test_checks_are_green_on_the_solutions_and_not_on_the_stubs(name):
    solution = definitions(NOTEBOOKS / "solutions" / "01_ppo_vs_grpo_solutions.ipynb")[name]
    stub = definitions(NOTEBOOKS / "01_ppo_vs_grpo.ipynb")[name]
    result = EXERCISES_01[name](solution)
    assert result.passed, result.message
    assert EXERCISES_01[name](stub).status == "not yet"


def test_exercises_do_not_import_torch():
    code = "import sys, problama_utils.exercises.ppo_vs_grpo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=NOTEBOOKS.parent).returncode == 0
