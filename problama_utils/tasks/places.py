"""Which source a task is read from (a folder, the hub, the kit's own files), and how PIQA is split.

The hub's revisions are pinned. PIQA is read from the hub's own parquet conversion, since `datasets` refuses to run
the script that its main branch consists of.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from problama_utils.config import expanded
from problama_utils.tasks.folders import DEPTH, LOOKED_FOR, find_own, find_public, label_list, listing
from problama_utils.tasks.rows import Row, parse_piqa
from problama_utils.tasks.sources import (
    DATA_VARIABLE,
    DataError,
    Entry,
    Record,
    assets_folder,
    existing_folder,
    local_folder,
    parse_all,
    read_hub,
    read_json_lines,
    read_labels,
    read_parquet,
)

ARC_REVISION = "210d026faf9955653af8916fad021475a3f00453"
PIQA_REVISION = "142c51238b3ca2bc61e9a075913871b8b600e8e1"  # refs/convert/parquet, 2024-03-07
PIQA_SPLIT_SEED = 2025
PIQA_TRAIN_SHARE = 1200 / 1838
PUBLIC = {"physical": "PIQA", "science": "ARC-Challenge"}
NO_TEST_LABELS = "(the labels of PIQA's test split are not public, so nothing could be scored on it)"


@dataclass(frozen=True)
class Place:
    """A source that holds a task: "embedded", "hub" or "folder", with the files of each split that were found there."""

    kind: str
    about: str  # what a reader is told, without a path of this machine
    public: bool = False  # PIQA or ARC-Challenge, not the kit's own form
    files: dict[str, list[Path]] = field(default_factory=dict)  # by split; the kit's own file under ""
    announced: bool = False  # worth a line on stderr: not the default

    def __str__(self) -> str:
        return self.about


def resolve(task: str, source: str | Path | None) -> Place:
    """Return the source of a task: "embedded", "hub", a folder that holds it, or None: PROBLAMA_DATA's folder.

    A folder that is named and does not hold the task is an error, with one exception: riddles have no public source,
    so beside a PROBLAMA_DATA that holds another task they are the embedded ones.
    """
    if source is not None:
        source = expanded(str(source), "source") or None
    own = Place("embedded", f"the course's own {task}.jsonl", files={"": []})
    if source == "embedded":
        return own
    if source == "hub":
        return Place("hub", f"{PUBLIC.get(task, 'nothing')} from the hub", public=True, announced=True)
    folder = local_folder() if source is None else existing_folder(Path(source), "", '"embedded" or "hub"')
    if folder is None:
        return own
    place = _in_folder(task, folder)
    if place is not None:
        return place
    if source is None and task not in PUBLIC:
        others = [other for other in PUBLIC if _in_folder(other, folder) is not None]
        if others:
            return Place("embedded", f"the course's own {task}.jsonl ({DATA_VARIABLE} holds none)", files={"": []},
                         announced=True)
    cure = (f"the files there, {DATA_VARIABLE} unset, or source=\"embedded\" for the course's own" if source is None
            else 'another folder, "embedded" or "hub"')
    raise DataError(folder, None, None, f"no {task} there, but {listing(folder)}", f"{LOOKED_FOR[task]}, in it or up "
                    f"to {DEPTH} folders below. Cure: {cure}")


def _in_folder(task: str, folder: Path) -> Place | None:
    """Return the place of a task's files in or below a folder, PIQA and ARC-Challenge before the kit's own form."""
    if task in PUBLIC:
        found = find_public(PUBLIC[task], folder)
        if found is not None:
            root, files = found
            return Place("folder", f"{PUBLIC[task]} in folder {_inside(folder, root)}", True, files, announced=True)
    file = find_own(task, folder)
    if file is None:
        return None
    return Place("folder", f"{file.name} in folder {_inside(folder, file.parent)}", False, {"": [file]}, announced=True)


def _inside(folder: Path, below: Path) -> str:
    """Name a folder by the last part of the one that the reader named, and what follows below it."""
    return (Path(folder.resolve().name) / below.relative_to(folder)).as_posix()


def own_file(place: Place, task: str) -> Path:
    """Return the path of a file in the kit's own form."""
    return place.files[""][0] if place.files.get("") else assets_folder() / f"{task}.jsonl"


def science_entries(place: Place, split: str) -> list[Entry]:
    """Return the raw records of a science split ("train", "dev" or "test")."""
    hub_name = "validation" if split == "dev" else split
    if place.kind == "hub":
        return read_hub(f"hub:allenai/ai2_arc@{ARC_REVISION[:7]}/ARC-Challenge/{hub_name}", path="allenai/ai2_arc",
                        name="ARC-Challenge", revision=ARC_REVISION, split=hub_name)
    if not place.public:
        return read_json_lines(own_file(place, "science"))
    if split not in place.files:
        raise DataError(place.about, None, None, f"no {split} questions, only {', '.join(sorted(place.files))}",
                        f"ARC-Challenge-{split.capitalize()}.jsonl or {hub_name}-00000-of-00001.parquet beside them")
    return _read(place.files[split])


def _read(files: list[Path]) -> list[Entry]:
    return read_parquet(files) if files[0].suffix.lower() == ".parquet" else read_json_lines(files[0])


