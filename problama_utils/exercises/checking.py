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
- `Case.compare` replaces the comparison where one value is not enough (a gradient, a property): a function of the
  returned value and of the arguments it was computed from; None when all is well, otherwise the sentence to show. What
  may run the learner's code again, such as a backward pass, goes through `run_apart`.
- `Case.hint` is one sentence that helps without giving the answer away.
- For a plain answer use `check_value(title, value, expected)`; for a quiz, `check_choice(title, answer, right,
  reasons)` with a reason for every letter.

The result prints itself as the last line of a cell. `result.status` is "passed", "failed" or "not yet"; "not yet" means
the stub was not filled in (it gave None or `...`, or raised NotImplementedError). Nothing here imports torch.

A check compares plain Python numbers, texts and lists: what a learner gives back is converted by the exact type of each
part, with the library's functions and never with methods of the learner's own objects, and subclasses are refused. The
learner's function runs in a thread of its own, without the expected values on its stack or in any live object, and
any exception becomes a sentence. This guards against mistakes; it is not a sandbox. A function that never returns is
ended by Ctrl-C alone, and one that ends the process ends the kernel: work of others is graded in a process of its own.
"""

from __future__ import annotations

import contextvars
import copy
import ctypes
import math
import pickle
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import GeneratorType
from typing import Any

_SHOWN = 160  # characters of a learner's value that a message repeats
_ITEMS = 100_000  # parts of a value that are compared; the largest answer of the course has 64
_DEPTH = 20  # of nested lists; one that holds itself has no end
_DIGITS = 300  # of a whole number; beyond, it is no float either


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
    compare: Callable[[Any, tuple], str | None] | None = None


def check_function(title: str, function: Callable | None, cases: Sequence[Case]) -> CheckResult:
    """Run a learner's function on all cases and stop at the first that disagrees.

    Args:
        title: what the exercise asks for, used in the message.
        function: the learner's function; anything else counts as "not yet".
        cases: the calls, from easy to degenerate.
    Returns:
        The verdict. No exception of the learner's code comes through, only a genuine Ctrl-C.
    """
    if not callable(function):
        return CheckResult("not yet", f"{title}: define the function first, then run this cell again.")
    # Sealed, so that no object which a learner's code could come across while it runs holds an expected value.
    cases = [replace(case, expected=_sealed(case.expected)) for case in cases]
    for number, case in enumerate(cases, start=1):
        where = f"{title}, case {number} of {len(cases)} ({case.name})"
        # Copies: a learner's function that changes its inputs must not spoil the next case.
        args, kwargs = copy.deepcopy((case.args, dict(case.kwargs)))
        value, raised = run_apart(function, *args, **kwargs)
        if raised == "NotImplementedError":
            return _not_yet(title)
        if raised:
            return _failed(where, f"your function stopped with {raised}", case.hint)
        nothing = value is None and (case.compare is not None or pickle.loads(case.expected) is not None)
        if nothing or value is ... or value is NotImplemented:
            return _not_yet(title) if number == 1 else _failed(where, "your function gave nothing back", case.hint)
        problem = _verdict(case, value, args)
        if problem:
            return _failed(where, problem, case.hint)
    return CheckResult("passed", f"{title}: all {len(cases)} cases agree.")


def run_apart(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, str]:
    """Call a learner's function in a thread of its own, whose stack holds nothing of the check.

    A thread also tells the two kinds of KeyboardInterrupt apart: the learner's own stays in there, Ctrl-C comes here.

    Returns:
        `(value, "")`, or `(None, "ValueError: what it says")` where it raised, of any kind.
    """
    outcome: list[tuple[Any, str]] = []

    def call() -> None:
        try:
            outcome.append((function(*args, **kwargs), ""))
        except NotImplementedError:
            outcome.append((None, "NotImplementedError"))
        except BaseException as error:
            outcome.append((None, _told(error)))

    context = contextvars.copy_context()  # numpy's error settings and the notebook's cell, where prints go
    thread = threading.Thread(target=context.run, args=(call,), daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)  # without a limit, Windows does not hear Ctrl-C
    except KeyboardInterrupt:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise
    return outcome[0] if outcome else (None, "an exception that cannot even be named")


def _told(error: BaseException) -> str:
    """An exception in a line. Its text may come from the learner's own `__str__`, so this runs in their thread."""
    name = _type_name(error)
    try:
        text = str.__str__(str(error))
    except BaseException:
        text = ""
    return f"{name}: {_one_line(text)}" if text else name


def check_value(title: str, value: Any, expected: Any, hint: str = "", tolerance: float = 1e-4) -> CheckResult:
    """Check one value that the learner computed or chose; None and `...` count as "not yet"."""
    if value is None or value is ...:
        return _not_yet(title)
    problem = _verdict(Case(title, expected=_sealed(expected), tolerance=tolerance), value, ())
    return _failed(title, problem, hint) if problem else CheckResult("passed", f"{title}: right.")


def check_choice(title: str, answer: Any, right: str, reasons: Mapping[str, str]) -> CheckResult:
    """Check a multiple-choice answer and explain it.

    Args:
        title: the question's name.
        answer: the learner's letter, capital or small; None and `...` count as "not yet".
        right: the right letter.
        reasons: for every letter on offer, the sentence that explains why it is right or wrong.
    """
    given = _plain(answer)
    if given is None or given is ... or (type(given) is str and not given.strip()):
        return _not_yet(title)
    letter = given.strip().upper() if type(given) is str and len(given) < _SHOWN else None
    if letter not in reasons:
        return CheckResult("failed", f"{title}: answer with one of {', '.join(sorted(reasons))}, not {_short(given)}.")
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


