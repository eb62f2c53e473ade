"""What every exercise check is made of: run the learner's answer, never crash, say which case fails and why.

How to write a check for a notebook (this is all there is):

    from problama_utils.exercises.checking import Case, check_function, CheckResult

    def check_group_advantages(answer) -> CheckResult:
        return check_function("group advantages", answer, [
            Case("two right, two wrong", ([1.0, 1.0, 0.0, 0.0],), [0.866, 0.866, -0.866, -0.866],
                 hint="divide by the deviation with G - 1", tolerance=1e-3),
            Case("an equal group", ([1.0, 1.0],), [0.0, 0.0], hint="0 / 0 is not 0"),
        ])

- `Case.args` is the tuple of arguments, `kwargs` the keyword arguments; each call gets a deep copy of them.
- `Case.expected` is what should come back: a number, text, boolean, None, or (nested) lists of them, or a dictionary.
  Tensors and arrays are compared as nested lists, shapes must agree, numbers within `tolerance`, NaN never agrees.
- `Case.judge` replaces the comparison where one value is not enough (a gradient, a property): a function of the
  returned value and of the arguments it was computed from; None when all is well, otherwise the sentence to show.
- `Case.hint` is one sentence that helps without giving the answer away.
- For a plain answer use `check_value(title, value, expected)`; for a quiz, `check_choice(title, answer, right,
  reasons)` with a reason for every letter.

The result prints itself as the last line of a cell. `result.status` is "passed", "failed" or "not yet"; "not yet" means
the stub was not filled in (it gave None or `...`, or raised NotImplementedError). Nothing here imports torch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 160  # characters of a learner's value that a message repeats


@dataclass(frozen=True)
class CheckResult:
    """The verdict on one exercise; truthy when it passed, and it prints as its message."""

    status: str  # "passed", "failed" or "not yet"
    message: str

    @property
    def passed(self) -> bool:
        """True when every case agreed."""
        return self.status == "passed"

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"[{self.status}] {self.message}"


@dataclass(frozen=True)
class Case:
    """One call of the learner's function and what it should give back."""

    name: str
    args: tuple = ()
    expected: Any = None
    hint: str = ""
    tolerance: float = 1e-4  # absolute, plus the same share of the expected number
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    judge: Callable[[Any, tuple], str | None] | None = None


def check_function(title: str, function: Callable | None, cases: Sequence[Case]) -> CheckResult:
    """Run a learner's function on all cases and stop at the first that disagrees.

    Args:
        title: what the exercise asks for, used in the message.
        function: the learner's function; anything else counts as "not yet".
        cases: the calls, from easy to degenerate.
    Returns:
        The verdict. No exception of the learner's code comes through, only a KeyboardInterrupt.
    """
    if not callable(function):
        return CheckResult("not yet", f"{title}: define the function first, then run this cell again.")
    for number, case in enumerate(cases, start=1):
        where = f"{title}, case {number} of {len(cases)} ({case.name})"
        args = copy.deepcopy(case.args)  # a learner's function that changes its inputs must not spoil the next case
        try:
            value = function(*args, **copy.deepcopy(dict(case.kwargs)))
        except NotImplementedError:
            return _not_yet(title)
        except (Exception, SystemExit) as error:
            return _failed(where, f"your function stopped with {type(error).__name__}: {_short(error)}", case.hint)
        nothing = value is None and (case.expected is not None or case.judge is not None)
        if nothing or value is ... or value is NotImplemented:
            return _not_yet(title) if number == 1 else _failed(where, "your function gave nothing back", case.hint)
        problem = _verdict(case, value, args)
        if problem:
            return _failed(where, problem, case.hint)
    return CheckResult("passed", f"{title}: all {len(cases)} cases agree.")


def check_value(title: str, value: Any, expected: Any, hint: str = "", tolerance: float = 1e-4) -> CheckResult:
    """Check one value that the learner computed or chose; None and `...` count as "not yet"."""
    if value is None or value is ...:
        return _not_yet(title)
    problem = _verdict(Case(title, expected=expected, tolerance=tolerance), value)
    return _failed(title, problem, hint) if problem else CheckResult("passed", f"{title}: right.")


