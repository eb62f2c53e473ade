"""Riddles with a short answer: load, ask, grade."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils.tasks.base import Task
from problama_utils.tasks.datasets import as_dataset, check_split, load_few_shot
from problama_utils.tasks.places import own_file, resolve, rows_of
from problama_utils.tasks.rows import parse_riddle
from problama_utils.tasks.sources import DataError, read_json_lines

if TYPE_CHECKING:
    from datasets import Dataset


def load_riddles(split: str = "train", *, source: str | Path | None = None,
                 difficulty: int | Collection[int] | None = None, drop_bad_rows: bool = False) -> Dataset:
    """Load short-answer riddles.

    Args:
        split: "train", "heldout" or "all".
        source: see the module; a folder holds `riddles.jsonl` in the kit's own form. There are none on the hub.
        difficulty: keep these levels (1 plain description, 2 a turn of thought, 3 wordplay).
        drop_bad_rows: leave bad rows out, with a warning that counts and lists them, instead of raising.

    Raises:
        DataError: bad input, or a source or split that is not there.
    """
    place = resolve("riddles", source)
    if place.kind == "hub":
        raise DataError("hub", None, None, "no riddles", 'source="embedded" or a folder with riddles.jsonl')
    check_split(place, split, ("train", "heldout", "all"))
    rows = rows_of(read_json_lines(own_file(place, "riddles")), parse_riddle, drop_bad_rows)
    return as_dataset("riddles", rows, split, difficulty, place)


def riddle_question(row: Mapping[str, Any]) -> str:
    """Return the user turn of a riddle."""
    return f"Riddle: {row['riddle']}"


RIDDLES = Task(
    name="riddles",
    load=load_riddles,
    question=riddle_question,
    answer=lambda row: row["answer"],
    system="Solve the riddle. Reply with one short answer inside tags, like this: <answer>word</answer>",
    examples=lambda: load_few_shot("riddles"),
    columns=lambda row: {"aliases": row["aliases"]},
)
riddle_messages = RIDDLES.messages
