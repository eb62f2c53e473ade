"""Multiple-choice science questions in ARC's schema: load, ask, grade. Evaluated zero-shot, not trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils.tasks.base import Task
from problama_utils.tasks.datasets import as_dataset, check_split
from problama_utils.tasks.places import resolve, rows_of, science_entries
from problama_utils.tasks.rows import parse_science
from problama_utils.tasks.sources import Record

if TYPE_CHECKING:
    from datasets import Dataset


def load_science(split: str = "test", *, source: str | Path | None = None,
                 difficulty: int | Collection[int] | None = None, drop_bad_rows: bool = False) -> Dataset:
    """Load multiple-choice science questions: the kit's own, or ARC-Challenge (arXiv:1803.05457).

    Letters come from the row's own labels, so that ARC's keys 1 to 5 become A to E; `count_digit_keys` counts them.

    Args:
        split: "test"; for ARC also "train" and "dev" (or "validation", its name on the hub).
        source: see the module; a folder holds `ARC-Challenge/` (AI2's JSON lines, or parquet) or `science.jsonl`.
        difficulty: keep these levels (1 as ARC-Easy, 2 harder); ARC has none, so that all its rows are kept.
        drop_bad_rows: leave bad rows out, with a warning that counts and lists them, instead of raising.

    Raises:
        DataError: bad input, or a source or split that is not there.
    """
    place = resolve("science", source)
    split = "dev" if split == "validation" else split
    check_split(place, split, ("train", "dev", "test") if place.public else ("test",))
    entries = science_entries(place, split)
    parse = partial(parse_science, split=split, own=not place.public)
    return as_dataset("science", rows_of(entries, parse, drop_bad_rows), split, difficulty, place)


def science_question(row: Mapping[str, Any]) -> str:
    """Return the user turn of a science question; the letters are the row's own labels (3 to 5 of them)."""
    options = [f"{label}: {text}" for label, text in zip(row["labels"], row["choices"], strict=True)]
    return "\n".join([f"Question: {row['question']}", *options])


def count_digit_keys(split: str = "test", *, source: str | Path | None = None) -> int:
    """Return how many answer keys of a science source are digits (ARC-Challenge: 23 / 4 / 22 in train / dev / test)."""
    entries = science_entries(resolve("science", source), "dev" if split == "validation" else split)
    return sum(isinstance(entry, Record) and str(entry.fields.get("answerKey")).isdigit() for entry in entries)


SCIENCE = Task(
    name="science",
    load=load_science,
    question=science_question,
    answer=lambda row: row["answer"],
    system="Answer the question. Reply with the letter of your choice inside tags, like this: <answer>A</answer>",
    columns=lambda row: {"labels": list(row["labels"]), "choices": list(row["choices"])},
    chance=0.25,
)


def science_messages(row: Mapping[str, Any], *, system: bool = True) -> list[dict[str, str]]:
    """Return the zero-shot chat that asks one science question, with or without the system prompt."""
    return SCIENCE.messages(row, few_shot=False, system=system)
