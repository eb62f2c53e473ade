"""A truth table as a notebook shows it: ✓ on green and ✗ on red, and as plain text where no HTML is shown."""

from __future__ import annotations

from dataclasses import dataclass

from problama_utils.rewards.slides import Completion
from problama_utils.rewards.truth_tables import Outcome, Table, run_table, same
from problama_utils.tasks.answers import visible


def shown(completion: Completion, width: int = 60) -> str:
    """Return a completion on one line, invisible characters by their number, long ones cut with their length.

    >>> shown("a\\u200b\\nb"), shown("x" * 99, width=5)
    ('a[200B]⏎b', 'xxxxx… (99 characters)')
    """
    text = completion if isinstance(completion, str) else repr(completion)
    marks = []
    for mark in text[:width]:
        # A character is named where nothing of it is seen: invisible, or a blank that is no ordinary space.
        unseen = not visible(mark) or (mark.isspace() and mark not in " \n")
        marks.append(f"[{ord(mark):04X}]" if unseen else mark)
    return "".join(marks).replace("\n", "⏎") + (f"… ({len(text):,} characters)" if len(text) > width else "")


@dataclass(frozen=True)
class TableView:
    """A table with its outcomes, in HTML or text."""

    table: Table
    outcomes: list[Outcome]

    def lines(self) -> list[list[str]]:
        """One list of texts per row: completion, a cell per column, what the row is for, what it once earned."""
        lines = []
        for outcome in self.outcomes:
            row, cells = outcome.row, []
            for value, expected in zip(outcome.got, row.expected, strict=True):
                cells.append(f"✓ {_cell(value)}" if same(value, expected)
                             else f"✗ {_cell(value)}, expected {_cell(expected)}")
            lines.append([shown(row.completion), *cells, ("attack: " if row.attack else "") + row.why, row.once])
        return lines

    def _repr_html_(self) -> str:
        import pandas as pd

        heads = ["completion", *self.table.columns, "why", "before the defence"]
        style = pd.DataFrame(self.lines(), columns=heads).style.map(_colour, subset=list(self.table.columns))
        style = style.format(escape="html").hide(axis="index").set_uuid(self.table.name)
        return f"<p>{self}</p>{style.set_properties(**{'text-align': 'left'}).to_html()}"

    def __str__(self) -> str:
        right = sum(outcome.ok for outcome in self.outcomes)
        mark = "✓" if right == len(self.outcomes) else "✗"
        return f"{self.table.name}: {right} of {len(self.outcomes)} rows as they should be {mark}"

    def __repr__(self) -> str:
        wrong = [f"✗ {line[0]}: {'; '.join(line[1:-2])} ({line[-2]})"
                 for line, outcome in zip(self.lines(), self.outcomes, strict=True) if not outcome.ok]
        return "\n".join([str(self), *wrong])


def show_table(table: Table) -> TableView:
    """Run a table and return its view, to be the last line of a cell."""
    return TableView(table, run_table(table))


def _cell(value: object) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else shown(str(value), width=24)


def _colour(cell: str) -> str:
    right = cell.startswith("✓")
    return "background-color: #d9f0d3; color: black" if right else (
        "background-color: #c0392b; color: white; font-weight: bold; text-decoration: underline")
