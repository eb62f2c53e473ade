"""The three kinds of problem, from three kinds of source, always in the same columns.

    riddles   id, riddle, answer, aliases, choices, difficulty, split
    physical  id, goal, sol1, sol2, label, difficulty, split
    science   id, question, choices, labels, answer, topic, difficulty, split

A source is "embedded" (the kit's own files), "hub" (PIQA, ARC-Challenge) or a folder; None takes PROBLAMA_DATA's
folder, and where that is unset the embedded files. `data_folders` lists the layouts that are found in a folder and in
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
from functools import cache, partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from problama_utils import tell
from problama_utils.tasks.places import (
    NO_TEST_LABELS,
    Place,
    name_piqa_splits,
    own_file,
    piqa_from_folder,
    piqa_from_hub,
    resolve,
    rows_of,
    science_entries,
    split_rule,
)
from problama_utils.tasks.rows import COLUMNS, Row, parse_physical, parse_riddle, parse_science
from problama_utils.tasks.sources import DataError, Record, assets_folder, read_json_lines

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["LOADERS", "DataError", "count_digit_keys", "fingerprint", "load_few_shot", "load_physical", "load_riddles",
           "load_science"]

LISTS, NUMBERS = {"aliases", "choices", "labels"}, {"label", "difficulty"}


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
    _check_split(place, split, ("train", "heldout", "all"))
    rows = rows_of(read_json_lines(own_file(place, "riddles")), parse_riddle, drop_bad_rows)
    return _dataset("riddles", rows, split, difficulty, place)


def load_physical(split: str = "train", *, source: str | Path | None = None,
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
    _check_split(place, split, ("train", "heldout", "all", *(("validation",) if place.public else ())),
                 NO_TEST_LABELS if split == "test" else "")
    if not place.public:
        rows = rows_of(read_json_lines(own_file(place, "physical")), parse_physical, drop_bad_rows)
        return _dataset("physical", rows, split, difficulty, place)
    parts = piqa_from_hub(split, drop_bad_rows) if place.kind == "hub" else piqa_from_folder(place, drop_bad_rows)
    by_file = place.kind == "hub"
    rule = split_rule(parts, by_file)
    if split == "validation":
        parts, split, rule = {"validation": parts["validation"]}, "all", "the whole of its validation questions"
    return _dataset("physical", name_piqa_splits(parts, by_file), split, difficulty, place, rule)


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
    _check_split(place, split, ("train", "dev", "test") if place.public else ("test",))
    entries = science_entries(place, split)
    parse = partial(parse_science, split=split, own=not place.public)
    return _dataset("science", rows_of(entries, parse, drop_bad_rows), split, difficulty, place)


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


def count_digit_keys(split: str = "test", *, source: str | Path | None = None) -> int:
    """Return how many answer keys of a science source are digits (ARC-Challenge: 23 / 4 / 22 in train / dev / test)."""
    entries = science_entries(resolve("science", source), "dev" if split == "validation" else split)
    return sum(isinstance(entry, Record) and str(entry.fields.get("answerKey")).isdigit() for entry in entries)


LOADERS = {"riddles": load_riddles, "physical": load_physical, "science": load_science}


def _check_split(place: Place, split: str, known: Collection[str], hint: str = "") -> None:
    if split not in known:
        raise DataError(place.about, None, None, f"split {split!r}", f"{', '.join(known)} {hint}".rstrip())


def _dataset(task: str, rows: list[Row], split: str, difficulty: int | Collection[int] | None, place: Place,
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