def piqa_from_hub(split: str, drop: bool) -> dict[str, list[Row]]:
    """Read what `split` needs of PIQA's train and validation questions from the hub."""
    wanted = {"train": ["train"], "all": ["train", "validation"]}.get(split, ["validation"])
    parts = {}
    for name in wanted:
        files = f"hf://datasets/ybisk/piqa@{PIQA_REVISION}/plain_text/{name}/*.parquet"
        entries = read_hub(f"hub:ybisk/piqa@{PIQA_REVISION[:7]}/{name}", path="parquet", data_files={name: files},
                           split=name)
        parts[name] = rows_of(entries, partial(parse_piqa, split=name), drop)
    return parts


def piqa_from_folder(place: Place, drop: bool) -> dict[str, list[Row]]:
    """Read PIQA's train (where it is there) and validation questions from a data folder.

    Raises:
        DataError: no validation questions are there, as beside the test questions alone, or bad input.
    """
    if "validation" not in place.files:
        there = ", ".join(sorted(path.name for files in place.files.values() for path in files)[:4])
        raise DataError(place.about, None, None, f"only {there}", "PIQA's validation questions beside it: valid.jsonl "
                        f"or dev.jsonl with its -labels.lst, or parquet {NO_TEST_LABELS}")
    parts = {}
    for split in ("train", "validation"):
        if split in place.files:
            entries = _read(place.files[split])
            if place.files[split][0].suffix.lower() != ".parquet":
                entries = _with_labels(place.files[split][0], entries)
            elif len(place.files[split]) > 1:  # lines are counted anew in each file, ids are not
                entries = [Record(entry.file, entry.line, {"id": f"piqa-{split}-{number:05d}", **entry.fields})
                           for number, entry in enumerate(entries, start=1)]
            parts[split] = rows_of(entries, partial(parse_piqa, split=split), drop)
    return parts


def _with_labels(lines: Path, entries: list[Entry]) -> list[Entry]:
    """Join rows and their label list; without a list the rows must have a label each."""
    labels = label_list(lines)
    if labels is None:
        if any(isinstance(entry, Record) and "label" in entry.fields for entry in entries):
            return entries
        raise DataError(lines, None, None, f"no {lines.stem}-labels.lst beside it and no label in its rows",
                        "PIQA's list of labels (0 or 1), one a line")
    values = read_labels(labels)
    if len(entries) != len(values):
        raise DataError(labels, None, None, f"{len(values)} labels", f"{len(entries)}, one a line of {lines.name}")
    joined: list[Entry] = []
    for entry, value in zip(entries, values, strict=True):
        if isinstance(entry, Record) and "label" in entry.fields:
            value = entry.error("label", "a label in the row too", f"labels in {labels.name} alone")
        if isinstance(entry, Record) and isinstance(value, int):
            entry = Record(entry.file, entry.line, {**entry.fields, "label": value})
        joined.append(value if isinstance(entry, Record) and isinstance(value, DataError) else entry)
    return joined


def split_rule(parts: dict[str, list[Row]], by_file: bool) -> str:
    """Say in words how `name_piqa_splits` divides these questions."""
    if by_file or "train" in parts:
        return "train as published, validation held out"
    rows = name_piqa_splits(parts, by_file)
    held = sum(row["split"] == "heldout" for row in rows)
    return f"its {len(rows):,} validation questions split by goal, {len(rows) - held:,} train and {held:,} held out"


def name_piqa_splits(parts: dict[str, list[Row]], by_file: bool) -> list[Row]:
    """Name each row's split: by file where train is there (or `by_file`), else validation is divided by goal."""
    if by_file or "train" in parts:
        return [row | {"split": "train" if name == "train" else "heldout"} for name, rows in parts.items()
                for row in rows]
    train = train_goals([row["goal"] for row in parts["validation"]], PIQA_TRAIN_SHARE, PIQA_SPLIT_SEED)
    return [row | {"split": "train" if _goal_key(row["goal"]) in train else "heldout"} for row in parts["validation"]]


def _goal_key(goal: str) -> str:
    return " ".join(re.findall(r"\w+", goal.lower()))


def train_goals(goals: Sequence[str], share: float, seed: int) -> set[str]:
    """Choose goals (whole groups of equal ones) whose rows make up round(share · rows), filled in a seeded order."""
    sizes: dict[str, int] = {}
    for goal in goals:
        sizes[_goal_key(goal)] = sizes.get(_goal_key(goal), 0) + 1
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    left, chosen = round(share * len(goals)), set()
    for goal in order:
        if sizes[goal] <= left:
            left -= sizes[goal]
            chosen.add(goal)
    return chosen


def rows_of(entries: list[Entry], parse: Callable[[Record], Row], drop: bool) -> list[Row]:
    """Parse all entries; with `drop`, warn with the number and the list of those left out."""
    rows, dropped = parse_all(entries, parse, drop=drop)
    if dropped:
        listing = "\n".join(f"  {error}" for error in dropped)
        warnings.warn(f"{len(dropped)} of {len(entries)} rows dropped:\n{listing}", stacklevel=3)
    return rows
