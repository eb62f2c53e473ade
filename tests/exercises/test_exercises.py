"""Exercise checks: never a stack trace, "not yet" on a stub, the failing case by name, green on the solutions."""

import ast
import gc
import inspect
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from problama_utils.exercises import ppo_vs_grpo as checks
from problama_utils.exercises.checking import Case, check_choice, check_function, check_value, difference

NOTEBOOKS = pathlib.Path(__file__).parents[2] / "notebooks"
EXERCISES_01 = {
    "my_group_advantages": checks.check_group_advantages,
    "my_clip_objective": checks.check_clip_objective,
    "my_gae": checks.check_gae,
    "my_grpo_loss": checks.check_grpo_loss,
}


class Unprintable:
    """A learner's object that breaks anything that touches it."""

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
    assert check_function("in place", lambda x: x.add_(1), cases)
    assert shared.tolist() == [1.0, 1.0]


def test_values_and_choices():
    assert check_value("v", None, 3).status == "not yet"
    assert check_value("v", 3.00001, 3) and check_value("v", 3.1, 3).status == "failed"
    reasons = {"A": "because.", "B": "no, since."}
    assert check_choice("q", ..., "A", reasons).status == "not yet"
    assert check_choice("q", " a", "A", reasons)
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
    assert result, result.message
    assert EXERCISES_01[name](stub).status == "not yet"


class Liar(float):
    """A float that agrees with everything."""

    def __abs__(self):
        return 0.0

    def __sub__(self, other):
        return self

    def __eq__(self, other):
        return True

    __rsub__, __le__, __hash__ = __sub__, __eq__, None


