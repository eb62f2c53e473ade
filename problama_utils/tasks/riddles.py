"""Riddles with a short answer: load, ask, grade."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from problama_utils.tasks.base import Task
from problama_utils.tasks.datasets import as_dataset, check_split, load_few_shot
from problama_utils.tasks.places import resolve
from problama_utils.tasks.rows import parse_riddle, rows_of

if TYPE_CHECKING:
    from datasets import Dataset


def load_riddles(split: str = "train", *, source: str | Path | None = None,
                 difficulty: int | Collection[int] | None = None) -> Dataset:
    """Load short-answer riddles; `tasks.datasets` explains the arguments.

    Splits are "train", "heldout" and "all"; levels 1 (plain description), 2 (a turn of thought) and 3 (wordplay). A
    folder holds `riddles.jsonl` in the kit's own form; there are none on the hub.
    """
    place = resolve("riddles", source)
    check_split(place, split, ("train", "heldout", "all"))
    return as_dataset("riddles", rows_of(place.records(), parse_riddle), split, difficulty, place)


RIDDLES = Task(
    name="riddles",
    load=load_riddles,
    question=lambda row: f"Riddle: {row['riddle']}",
    answer=lambda row: row["answer"],
    system="Solve the riddle. Reply with one short answer inside tags, like this: <answer>word</answer>",
    examples=lambda: load_few_shot("riddles"),
    columns=lambda row: {"aliases": row["aliases"]},
)
riddle_messages = RIDDLES.messages
