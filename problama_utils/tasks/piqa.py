"""Two-option questions about everyday physical know-how, in PIQA's schema: load, ask, grade.

The kit's own questions (`physical.jsonl`) are the embedded source of this task. PIQA's validation questions on their
own, as in an air-gapped classroom, are split by goal with a fixed seed: 1,200 to train on, 638 held out. With its train
questions beside them, train is train and validation is held out.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from problama_utils.tasks.base import Task
from problama_utils.tasks.datasets import as_dataset, check_split, load_few_shot
from problama_utils.tasks.folders import label_list
from problama_utils.tasks.places import Place, resolve
from problama_utils.tasks.rows import Row, parse_physical, parse_piqa, rows_of
from problama_utils.tasks.sources import DataError, Record, read_hub, read_text, show

if TYPE_CHECKING:
    from datasets import Dataset

# refs/convert/parquet, 2024-03-07: `datasets` refuses to run the script that the main branch consists of
PIQA_REVISION = "142c51238b3ca2bc61e9a075913871b8b600e8e1"
SPLIT_SEED, TRAIN_SHARE = 2025, 1200 / 1838
NO_TEST_LABELS = "(the labels of PIQA's test split are not public, so nothing could be scored on it)"


def load_piqa(split: str = "train", *, source: str | Path | None = None,
              difficulty: int | Collection[int] | None = None) -> Dataset:
    """Load two-option questions about everyday physical know-how: the kit's own, or PIQA (arXiv:1911.11641).

    `tasks.datasets` explains the arguments. Splits are "train", "heldout" and "all"; PIQA also has "validation": the
    whole of that file. Levels are 1 to 3. A folder holds PIQA (authors' jsonl + lst, or parquet) or `physical.jsonl`.
    PIQA's test split is refused, since it has no labels.
    """
    place = resolve("physical", source)
    splits = ("train", "heldout", "all", *(["validation"] if place.public else []))
    check_split(place, split, splits, NO_TEST_LABELS if split == "test" else "")
    if not place.public:
        return as_dataset("physical", rows_of(place.records(), parse_physical), split, difficulty, place)
    rows, rule = _published_rows(place, split)
    return as_dataset("physical", rows, "all" if split == "validation" else split, difficulty, place, rule)


def _published_rows(place: Place, split: str) -> tuple[list[Row], str]:
    """Return what `split` needs of PIQA's questions, each with its split, and in words how they are split."""
    if place.kind == "folder" and "validation" not in place.files:
        there = ", ".join(sorted(path.name for files in place.files.values() for path in files)[:4])
        raise DataError(place.about, f"only {there}", "PIQA's validation questions beside it: valid.jsonl or dev.jsonl "
                        f"with its -labels.lst, or parquet {NO_TEST_LABELS}")
    by_goal = place.kind == "folder" and "train" not in place.files
    needed = {"train": ["train"], "all": ["train", "validation"]}.get(split, ["validation"])
    rows = []
    for part in ["validation"] if by_goal else needed:
        rows += rows_of(_records(place, part), partial(parse_piqa, part=part))
    rule = "train as published, validation held out"
    if by_goal:
        rows = split_by_goal(rows)
        held = sum(row["split"] == "heldout" for row in rows)
        rule = f"its {len(rows):,} validation questions split by goal, {len(rows) - held:,} train and {held:,} held out"
    return rows, "the whole of its validation questions" if split == "validation" else rule


def _records(place: Place, part: str) -> list[Record]:
    """Return the raw records of PIQA's "train" or "validation" part, with a label and an id each."""
    if place.kind == "hub":
        files = f"hf://datasets/ybisk/piqa@{PIQA_REVISION}/plain_text/{part}/*.parquet"
        records = read_hub(f"hub:ybisk/piqa@{PIQA_REVISION[:7]}/{part}", path="parquet", data_files={part: files},
                           split=part)
    else:
        records = place.records(part)
        if place.files[part][0].suffix.lower() != ".parquet":
            _add_labels(place.files[part][0], records)
    for number, record in enumerate(records, start=1):  # over all files of a part, unlike the lines
        record.fields.setdefault("id", f"piqa-{part}-{number:05d}")
    return records


def _add_labels(lines: Path, records: list[Record]) -> None:
    """Add the labels of the list beside a file; without a list the rows must have a label each."""
    labels, name = label_list(lines), f"{lines.stem}-labels.lst"
    in_rows = any("label" in record.fields for record in records)
    if in_rows == (labels is not None):
        found = f"labels in its rows and in {name}" if in_rows else f"no {name} beside it and no label in its rows"
        raise DataError(lines, found, "PIQA's labels (0 or 1) in one of the two")
    if labels is None:
        return
    values = read_text(labels)
    if len(records) != len(values):
        raise DataError(labels, f"{len(values)} labels", f"{len(records)}, one a line of {lines.name}")
    for record, value in zip(records, values, strict=True):
        if value.strip() not in ("0", "1"):
            raise DataError(labels, show(value.strip()), "0 or 1", record.line)
        record.fields["label"] = int(value)


def split_by_goal(rows: list[Row]) -> list[Row]:
    """Divide rows by goal (equal ones stay together), filled in a seeded order up to round(TRAIN_SHARE · rows)."""
    keys = [" ".join(re.findall(r"\w+", row["goal"].lower())) for row in rows]
    sizes = Counter(keys)
    order = sorted(sizes)
    random.Random(SPLIT_SEED).shuffle(order)
    left, train = round(TRAIN_SHARE * len(rows)), set()
    for goal in order:
        if sizes[goal] <= left:
            left -= sizes[goal]
            train.add(goal)
    return [row | {"split": "train" if key in train else "heldout"} for row, key in zip(rows, keys, strict=True)]


PIQA = Task(
    name="piqa",
    load=load_piqa,
    question=lambda row: f"Question: {row['goal']}\nOption A: {row['sol1']}\nOption B: {row['sol2']}",
    answer=lambda row: "AB"[row["label"]],
    system="Choose the option that works. Reply with its letter inside tags, like this: <answer>A</answer>",
    examples=lambda: load_few_shot("physical"),
    columns=lambda row: {"labels": ["A", "B"], "choices": [row["sol1"], row["sol2"]]},
    chance=0.5,
)
piqa_messages = PIQA.messages
