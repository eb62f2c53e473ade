"""One raw record to one row: which fields a problem must have, and what may be in them.

Each parser returns a row in the documented columns or raises a `DataError` that names file, line, field and what was
expected. Nothing is fixed silently: a row that does not fit is reported.
"""

from __future__ import annotations

import re
from typing import Any

from problama_utils.tasks.sources import Record

Row = dict[str, Any]

LABELS = "ABCDE"
DIFFICULTIES = (1, 2, 3)
COLUMNS = {
    "riddles": ("id", "riddle", "answer", "aliases", "choices", "difficulty", "split"),
    "physical": ("id", "goal", "sol1", "sol2", "label", "difficulty", "split"),
    "science": ("id", "question", "choices", "labels", "answer", "topic", "difficulty", "split"),
}
ID_FORMS = {"riddles": r"np-riddle-\d{4}", "physical": r"np-phys-\d{4}", "science": r"np-sci-\d{4}"}


def parse_riddle(record: Record) -> Row:
    """Read one of the kit's riddles."""
    record.only(COLUMNS["riddles"])
    row = {"id": _own_id(record, "riddles"), "riddle": record.text("riddle"), "answer": record.text("answer"),
           "aliases": record.texts("aliases", 0, 40), "choices": record.texts("choices", 4, 4),
           "difficulty": record.whole("difficulty", DIFFICULTIES), "split": record.word("split", ("train", "heldout"))}
    times = row["choices"].count(row["answer"])
    if times != 1:
        raise record.error("choices", f"the answer {times} times", "it once among four choices")
    return row


def parse_physical(record: Record) -> Row:
    """Read one of the kit's physical pairs."""
    record.only(COLUMNS["physical"], optional=("topic",))
    return {"id": _own_id(record, "physical"), **_pair(record), "label": record.whole("label", (0, 1)),
            "difficulty": record.whole("difficulty", DIFFICULTIES), "split": record.word("split", ("train", "heldout"))}


def parse_piqa(record: Record, split: str) -> Row:
    """Read one PIQA question with its label; a row without an id is named by its line."""
    record.only(("goal", "sol1", "sol2", "label"), optional=("id",))
    name = record.text("id") if "id" in record.fields else f"piqa-{split}-{record.line:05d}"
    return {"id": name, **_pair(record), "label": record.whole("label", (0, 1)), "difficulty": 0, "split": split}


def _pair(record: Record) -> Row:
    return {name: record.text(name) for name in ("goal", "sol1", "sol2")}


def parse_science(record: Record, split: str, own: bool) -> Row:
    """Read a question in AI2's JSON form (choices as objects) or the hub's (two parallel lists)."""
    record.only(("id", "question", "answerKey", *(("topic", "difficulty", "split") if own else ())),
                optional=() if own else ("choices",))
    flat = "choices" in record.fields
    question = record.text("question") if flat else record.inside("question").text("stem")
    texts, labels = _choices_of_hub(record) if flat else _choices_of_ai2(record.inside("question"))
    letters = list(LABELS[: len(labels)])
    if labels != letters and labels != [str(number) for number in range(1, len(labels) + 1)]:
        raise record.error("label", ", ".join(map(ascii, labels)), "A, B, C … or 1, 2, 3 … in order")
    key = record.word("answerKey", labels, "(the row's own labels)")
    row = {"id": _own_id(record, "science") if own else record.text("id"), "question": question, "choices": texts,
           "labels": letters, "answer": letters[labels.index(key)], "topic": "", "difficulty": 0, "split": split}
    if own:
        record.word("split", ("test",), "(science is for evaluation only)")
        row |= {"topic": record.text("topic"), "difficulty": record.whole("difficulty", DIFFICULTIES)}
    return row


def _choices_of_ai2(question: Record) -> tuple[list[str], list[str]]:
    question.only(("stem", "choices"))
    choices = question.fields["choices"]
    if not isinstance(choices, list) or not 3 <= len(choices) <= 5 or not all(isinstance(c, dict) for c in choices):
        raise question.error("choices", "something else", "a list of 3 to 5 objects with text and label")
    records = [Record(question.file, question.line, choice) for choice in choices]
    for record in records:
        record.only(("text", "label"))
    return [record.text("text") for record in records], [record.text("label") for record in records]


def _choices_of_hub(record: Record) -> tuple[list[str], list[str]]:
    inside = record.inside("choices")
    inside.only(("text", "label"))
    texts, labels = inside.texts("text", 3, 5), inside.texts("label", 3, 5)
    if len(texts) != len(labels):
        raise record.error("choices", f"{len(texts)} texts and {len(labels)} labels", "as many labels as texts")
    return texts, labels


def _own_id(record: Record, task: str) -> str:
    name = record.text("id")
    if not re.fullmatch(ID_FORMS[task], name):
        raise record.error("id", ascii(name)[:60], f"the form {ID_FORMS[task]}")
    return name
