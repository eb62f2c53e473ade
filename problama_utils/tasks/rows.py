"""One raw record to one row: which fields a problem must have, and what may be in them.

Each parser returns a row in the documented columns or raises a `DataError` that names file, line, field and what was
expected. Nothing is fixed silently: a row that does not fit is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from problama_utils.tasks.sources import Record, show

Row = dict[str, Any]

LABELS = "ABCDE"
DIFFICULTIES = (1, 2, 3)
COLUMNS = {
    "riddles": ("id", "riddle", "answer", "aliases", "choices", "difficulty", "split"),
    "physical": ("id", "goal", "sol1", "sol2", "label", "difficulty", "split"),
    "science": ("id", "question", "choices", "labels", "answer", "topic", "difficulty", "split"),
}


def rows_of(records: Iterable[Record], parse: Callable[[Record], Row]) -> list[Row]:
    """Parse all records and check that ids are unique."""
    rows, first_seen = [], {}
    for record in records:
        row = parse(record)
        if row["id"] in first_seen:
            raise record.error("id", show(row["id"]), f"an id used once (first in {first_seen[row['id']]})")
        first_seen[row["id"]] = f"{record.file}, line {record.line}"
        rows.append(row)
    return rows


def parse_riddle(record: Record) -> Row:
    """Read one of the kit's riddles."""
    record.only(COLUMNS["riddles"])
    row = {"id": record.text("id", r"np-riddle-\d{4}"),
           "riddle": record.text("riddle"), "answer": record.text("answer"),
           "aliases": record.texts("aliases", 0, 40), "choices": record.texts("choices", 4, 4),
           "difficulty": record.whole("difficulty", DIFFICULTIES), "split": record.word("split", ("train", "heldout"))}
    times = row["choices"].count(row["answer"])
    if times != 1:
        raise record.error("choices", f"the answer {times} times", "it once among four choices")
    return row


def parse_physical(record: Record) -> Row:
    """Read one of the kit's physical pairs."""
    record.only(COLUMNS["physical"], optional=("topic",))
    return {"id": record.text("id", r"np-phys-\d{4}"), **_pair(record), "label": record.whole("label", (0, 1)),
            "difficulty": record.whole("difficulty", DIFFICULTIES), "split": record.word("split", ("train", "heldout"))}


def parse_piqa(record: Record, part: str) -> Row:
    """Read one question of PIQA's "train" or "validation" part, with its label."""
    record.only(("id", "goal", "sol1", "sol2", "label"))
    return {"id": record.text("id"), **_pair(record), "label": record.whole("label", (0, 1)), "difficulty": 0,
            "split": "train" if part == "train" else "heldout"}


def _pair(record: Record) -> Row:
    return {name: record.text(name) for name in ("goal", "sol1", "sol2")}


def parse_science(record: Record, split: str, own: bool) -> Row:
    """Read a question in AI2's JSON form (choices as objects) or the hub's (two parallel lists)."""
    record.only(("id", "question", "answerKey", *(("topic", "difficulty", "split") if own else ())),
                optional=() if own else ("choices",))
    if "choices" in record.fields:
        question, choices = record.text("question"), record.inside("choices")
    else:
        inside = record.inside("question")
        inside.only(("stem", "choices"))
        question, choices = inside.text("stem"), _as_lists(inside)
    choices.only(("text", "label"))
    texts, labels = choices.texts("text", 3, 5), choices.texts("label", 3, 5)
    letters = list(LABELS[: len(texts)])
    if labels not in (letters, [str(number) for number in range(1, len(texts) + 1)]):
        raise record.error("label", ", ".join(map(ascii, labels)), "A, B, C … or 1, 2, 3 … in order, one for each text")
    key = record.word("answerKey", labels)
    row = {"id": record.text("id", r"np-sci-\d{4}" if own else ""), "question": question, "choices": texts,
           "labels": letters, "answer": letters[labels.index(key)], "topic": "", "difficulty": 0, "split": split}
    if own:
        record.word("split", ("test",))
        row |= {"topic": record.text("topic"), "difficulty": record.whole("difficulty", DIFFICULTIES)}
    return row


def _as_lists(question: Record) -> Record:
    """Return the choices of AI2's form as the hub's two parallel lists."""
    choices = question.fields["choices"]
    if not isinstance(choices, list) or not all(isinstance(c, dict) and set(c) == {"text", "label"} for c in choices):
        raise question.error("choices", "something else", "a list of objects with text and label")
    lists = {name: [choice[name] for choice in choices] for name in ("text", "label")}
    return Record(question.file, question.line, lists)
