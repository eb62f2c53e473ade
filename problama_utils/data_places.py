"""Where the kit's own files, PIQA and ARC-Challenge lie, in a folder or on the hub, and how PIQA is split.

The hub's revisions are pinned. PIQA is read from the hub's own parquet conversion, since `datasets` refuses to run
the script that its main branch consists of.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from problama_utils.data_rows import Row, parse_piqa
from problama_utils.data_sources import (
    DataError,
    Entry,
    Record,
    assets_folder,
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

Place = Path | str


def resolve(task: str, source: str | Path | None) -> Place:
    """Return "embedded", "hub" or a folder that holds the task; None means PROBLAMA_DATA's folder where it does."""
    if source in ("embedded", "hub"):
        return str(source)
    folder = local_folder() if source is None else Path(source)
    if folder is None:
        return "embedded"
    if not folder.is_dir():
        raise DataError(folder, None, None, "no such folder", 'an existing folder, "embedded" or "hub"')
    holds = {"physical": piqa_folder, "science": arc_folder}.get(task, lambda _: None)(folder)
    if holds or (folder / f"{task}.jsonl").is_file():
        return folder
    if source is None:
        return "embedded"
    public = {"physical": "piqa/valid.jsonl with valid-labels.lst, parquet files, or ",
              "science": "ARC-Challenge/ARC-Challenge-Test.jsonl, parquet files, or "}.get(task, "")
    raise DataError(folder, None, None, f"no {task} there", f"{public}{task}.jsonl")


def own_file(place: Place, task: str) -> Path:
    """Return the path of a file in the kit's own form."""
    return (assets_folder() if place == "embedded" else Path(place)) / f"{task}.jsonl"


def piqa_folder(folder: Path) -> Path | None:
    """Return where PIQA's validation questions lie in or below a data folder, None where they do not."""
    return next((f for f in (folder / "piqa", folder) if (f / "valid.jsonl").is_file() or _piqa_parquet(f)), None)


def _piqa_parquet(folder: Path, split: str = "validation") -> list[Path]:
    """Find a split as the hub lays it out: `plain_text/validation/0000.parquet` or `validation-00000-of-….parquet`."""
    roots = [folder] if folder.name == "piqa" else [folder / "piqa", folder / "plain_text"]
    return [path for root in roots if root.is_dir() for path in root.rglob("*.parquet")
            if split in (path.parent.name, path.name.split("-")[0], path.stem)]


def arc_folder(folder: Path) -> Path | None:
    """Return where ARC-Challenge lies in or below a data folder, None where it does not."""
    roots = (folder / "ARC-Challenge", folder / "ai2_arc" / "ARC-Challenge", folder)
    forms = ("ARC-Challenge-*.jsonl", "test*.parquet")
    return next((root for root in roots if any(path for form in forms for path in root.glob(form))
                 and (root.name == "ARC-Challenge" or any(root.glob(forms[0])))), None)


def science_entries(place: Place, split: str) -> list[Entry]:
    """Return the raw records of a science split ("train", "dev" or "test")."""
    hub_name = "validation" if split == "dev" else split
    if place == "hub":
        return read_hub(f"hub:allenai/ai2_arc@{ARC_REVISION[:7]}/ARC-Challenge/{hub_name}", path="allenai/ai2_arc",
                        name="ARC-Challenge", revision=ARC_REVISION, split=hub_name)
    folder = arc_folder(place) if isinstance(place, Path) else None
    if folder is None:
        return read_json_lines(own_file(place, "science"))
    lines = folder / f"ARC-Challenge-{split.capitalize()}.jsonl"
    parquet = list(folder.glob(f"{hub_name}*.parquet"))
    return read_parquet(parquet) if parquet and not lines.is_file() else read_json_lines(lines)


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


def piqa_from_folder(place: Path, drop: bool) -> dict[str, list[Row]]:
    """Read PIQA's train (where it is there) and validation questions from a data folder."""
    folder = piqa_folder(place)
    parts = {}
    for split, stem in (("train", "train"), ("validation", "valid")):
        lines, parquet = folder / f"{stem}.jsonl", _piqa_parquet(folder, split)
        if lines.is_file():
            entries = _with_labels(lines, folder / f"{stem}-labels.lst")
        elif parquet:
            entries = read_parquet(parquet)
        else:
            continue
        parts[split] = rows_of(entries, partial(parse_piqa, split=split), drop)
    return parts


def _with_labels(lines: Path, labels: Path) -> list[Entry]:
    entries, values = read_json_lines(lines), read_labels(labels)
    if len(entries) != len(values):
        raise DataError(labels, None, None, f"{len(values)} labels", f"{len(entries)}, one a line of {lines.name}")
    joined: list[Entry] = []
    for entry, value in zip(entries, values, strict=True):
        if isinstance(entry, Record) and isinstance(value, int):
            entry = Record(entry.file, entry.line, {**entry.fields, "label": value})
        joined.append(value if isinstance(entry, Record) and isinstance(value, DataError) else entry)
    return joined


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
