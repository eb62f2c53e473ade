"""Two-option questions about everyday physical know-how, in PIQA's schema: load, ask, grade.

The kit's own questions (`physical.jsonl`) are the embedded source of this task.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils.tasks.base import Task
from problama_utils.tasks.datasets import as_dataset, check_split, load_few_shot
from problama_utils.tasks.places import (
    NO_TEST_LABELS,
    name_piqa_splits,
    own_file,
    piqa_from_folder,
    piqa_from_hub,
    resolve,
    rows_of,
    split_rule,
)
from problama_utils.tasks.rows import parse_physical
from problama_utils.tasks.sources import read_json_lines

if TYPE_CHECKING:
    from datasets import Dataset


def load_piqa(split: str = "train", *, source: str | Path | None = None,
                  difficulty: int | Collection[int] | None = None, drop_bad_rows: bool = False) -> Dataset:
    """Load two-option questions about everyday physical know-how: the kit's own, or PIQA (arXiv:1911.11641).

    Args:
        split: "train", "heldout" or "all"; for PIQA also "validation": the whole of that file.
        source: see the module; a folder holds PIQA (authors' jsonl + lst, or parquet) or `physical.jsonl`.
        difficulty: keep these levels (1 to 3); PIQA has none, so that all its rows are kept.
        drop_bad_rows: leave bad rows out, with a warning that counts and lists them, instead of raising.

    Raises:
        DataError: bad input, a source or split that is not there, or PIQA's test split, which has no labels.
    """
    place = resolve("physical", source)
    check_split(place, split, ("train", "heldout", "all", *(("validation",) if place.public else ())),
                 NO_TEST_LABELS if split == "test" else "")
    if not place.public:
        rows = rows_of(read_json_lines(own_file(place, "physical")), parse_physical, drop_bad_rows)
        return as_dataset("physical", rows, split, difficulty, place)
    parts = piqa_from_hub(split, drop_bad_rows) if place.kind == "hub" else piqa_from_folder(place, drop_bad_rows)
    by_file = place.kind == "hub"
    rule = split_rule(parts, by_file)
    if split == "validation":
        parts, split, rule = {"validation": parts["validation"]}, "all", "the whole of its validation questions"
    return as_dataset("physical", name_piqa_splits(parts, by_file), split, difficulty, place, rule)


def piqa_question(row: Mapping[str, Any]) -> str:
    """Return the user turn of a physical-interaction problem, with its two options lettered as on the slides."""
    return f"Question: {row['goal']}\nOption A: {row['sol1']}\nOption B: {row['sol2']}"


def piqa_letter(row: Mapping[str, Any]) -> str:
    """Return the letter of the right option: label 0 is A, label 1 is B."""
    return "AB"[row["label"]]


PIQA = Task(
    name="piqa",
    load=load_piqa,
    question=piqa_question,
    answer=piqa_letter,
    system="Choose the option that works. Reply with its letter inside tags, like this: <answer>A</answer>",
    examples=lambda: load_few_shot("physical"),
    columns=lambda row: {"labels": ["A", "B"], "choices": [row["sol1"], row["sol2"]]},
    chance=0.5,
)
piqa_messages = PIQA.messages