def _sealed(expected: Any) -> bytes:
    plain = _plain(expected)
    if type(plain) is _Odd:
        raise TypeError(f"a check cannot expect {plain}")  # the mistake of a check's author
    return pickle.dumps(plain)


def _verdict(case: Case, value: Any, args: tuple) -> str | None:
    """The complaint about a value: what no comparison can take is named first."""
    plain = _plain(value)
    if type(plain) is _Odd:
        return f"a check compares plain numbers, texts and lists, and this is {plain}"
    try:
        if case.compare:
            return case.compare(value, args)
        return difference(plain, pickle.loads(case.expected), case.tolerance)
    except (Exception, SystemExit) as error:  # shapes and types that do not fit the comparison's arithmetic
        return f"the value cannot be compared ({type(error).__name__}: {_one_line(str(error))}); it is {_short(plain)}"


class _Odd:
    """Something that is not compared; its text says what it is and what to give instead."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _plain(value: Any) -> Any:
    """Return a value as plain numbers, texts, nested lists and dictionaries; what is none of these as `_Odd`.

    Only the exact type of each part counts, and only functions of Python, numpy, torch and pandas run: a learner's
    class may lie in `__eq__`, end the kernel in `tolist` or recurse in `__repr__`.
    """
    budget = [_ITEMS]
    try:
        return _plain_part(value, budget, _DEPTH)
    except _TooMuch as error:
        return _Odd(str(error))


class _TooMuch(Exception):
    """A value that is too large or too deep to compare."""


def _plain_part(value: Any, budget: list[int], depth: int) -> Any:
    kind = type(value)
    if value is None or value is ... or _is_one_of(kind, bool, float, str, _Odd):
        return value
    if kind is int:
        return value if abs(value) < 10**_DIGITS else _Odd(f"a whole number of more than {_DIGITS} digits")
    if not depth:
        raise _TooMuch(f"something nested more than {_DEPTH} deep")
    if kind is list or kind is tuple or kind is dict:
        budget[0] -= len(value)
        if budget[0] < 0:
            raise _TooMuch(f"a value of more than {_ITEMS} parts, far more than was asked for")
        if kind is not dict:
            return [_plain_part(item, budget, depth - 1) for item in value]
        if not all(_is_one_of(type(key), str, int, float, bool, type(None)) for key in value):
            return _Odd("a dictionary whose keys are not plain texts or numbers")
        return {key: _plain_part(item, budget, depth - 1) for key, item in value.items()}
    library = _from_library(value, kind, budget)
    if library is not _NONE:
        return _plain_part(library, budget, depth - 1)
    for plain in (bool, int, float, str, list, tuple, dict):
        if plain in type.__dict__["__mro__"].__get__(kind):
            return _Odd(f"an object of type {_type_name(value)}, a kind of {plain.__name__}: give a plain "
                        f"{plain.__name__}")
    if _is_one_of(kind, GeneratorType, range, set, frozenset, type({}.keys()), type({}.values()), map, zip, filter):
        return _Odd(f"a {kind.__name__}: give a list, as list(...) makes it")
    return _Odd(f"an object of type {_type_name(value)}: give plain numbers, texts or lists of them")


_NONE = object()


def _from_library(value: Any, kind: type, budget: list[int]) -> Any:
    """Return a tensor, array, series or numpy number as Python lists and numbers; `_NONE` for what is none of them."""
    torch, np, pd = (sys.modules.get(name) for name in ("torch", "numpy", "pandas"))
    if torch and _is_one_of(kind, torch.Tensor, torch.nn.Parameter):
        try:
            if torch.Tensor.numel(value) > budget[0]:
                return _Odd(f"a tensor of {torch.Tensor.numel(value)} numbers, far more than was asked for")
            dense = torch.Tensor.to_dense(torch.Tensor.detach(value))
            return torch.Tensor.tolist(torch.Tensor.float(dense) if dense.dtype is torch.bfloat16 else dense)
        except (Exception, SystemExit):  # no data behind it (device "meta"), or a layout without a list
            return _Odd("a tensor whose numbers cannot be read: give an ordinary dense one")
    if pd and kind is pd.Series:
        value = pd.Series.to_numpy(value)
        kind = type(value)
    if np and kind is np.ndarray:
        if value.size > budget[0]:
            return _Odd(f"an array of {value.size} numbers, far more than was asked for")
        return np.ndarray.tolist(value)
    if np and _is_one_of(kind, *np.sctypeDict.values()):
        number = float(value) if kind is np.longdouble else np.generic.item(value)
        return number if type(number) is not kind else _Odd(f"a number of type {kind.__name__}")
    return _NONE


def _is_one_of(kind: type, *kinds: type) -> bool:
    """By identity: `in` would ask a learner's metaclass whether it is equal."""
    return any(kind is one for one in kinds)


def _type_name(value: Any) -> str:
    return _one_line(type.__dict__["__name__"].__get__(type(value)))  # a metaclass may have a `__name__` of its own


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
        if value == expected:  # infinities too, and whole numbers that no float can hold
            return True
        if math.isinf(expected):
            return False
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
    return _one_line(str(_rounded(_plain(value))))


def _one_line(text: str) -> str:
    text = " ".join(str.__str__(text)[: 10 * _SHOWN].split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) and math.isfinite(value) else value


def _not_yet(title: str) -> CheckResult:
    return CheckResult("not yet", f"{title}: fill in the stub (replace the dots), then run it and this check again.")


def _failed(where: str, problem: str, hint: str) -> CheckResult:
    return CheckResult("failed", f"{where}: {problem}." + (f" Hint: {hint}" if hint else ""))