class LyingInt(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class LyingText(str):
    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


class LyingList(list):
    def __eq__(self, other):
        return True

    def __len__(self):
        return 1

    def __iter__(self):
        return iter([42.0])


class LyingKind(type):
    """A metaclass that equals every class and has no name."""

    def __eq__(cls, other):
        return True

    __hash__ = type.__hash__

    @property
    def __name__(cls):
        raise SystemExit("no name")


class Disguised(metaclass=LyingKind):
    @property
    def __class__(self):
        return float


class TensorLiar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise SystemExit("no function for me")


class ArrayLiar(np.ndarray):
    def tolist(self):
        return 42.0


def ending(method, error):
    """An object one of whose methods raises an exception that would end a kernel."""
    def stop(self, *args):
        raise error

    return type("Ending", (), {method: stop})()


def nested(depth):
    value = 42.0
    for _ in range(depth):
        value = [value]
    return value


def endless_list():
    value = []
    value.append(value)
    return value


def endless_array():
    value = np.empty((), dtype=object)
    value[()] = value
    return value


def patched_tensor():
    value = torch.tensor(1.0)
    value.tolist = value.detach = value.item = lambda: 42.0
    return value


HOSTILE = {
    "a float that lies": lambda: Liar(1.0), "a list of such": lambda: [Liar(1.0)],
    "an int that lies": lambda: LyingInt(1),
    "a text that lies": lambda: LyingText("x"), "a list that lies": lambda: LyingList([1]),
    "a metaclass that lies": Disguised, "an array that lies": lambda: np.zeros(3).view(ArrayLiar),
    "a tensor that lies": lambda: torch.zeros(3).as_subclass(TensorLiar), "a patched tensor": patched_tensor,
    **{f"{method} raises {type(error).__name__}": lambda method=method, error=error: ending(method, error)
       for method in ("tolist", "__float__", "__array__", "__eq__", "__repr__", "__str__", "__len__", "__iter__",
                      "detach", "shape", "__abs__", "__index__", "item", "__bool__", "__hash__")
       for error in (SystemExit(3), KeyboardInterrupt(), BaseException("base"), RecursionError())},
    "a list that holds itself": endless_list, "an array that holds itself": endless_array,
    "a deep list": lambda: nested(5000),
    "a huge list": lambda: [0.0] * 10**7, "a huge array": lambda: np.zeros(10**7),
    "a huge tensor": lambda: torch.zeros(10**7),
    "a huge text": lambda: "x" * 10**7, "a huge number": lambda: 10**5000,
    "a long long double": lambda: np.clongdouble(1),
    "a generator": lambda: (x for x in [42.0]), "an endless generator": lambda: iter(int, 1),
    "a range": lambda: range(3),
    "a set": lambda: {42.0}, "a dict view": lambda: {1: 2}.keys(), "a coroutine function": lambda: ending,
    "None": lambda: [None],
    "a complex number": lambda: 42 + 0j, "bytes": lambda: b"42", "a numpy text": lambda: np.str_("42"),
    "NaN": lambda: float("nan"), "infinity": lambda: float("inf"), "a numpy NaN": lambda: np.float32("nan"),
    "a tensor without data": lambda: torch.zeros(3, device="meta"), "True": lambda: True, "a text": lambda: "42",
    "a list of one": lambda: [42.0], "a tensor of one": lambda: torch.tensor([42.0]), "a dict": lambda: {"a": 42.0},
    "a dict with odd keys": lambda: {Disguised(): 42.0}, "a date": lambda: np.datetime64("2026-01-01"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_no_object_of_a_learner_passes_ends_the_kernel_or_stalls(name):
    result = check_function("t", lambda: HOSTILE[name](), [Case("one", (), 42.0, hint="a hint")])
    assert result.status == "failed" and "Hint: a hint" in repr(result) and len(repr(result)) < 600
    assert "\n" not in repr(result)
    assert check_value("t", HOSTILE[name](), 42.0).status == "failed"
    assert check_choice("t", HOSTILE[name](), "A", {"A": "yes."}).status == "failed"
    assert isinstance(difference(HOSTILE[name](), 42.0), str)


@pytest.mark.parametrize("check", EXERCISES_01.values(), ids=EXERCISES_01)
@pytest.mark.parametrize("name", ["a float that lies", "a tensor that lies", "tolist raises SystemExit",
                                  "shape raises KeyboardInterrupt", "a tensor without data", "a huge tensor"])
def test_hostile_objects_meet_a_comparison_no_better(check, name):
    assert check(lambda *args: HOSTILE[name]()).status == "failed"


class Mute(Exception):
    def __str__(self):
        raise SystemExit("no text for me")


class Chatty(Exception):
    def __str__(self):
        return str(self)


@pytest.mark.parametrize("error", [
    SystemExit(3), SystemExit(), KeyboardInterrupt(), BaseException("base"), GeneratorExit(), Mute(), Chatty(),
    RecursionError("deep"), MemoryError(), StopIteration(7), BaseExceptionGroup("two", [SystemExit(1), ValueError()]),
    ValueError("x" * 10**6), ValueError("two\nlines"), type("E", (Exception, ), {"__repr__": stops})(),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_whatever_a_learner_raises_becomes_a_sentence(error):
    def raising(*args):
        raise error

    result = check_function("t", raising, [Case("one", (1,), 1)])
    assert result.status == "failed" and f"stopped with {type(error).__name__}" in result.message
    assert "\n" not in result.message and len(result.message) < 400


def test_a_function_that_calls_itself_for_ever_or_prints_is_no_trouble(capsys):
    def deep(x):
        return deep(x)

    def loud(x):
        print("x is", x)
        return x

    assert "RecursionError" in check_function("t", deep, [Case("one", (1,), 1)]).message
    assert check_function("t", loud, [Case("one", (1,), 1)]) and capsys.readouterr().out == "x is 1\n"


def holds(value, found, depth=3):
    """Whether an object leads to 4242.5 through attributes, items and closures."""
    if depth < 0:
        return
    if type(value) is float and value == 4242.5:
        found.append(value)
    parts = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
    parts += [vars(value)] if hasattr(value, "__dict__") and not isinstance(value, type) else []
    parts += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    for part in parts[:2000]:
        holds(part, found, depth - 1)


def by_frames(*args):
    found, frame = [], sys._getframe(1)
    while frame:
        holds(dict(frame.f_locals), found)
        frame = frame.f_back
    return found[0] if found else 0.0


def by_inspect(*args):
    found = []
    for place in inspect.stack()[1:]:
        holds(dict(place.frame.f_locals), found)
    return found[0] if found else 0.0


def by_threads(*args):
    found = []
    for frame in sys._current_frames().values():
        while frame:
            if "checking" in frame.f_code.co_filename or "threading" in frame.f_code.co_filename:
                holds(dict(frame.f_locals), found)
            frame = frame.f_back
    return found[0] if found else 0.0


def by_traceback(*args):
    found = []
    try:
        raise ValueError
    except ValueError as error:
        frame = error.__traceback__.tb_frame.f_back
        while frame:
            holds(dict(frame.f_locals), found)
            frame = frame.f_back
    return found[0] if found else 0.0


def by_garbage(*args):
    cases = [one for one in gc.get_objects() if type(one) is Case]
    return next((case.expected for case in cases if case.expected == 4242.5), 0.0)


@pytest.mark.parametrize("cheat", [by_frames, by_inspect, by_threads, by_traceback, by_garbage],
                         ids=lambda cheat: cheat.__name__)
def test_the_expected_value_is_in_no_object_that_a_learners_function_meets(cheat):
    result = check_function("t", cheat, [Case("one", (1,), 2121.25 * 2)])  # not in the assert: pytest keeps its parts
    assert result.status == "failed"


def test_a_backward_pass_of_the_learner_knows_no_gradient_and_may_raise_anything():
    class Sly(torch.autograd.Function):
        @staticmethod
        def forward(context, logprobs, value):
            return value.clone()

        @staticmethod
        def backward(context, upstream):
            frame = sys._getframe(1)
            while frame:
                if "gradient" in frame.f_locals:
                    return frame.f_locals["gradient"], None
                frame = frame.f_back
            raise SystemExit("found nothing")

    def cheat(logprobs, old, ref, advantages, mask, beta, epsilon):
        from problama_utils.grpo.losses import grpo_loss

        loss = grpo_loss(logprobs, old, advantages, mask, ref_logprobs=ref, beta=beta, epsilon=epsilon).detach()
        return Sly.apply(logprobs, loss)

    result = checks.check_grpo_loss(cheat)
    assert result.status == "failed" and "backward pass of your loss stopped with SystemExit" in result.message


def test_inputs_stay_as_they_are_whatever_a_learner_does_to_them():
    inputs = [[1.0, 2.0], {"a": [3.0]}, torch.ones(2), np.ones(2)]

    def spoil(numbers, table, tensor, array):
        numbers.clear()
        table["a"].append(1)
        tensor.zero_()
        array[:] = 0
        return 1.0

    assert check_function("t", spoil, [Case("a", tuple(inputs), 1.0)] * 2)
    assert inputs[0] == [1.0, 2.0] and inputs[1] == {"a": [3.0]}
    assert inputs[2].tolist() == [1.0, 1.0] and inputs[3].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [
    42, 42.0, np.float64(42), np.float32(42), np.int64(42), np.longdouble(42), np.array(42.0), torch.tensor(42),
    torch.tensor(42.0, requires_grad=True), torch.nn.Parameter(torch.tensor(42.0)), torch.tensor(42.0).bfloat16(),
    torch.tensor(42.0, dtype=torch.float64), np.float16(42), np.uint8(42),
], ids=lambda value: f"{type(value).__name__}")  # fmt: skip
def test_every_usual_way_to_give_a_number_is_right(value):
    assert check_function("t", lambda: value, [Case("one", (), 42.0)]) and check_value("t", value, 42)


def test_a_check_whose_author_expects_what_cannot_be_compared_is_an_error_of_ours():
    with pytest.raises(TypeError, match="cannot expect"):
        check_function("t", lambda: 1, [Case("one", (), {1, 2})])


def test_ctrl_c_ends_an_endless_answer_and_is_the_only_interrupt_that_comes_through():
    program = ("import sys, threading, time\n"
               "from problama_utils.exercises.checking import Case, check_function\n"
               "def endless():\n    print('running', flush=True)\n    while True: pass\n"
               "try:\n    check_function('t', endless, [Case('one', (), 1)])\n"
               "except KeyboardInterrupt:\n    until = time.monotonic() + 20\n"
               "    while threading.active_count() > 1 and time.monotonic() < until: time.sleep(0.1)\n"
               "    print('interrupted', threading.active_count(), flush=True)\n")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "interrupted 1\n" and process.returncode == 0
    finally:
        process.kill()  # an answer without an end must not outlive its test


def test_exercises_do_not_import_torch():
    code = "import sys, problama_utils.exercises.ppo_vs_grpo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=NOTEBOOKS.parent).returncode == 0
