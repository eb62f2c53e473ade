"""What every exercise check is made of: run the learner's answer, never crash, say which case fails and why.

To write a check, look at `riddle_training.py`; this is all there is to know:

- A check is a `check_function(title, function, cases)`; the fields of a `Case` are explained below.
- What comes back is compared with `expected`: a number, text, boolean, None, (nested) lists of them, or a dictionary.
  Tensors and arrays are compared as nested lists, shapes must agree, NaN never agrees.
- For a plain answer use `check_value(title, value, expected)`; for a quiz, `check_choice(title, answer, right,
  reasons)` with a reason for every letter.

The result prints itself as the last line of a cell. `result.status` is "passed", "failed" or "not yet"; "not yet" means
the stub was not filled in (it gave None or `...`, or raised NotImplementedError). Nothing here imports torch.

What a learner gives back is converted to plain numbers, texts and lists by the exact type of each part, with the
library's functions and never with methods of the learner's own objects, and subclasses are refused. The learner's
function runs in a thread of its own, without the expected values on its stack or in any live object, and any exception
becomes a sentence. This guards against mistakes; it is not a sandbox. A function that never returns is ended by Ctrl-C
alone, and one that ends the process ends the kernel: work of others is graded in a process of its own.
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
from dataclasses import dataclass, replace
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

    def __bool__(self) -> bool:
        return self.status == "passed"

    def __repr__(self) -> str:
        return f"[{self.status}] {self.message}"


@dataclass(frozen=True)
class Case:
    """One call of the learner's function and what it should give back."""

    name: str
    args: tuple = ()  # each call gets a deep copy
    expected: Any = None
    hint: str = ""  # one sentence that helps without giving the answer away
    tolerance: float = 1e-4  # absolute, plus the same share of the expected number
    # Where one expected value is not enough (a gradient, a property): takes the returned value and the arguments, gives
    # the sentence to show, None when all is well. What may run the learner's code again goes through `run_apart`.
    compare: Callable[[Any, tuple], str | None] | None = None


def check_function(title: str, function: Callable | None, cases: Sequence[Case]) -> CheckResult:
    """Run a learner's function on all cases, from easy to degenerate, and stop at the first that disagrees.

    No exception of the learner's code comes through, only a genuine Ctrl-C.
    """
    if not callable(function):
        return CheckResult("not yet", f"{title}: define the function first, then run this cell again.")
    # Sealed, so that no object which a learner's code could come across while it runs holds an expected value.
    cases = [replace(case, expected=_sealed(case.expected)) for case in cases]
    for number, case in enumerate(cases, start=1):
        where = f"{title}, case {number} of {len(cases)} ({case.name})"
        # Copies: a learner's function that changes its inputs must not spoil the next case.
        args = copy.deepcopy(case.args)
        value, raised = run_apart(function, *args)
        if raised.startswith("NotImplementedError"):
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


def run_apart(function: Callable, *args: Any) -> tuple[Any, str]:
    """Call a learner's function in a thread of its own, whose stack holds nothing of the check.

    A thread also tells the two kinds of KeyboardInterrupt apart: the learner's own stays in there, Ctrl-C comes here.

    Returns:
        `(value, "")`, or `(None, "ValueError: what it says")` where it raised, of any kind.
    """
    outcome: list[tuple[Any, str]] = []

    def call() -> None:
        try:
            outcome.append((function(*args), ""))
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
    """An exception in a line; its text may come from the learner's own `__str__`."""
    name = _type_name(error)
    try:
        text = str.__str__(str(error))
    except BaseException:
        text = ""
    return f"{name}: {_one_line(text)}" if text else name


def check_value(title: str, value: Any, expected: Any, hint: str = "") -> CheckResult:
    """Check one value that the learner computed or chose; None and `...` count as "not yet"."""
    if value is None or value is ...:
        return _not_yet(title)
    problem = difference(value, expected)
    return _failed(title, problem, hint) if problem else CheckResult("passed", f"{title}: right.")


def check_choice(title: str, answer: Any, right: str, reasons: Mapping[str, str]) -> CheckResult:
    """Check a letter, capital or small, and explain it; None, `...` and an empty text count as "not yet".

    `reasons` holds, for every letter on offer, the sentence that explains why it is right or wrong.
    """
    given = _plain(answer)
    letter = given.strip().upper() if type(given) is str else None
    if given is None or given is ... or letter == "":
        return _not_yet(title)
    if letter not in reasons:
        return CheckResult("failed", f"{title}: answer with one of {', '.join(reasons)}, not {_short(given)}.")
    if letter == right:
        return CheckResult("passed", f"{title}: {letter} is right. {reasons[letter]}")
    return CheckResult("failed", f"{title}: {letter} is not it. {reasons[letter]}")


def difference(value: Any, expected: Any, tolerance: float = 1e-4) -> str | None:
    """Say in one phrase how a value differs from the expected one; None when it does not.

    >>> difference([1.0, 2.5], [1.0, 2.0])
    'expected [1.0, 2.0], got [1.0, 2.5]; the first difference is at position 1'
    >>> difference(0.50000001, 0.5) is None
    True
    """
    value, expected = _plain(value), _plain(expected)
    shape, wanted = _shape(value), _shape(expected)
    if shape != wanted and None not in (shape, wanted):
        return f"expected {_form(wanted)}, got {_form(shape)} ({_short(value)})"
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
    try:
        if case.compare:
            return case.compare(value, args)
        return difference(value, pickle.loads(case.expected), case.tolerance)
    except (Exception, SystemExit) as error:  # shapes and types that do not fit the comparison's arithmetic
        return f"the value cannot be compared ({_told(error)}); it is {_short(_plain(value))}"


