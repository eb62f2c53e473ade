"""The three kinds of problem, from three kinds of source, always in the same columns.

    riddles   id, riddle, answer, aliases, choices, difficulty, split
    physical  id, goal, sol1, sol2, label, difficulty, split
    science   id, question, choices, labels, answer, topic, difficulty, split

A source is "embedded" (the kit's own files), "hub" (PIQA, ARC-Challenge) or a folder; None takes PROBLAMA_DATA's
folder, and where that is unset the embedded files. `tasks.folders` lists the layouts that are found in a folder and in
its parents. A folder that is named and does not hold what is asked for is an error, never the embedded rows: unset
PROBLAMA_DATA or ask for source="embedded" to have those. Only riddles, which have no public source, stay the embedded
ones beside a PROBLAMA_DATA that holds PIQA or ARC. `dataset.info.description` says which source was used; a source
that is not the default is also said on stderr, once.

PIQA and ARC have no difficulty (0), so that a difficulty asked for keeps all their rows, and ARC has no topic ("").
PIQA's validation questions on their own, as in an air-gapped classroom, are split by goal with a fixed seed: 1,200 to
train on, 638 held out. With its train questions beside them, train is train and validation is held out.

`python -m tools.check_data` prints every source with its quality gates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from functools import cache
from numbers import Integral
from typing import TYPE_CHECKING

from problama_utils import tell
from problama_utils.tasks.places import Place
from problama_utils.tasks.rows import COLUMNS, Row
from problama_utils.tasks.sources import DataError, assets_folder, read_json_lines

if TYPE_CHECKING:
    from datasets import Dataset

LISTS, NUMBERS = {"aliases", "choices", "labels"}, {"label", "difficulty"}


def load_few_shot(task: str) -> list[Row]:
    """Return the slides' own two solved examples of "riddles" or "physical" (with `answer`: the right letter).

    They are in no split, so that showing them never gives a held-out answer away.
    """
    entries = read_json_lines(assets_folder() / "few_shot.jsonl")
    fields = {"riddles": ("riddle", "answer"), "physical": ("goal", "sol1", "sol2", "answer")}
    if task not in fields:
        raise DataError("few_shot.jsonl", None, "task", repr(task), "riddles or physical")
    rows = []
    for entry in entries:
        if isinstance(entry, DataError):
            raise entry
        if entry.text("task") == task:
            row = {name: entry.text(name) for name in fields[task]}
            letter = {"label": "AB".index(entry.word("answer", "AB"))} if task == "physical" else {}
            rows.append(row | letter)
    return rows


def fingerprint(dataset: Dataset) -> str:
    """Return 12 hex digits that change when any row, its order or a column does (SHA-256 over the rows' JSON)."""
    digest = hashlib.sha256()
    for row in dataset:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:12]


def check_split(place: Place, split: str, known: Collection[str], hint: str = "") -> None:
    """Refuse a split that a place does not have."""
    if split not in known:
        raise DataError(place.about, None, None, f"split {split!r}", f"{', '.join(known)} {hint}".rstrip())


def as_dataset(task: str, rows: list[Row], split: str, difficulty: int | Collection[int] | None, place: Place,
             rule: str = "") -> Dataset:
    """Filter the rows, give them the task's columns and types, and say where they come from."""
    from datasets import Dataset, DatasetInfo, Features, List, Value

    splits, there = sorted({row["split"] for row in rows}), sorted({row["difficulty"] for row in rows})
    levels = _levels(difficulty)
    about = "; ".join(filter(None, [place.about, rule]))
    if levels is not None and place.public:  # PIQA and ARC-Challenge have no levels
        about += f"; it has no levels, so difficulty {difficulty} keeps all rows"
        levels = None
    kept = [row for row in rows if split in ("all", row["split"]) and (levels is None or row["difficulty"] in levels)]
    if not kept:
        raise DataError(task, None, None, f"no row with split {split!r}, difficulty {difficulty}",
                        f"split {', '.join(splits)} or all; difficulty {there}")
    if place.announced:
        _tell_once(f"{task} from {about}.")
    types = Features({name: List(Value("string")) if name in LISTS else Value("int64" if name in NUMBERS else "string")
                      for name in COLUMNS[task]})
    return Dataset.from_list([{name: row[name] for name in COLUMNS[task]} for row in kept], features=types,
                             info=DatasetInfo(description=about, features=types))


def _levels(difficulty: int | Collection[int] | None) -> set[int] | None:
    if difficulty is None:
        return None
    values = [difficulty] if isinstance(difficulty, Integral) else difficulty
    if not isinstance(values, Collection) or not all(isinstance(value, Integral) for value in values):
        raise DataError("difficulty", None, None, ascii(difficulty)[:60], "a level such as 1, several as [1, 2], or "
                        "None for all")
    return {int(value) for value in values}


_tell_once = cache(tell)