def check_choice(title: str, answer: Any, right: str, reasons: Mapping[str, str]) -> CheckResult:
    """Check a multiple-choice answer and explain it.

    Args:
        title: the question's name.
        answer: the learner's letter, capital or small; None and `...` count as "not yet".
        right: the right letter.
        reasons: for every letter on offer, the sentence that explains why it is right or wrong.
    """
    if answer is None or answer is ... or not str(answer).strip():
        return _not_yet(title)
    letter = str(answer).strip().upper()
    if letter not in reasons:
        return CheckResult("failed", f"{title}: answer with one of {', '.join(sorted(reasons))}, not {_short(answer)}.")
    verdict = "passed" if letter == right else "failed"
    return CheckResult(verdict, f"{title}: {letter} is {'right' if letter == right else 'not it'}. {reasons[letter]}")


def difference(value: Any, expected: Any, tolerance: float = 1e-4) -> str | None:
    """Say in one phrase how a value differs from the expected one; None when it does not.

    >>> difference([1.0, 2.5], [1.0, 2.0])
    'expected [1.0, 2.0], got [1.0, 2.5]; the first difference is at position 1'
    >>> difference(0.50000001, 0.5) is None
    True
    """
    value, expected = _plain(value), _plain(expected)
    if _shape(value) != _shape(expected) and _is_numeric(expected) and _is_numeric(value):
        return f"expected {_form(expected)}, got {_form(value)} ({_short(value)})"
    place = _first_difference(value, expected, tolerance)
    if place is None:
        return None
    spot = f"; the first difference is at position {', '.join(map(str, place))}" if place else ""
    return f"expected {_short(expected)}, got {_short(value)}{spot}"


def _verdict(case: Case, value: Any, args: tuple = ()) -> str | None:
    """The complaint about a value. A learner's odd object may break any comparison: that too becomes a sentence."""
    try:
        return case.judge(value, args) if case.judge else difference(value, case.expected, case.tolerance)
    except (Exception, SystemExit) as error:
        return f"the value cannot be compared ({type(error).__name__}: {_short(error)}); it is {_short(value)}"


def _plain(value: Any) -> Any:
    """Tensors, arrays and tuples as nested lists, so that one comparison serves all of them."""
    if hasattr(value, "detach"):
        value = value.detach()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _first_difference(value: Any, expected: Any, tolerance: float) -> tuple | None:
    """The path to the first place that differs: () for the whole, None for nowhere."""
    if isinstance(expected, list):
        if not isinstance(value, list) or len(value) != len(expected):
            return ()
        pairs = enumerate(zip(value, expected, strict=True))
    elif isinstance(expected, dict):
        if not isinstance(value, dict) or value.keys() != expected.keys():
            return ()
        pairs = ((key, (value[key], expected[key])) for key in expected)
    else:
        return None if _agree(value, expected, tolerance) else ()
    for place, (mine, theirs) in pairs:
        deeper = _first_difference(mine, theirs, tolerance)
        if deeper is not None:
            return (place, *deeper)
    return None


def _agree(value: Any, expected: Any, tolerance: float) -> bool:
    numbers = (int, float)
    if isinstance(expected, numbers) and not isinstance(expected, bool) and isinstance(value, numbers):
        if math.isinf(expected):
            return value == expected
        return abs(value - expected) <= tolerance * (1.0 + abs(expected))  # False for NaN
    return type(value) is type(expected) and value == expected or (value is None and expected is None)


def _shape(value: Any) -> tuple:
    if isinstance(value, list):
        inner = {_shape(item) for item in value}
        return (len(value), *(inner.pop() if len(inner) == 1 else ()))
    return ()


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_numeric(item) for item in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _form(value: Any) -> str:
    return f"shape {_shape(value)}" if isinstance(value, list) else "a single number"


def _short(value: Any) -> str:
    """A value in at most one line; floats rounded so that they can be read."""
    try:
        text = str(value if isinstance(value, BaseException) else _rounded(_plain(value)))
    except Exception:  # whatever a learner's __repr__ does
        text = f"an object of type {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) and math.isfinite(value) else value


def _not_yet(title: str) -> CheckResult:
    return CheckResult("not yet", f"{title}: fill in the stub (replace the dots), then run it and this check again.")


def _failed(where: str, problem: str, hint: str) -> CheckResult:
    return CheckResult("failed", f"{where}: {problem}." + (f" Hint: {hint}" if hint else ""))
