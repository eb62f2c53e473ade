"""Multiple-choice science questions in ARC's schema: load, ask, grade. Evaluated zero-shot, not trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils.tasks.base import Task
from problama_utils.tasks.datasets import as_dataset, check_split
from problama_utils.tasks.places import Place, resolve
from problama_utils.tasks.rows import parse_science, rows_of
from problama_utils.tasks.sources import DataError, Record, read_hub

if TYPE_CHECKING:
    from datasets import Dataset

ARC_REVISION = "210d026faf9955653af8916fad021475a3f00453"


def load_science(split: str = "test", *, source: str | Path | None = None,
                 difficulty: int | Collection[int] | None = None) -> Dataset:
    """Load multiple-choice science questions: the kit's own, or ARC-Challenge (arXiv:1803.05457).

    Letters come from the row's own labels, so that ARC's keys 1 to 5 become A to E; `count_digit_keys` counts them.
    `tasks.datasets` explains the arguments. The split is "test"; ARC also has "train" and "dev" (or "validation", its
    name on the hub). Levels are 1 (as ARC-Easy) and 2 (harder). A folder holds `ARC-Challenge/` (AI2's JSON lines, or
    parquet) or `science.jsonl`.
    """
    place = resolve("science", source)
    split = "dev" if split == "validation" else split
    check_split(place, split, ("train", "dev", "test") if place.public else ("test",))
    parse = partial(parse_science, split=split, own=not place.public)
    return as_dataset("science", rows_of(_records(place, split), parse), split, difficulty, place)


def _records(place: Place, split: str) -> list[Record]:
    """Return the raw records of a split ("train", "dev" or "test")."""
    hub_name = "validation" if split == "dev" else split
    if place.kind == "hub":
        return read_hub(f"hub:allenai/ai2_arc@{ARC_REVISION[:7]}/ARC-Challenge/{hub_name}", path="allenai/ai2_arc",
                        name="ARC-Challenge", revision=ARC_REVISION, split=hub_name)
    if place.public and split not in place.files:
        raise DataError(place.about, f"no {split} questions, only {', '.join(sorted(place.files))}",
                        f"ARC-Challenge-{split.capitalize()}.jsonl or {hub_name}-00000-of-00001.parquet beside them")
    return place.records(split)


def count_digit_keys(split: str = "test", *, source: str | Path | None = None) -> int:
    """Return how many answer keys of a science source are digits (ARC-Challenge: 23 / 4 / 22 in train / dev / test)."""
    records = _records(resolve("science", source), split)
    return sum(str(record.fields.get("answerKey")).isdigit() for record in records)


def science_question(row: Mapping[str, Any]) -> str:
    """Return the user turn of a science question; the letters are the row's own labels (3 to 5 of them)."""
    options = [f"{label}: {text}" for label, text in zip(row["labels"], row["choices"], strict=True)]
    return "\n".join([f"Question: {row['question']}", *options])


SCIENCE = Task(
    name="science",
    load=load_science,
    question=science_question,
    answer=lambda row: row["answer"],
    system="Answer the question. Reply with the letter of your choice inside tags, like this: <answer>A</answer>",
    columns=lambda row: {"labels": list(row["labels"]), "choices": list(row["choices"])},
    chance=0.25,
)
science_messages = SCIENCE.messages  # there are no examples: zero-shot
