"""Errors that people read: one sentence with what happened, what was expected and what to do next.

A `CourseError` is shown as that sentence alone, in a terminal (through `sys.excepthook`) and in a notebook (through
IPython's `_render_traceback_`). Every other exception keeps its full traceback: it is our bug, not the reader's.
"""

from __future__ import annotations

import sys
from types import TracebackType


class CourseError(ValueError):
    """A mistake or missing piece that the reader can fix; the message says how."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


_default_hook = sys.excepthook


def _one_line_hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, CourseError):
        print(f"{kind.__name__}: {error}", file=sys.stderr)
    else:
        _default_hook(kind, error, trace)


if sys.excepthook is sys.__excepthook__:  # a debugger or IDE that has set its own hook keeps it
    sys.excepthook = _one_line_hook
