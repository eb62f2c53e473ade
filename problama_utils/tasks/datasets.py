"""The three kinds of problem, from three kinds of source, always in the same columns.

    riddles   id, riddle, answer, aliases, choices, difficulty, split
    physical  id, goal, sol1, sol2, label, difficulty, split
    science   id, question, choices, labels, answer, topic, difficulty, split

`load_riddles`, `load_piqa` and `load_science` take the same arguments and raise `DataError` for bad input and for what
is not there:

    split          "train", "heldout" or "all"; each loader names its own
    source         "embedded" (the kit's own files), "hub" (PIQA, ARC-Challenge) or a folder; None takes PROBLAMA_DATA's
                   folder, and where that is unset the embedded files
    difficulty     the levels to keep, such as 1 or [1, 2]; PIQA and ARC have none (0), so that all their rows are kept

`tasks.folders` lists the layouts that are found in a folder and in its parents. A folder that is named and does not
hold what is asked for is an error, never the embedded rows: unset PROBLAMA_DATA or ask for source="embedded" to have
those. Only riddles, which have no public source, stay the embedded ones beside a PROBLAMA_DATA that holds PIQA or ARC.
`dataset.info.description` says which source was used; a source that is not the default is also said on stderr, once.

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
_tell_once = cache(tell)


def load_few_shot(task: str) -> list[Row]:
    """Return the slides' own two solved examples of "riddles" or "physical" (with `answer`: the right letter).

    They are in no split, so that showing them never gives a held-out answer away.
    """
    fields = {"riddles": ("riddle", "answer"), "physical": ("goal", "sol1", "sol2", "answer")}
    if task not in fields:
        raise DataError("few_shot.jsonl", repr(task), "riddles or physical", field="task")
    rows = []
    for record in read_json_lines(assets_folder() / "few_shot.jsonl"):
        if record.text("task") == task:
            row = {name: record.text(name) for name in fields[task]}
            letter = {"label": "AB".index(record.word("answer", "AB"))} if task == "physical" else {}
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
        raise DataError(place.about, f"split {split!r}", f"{', '.join(known)} {hint}".rstrip())


def as_dataset(task: str, rows: list[Row], split: str, difficulty: int | Collection[int] | None, place: Place,
               rule: str = "") -> Dataset:
    """Filter the rows, give them the task's types, and say where they come from and by which rule they are split."""
    from datasets import Dataset, DatasetInfo, Features, List, Value

    levels = list(difficulty) if isinstance(difficulty, Collection) else [difficulty]
    if difficulty is not None and not all(isinstance(level, Integral) for level in levels):
        raise DataError("difficulty", ascii(difficulty)[:60], "a level such as 1, several as [1, 2], or None for all")
    about = "; ".join(filter(None, [place.about, rule]))
    if place.public and difficulty is not None:
        about += f"; it has no levels, so difficulty {difficulty} keeps all rows"
    every_level = place.public or difficulty is None
    kept = [row for row in rows if split in ("all", row["split"]) and (every_level or row["difficulty"] in levels)]
    if not kept:
        splits, there = (sorted({row[name] for row in rows}) for name in ("split", "difficulty"))
        raise DataError(task, f"no row with split {split!r}, difficulty {difficulty}",
                        f"split {', '.join(splits)} or all; difficulty {there}")
    if place.announced:
        _tell_once(f"{task} from {about}.")
    types = Features({name: List(Value("string")) if name in LISTS else Value("int64" if name in NUMBERS else "string")
                      for name in COLUMNS[task]})
    return Dataset.from_list(kept, info=DatasetInfo(description=about, features=types))
