"""A truth table as a notebook shows it: ✓ on green and ✗ on red, and as plain text where no HTML is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from problama_utils.rewards.slides import Completion
from problama_utils.rewards.truth_tables import Judge, Outcome, Table, run_table, same
from problama_utils.tasks.answers import visible

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler


def shown(completion: Completion, width: int = 60) -> str:
    """Return a completion on one line, invisible characters by their number, long ones cut with their length.

    >>> shown("a\\u200b\\nb"), shown("x" * 99, width=5)
    ('a[200B]⏎b', 'xxxxx… (99 characters)')
    """
    text = completion if isinstance(completion, str) else repr(completion)
    # A character is named where nothing of it is seen: invisible, or a blank that is no ordinary space.
    blank = [not visible(mark) or (mark.isspace() and mark not in " \n") for mark in text[:width]]
    marked = "".join(f"[{ord(mark):04X}]" if unseen else mark for mark, unseen in zip(text[:width], blank, strict=True))
    return marked.replace("\n", "⏎") + (f"… ({len(text):,} characters)" if len(text) > width else "")


@dataclass(frozen=True)
class TableView:
    """A table as a notebook shows it: ✓ on green and ✗ on red, in text where no HTML is shown."""

    table: Table
    outcomes: tuple[Outcome, ...]

    def lines(self) -> list[list[str]]:
        """One list of texts per row: completion, a cell per column, what the row is for, what it once earned."""
        lines = []
        for outcome in self.outcomes:
            row, cells = outcome.row, []
            got = outcome.got if len(outcome.got) == len(row.expected) else (outcome.got,) * len(row.expected)
            for value, expected in zip(got, row.expected, strict=True):
                cells.append(f"✓ {_cell(value)}" if same(value, expected)
                             else f"✗ {_cell(value)}, expected {_cell(expected)}")
            lines.append([shown(row.completion), *cells, ("attack: " if row.attack else "") + row.why, row.once])
        return lines

    @property
    def heads(self) -> list[str]:
        return ["completion", *self.table.columns, "why", "before the defence"]

    def style(self) -> Styler:
        """Return the table as a pandas Styler, coloured and signed."""
        import pandas as pd

        frame = pd.DataFrame(self.lines(), columns=self.heads)
        styler = frame.style.map(_colour, subset=list(self.table.columns)).format(escape="html").hide(axis="index")
        return styler.set_uuid(self.table.name).set_properties(**{"text-align": "left"})

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>{self.style().to_html()}"

    def __str__(self) -> str:
        right = sum(outcome.ok for outcome in self.outcomes)
        return f"{self.table.name}: {right} of {len(self.outcomes)} rows as they should be {'✓' if self.ok else '✗'}"

    def __repr__(self) -> str:
        wrong = [f"✗ {line[0]}: {'; '.join(line[1:-2])} ({line[-2]})"
                 for line, outcome in zip(self.lines(), self.outcomes, strict=True) if not outcome.ok]
        return "\n".join([str(self), *wrong])

    @property
    def ok(self) -> bool:
        return all(outcome.ok for outcome in self.outcomes)


def show_table(table: Table, judge: Judge | None = None) -> TableView:
    """Run a table and return its view, to be the last line of a cell."""
    return TableView(table, tuple(run_table(table, judge)))


def _cell(value: object) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else shown(str(value), width=24)


def _colour(cell: str) -> str:
    right = cell.startswith("✓")
    return "background-color: #d9f0d3; color: black" if right else (
        "background-color: #c0392b; color: white; font-weight: bold; text-decoration: underline")