class _Odd(Exception):
    """What cannot be compared; the text says what it is and what to give instead."""


def _plain(value: Any) -> Any:
    """Return a value as plain numbers, texts, nested lists and dictionaries, or an `_Odd` if it is none of these.

    Only the exact type of each part counts, and only functions of Python, numpy, torch and pandas run: a learner's
    class may lie in `__eq__`, end the kernel in `tolist` or recurse in `__repr__`.
    """
    try:
        return _plain_part(value, [_ITEMS], _DEPTH)
    except _Odd as odd:
        return odd


def _plain_part(value: Any, budget: list[int], depth: int) -> Any:
    kind = type(value)
    if value is None or value is ... or _is_one_of(kind, bool, float, str):
        return value
    if kind is int:
        if abs(value) < 10**_DIGITS:
            return value
        raise _Odd(f"a whole number of more than {_DIGITS} digits")
    if not depth:
        raise _Odd(f"something nested more than {_DEPTH} deep")
    if _is_one_of(kind, list, tuple, dict):
        _check_size(len(value), budget)
        budget[0] -= len(value)
        if kind is not dict:
            return [_plain_part(item, budget, depth - 1) for item in value]
        if not all(_is_one_of(type(key), str, int, float, bool, type(None)) for key in value):
            raise _Odd("a dictionary whose keys are not plain texts or numbers")
        return {key: _plain_part(item, budget, depth - 1) for key, item in value.items()}
    library = _from_library(value, kind, budget)
    if library is value:
        raise _Odd(f"an object of type {_type_name(value)}: give plain numbers, texts or lists of them")
    return _plain_part(library, budget, depth - 1)


def _check_size(parts: int, budget: list[int]) -> None:
    if parts > budget[0]:
        raise _Odd(f"a value of more than {_ITEMS} parts, far more than was asked for")


def _from_library(value: Any, kind: type, budget: list[int]) -> Any:
    """Return a tensor, array, series or numpy number as Python lists and numbers, anything else as it is."""
    torch, np, pd = (sys.modules.get(name) for name in ("torch", "numpy", "pandas"))
    if torch and _is_one_of(kind, torch.Tensor, torch.nn.Parameter):
        _check_size(torch.Tensor.numel(value), budget)
        try:
            return torch.Tensor.tolist(torch.Tensor.to_dense(torch.Tensor.detach(value)))
        except (Exception, SystemExit):  # no data behind it (device "meta"), or a layout without a list
            raise _Odd("a tensor whose numbers cannot be read: give an ordinary dense one") from None
    if pd and kind is pd.Series:
        return pd.Series.to_numpy(value)
    if np and kind is np.ndarray:
        _check_size(value.size, budget)
        return np.ndarray.tolist(value)
    if np and kind is np.longdouble:
        return float(value)
    if np and kind is not np.clongdouble and _is_one_of(kind, *np.sctypeDict.values()):
        return np.generic.item(value)
    return value


def _is_one_of(kind: type, *kinds: type) -> bool:
    """By identity: `in` would ask a learner's metaclass whether it is equal."""
    return any(kind is one for one in kinds)


def _type_name(value: Any) -> str:
    return _one_line(type.__dict__["__name__"].__get__(type(value)))  # a metaclass may have a `__name__` of its own


def _first_difference(value: Any, expected: Any, tolerance: float) -> tuple | None:
    """The path to the first place that differs: () for the whole, None for nowhere."""
    if not isinstance(expected, (list, dict)):
        return None if _agree(value, expected, tolerance) else ()
    if type(value) is not type(expected):
        return ()
    if isinstance(expected, list):
        value, expected = dict(enumerate(value)), dict(enumerate(expected))
    if value.keys() != expected.keys():
        return ()
    for place in expected:
        deeper = _first_difference(value[place], expected[place], tolerance)
        if deeper is not None:
            return (place, *deeper)
    return None


def _agree(value: Any, expected: Any, tolerance: float) -> bool:
    numbers = (int, float)
    if isinstance(expected, numbers) and not isinstance(expected, bool) and isinstance(value, numbers):
        close = abs(value - expected) <= tolerance * (1.0 + abs(expected))  # False for NaN
        return value == expected or (close and math.isfinite(expected))
    return type(value) is type(expected) and value == expected


def _shape(value: Any) -> tuple | None:
    """The shape of nested lists of numbers, () for one number, None for anything else."""
    if isinstance(value, list):
        inner = {_shape(item) for item in value}
        if None in inner:
            return None
        return (len(value), *(inner.pop() if len(inner) == 1 else ()))
    return () if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _form(shape: tuple) -> str:
    return f"shape {shape}" if shape else "a single number"


def _short(value: Any) -> str:
    """A plain value in at most one line; floats rounded so that they can be read."""
    return _one_line(str(_rounded(value)))


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
