"""Find PIQA, ARC-Challenge and the kit's own files in a folder, however they were downloaded.

Known layouts: the authors' `train.jsonl` and `valid.jsonl` with `-labels.lst`; AI2's zips (`physicaliqa-train-dev/`
with `dev.jsonl`, `ARC-V1-Feb2018-2/ARC-Challenge/`); the hub's parquet (`plain_text/train/0000.parquet`,
`data/train-00000-of-00001.parquet`, `ARC-Challenge/test-00000-of-00001.parquet`); the hub's cache; and any parent of
these. Case does not matter, and .json is read like .jsonl.

Names such as `dev.jsonl` belong to many data sets, so below a folder that is not called after PIQA, files whose first
row has none of its fields are passed over. ARC-Easy has the names of ARC-Challenge: there the folder decides.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from problama_utils.tasks.sources import DataError

DEPTH, MOST_FOLDERS = 8, 5000  # a hub's cache has its parquet files six folders below HF_HOME
LINES, PARQUET = (".jsonl", ".json"), ".parquet"
NAMED = {"PIQA": r"piqa|physical.?iqa", "ARC-Challenge": r"arc[-_ ]?challenge"}  # in a folder's name
ARC_EASY = r"arc[-_ ]?easy"
# valid.jsonl, ARC-Challenge-Test.jsonl, train-00000-of-00001.parquet or train/0000.parquet, with the folder it lies in
_FILE = r"(?P<root>(?:.*?/)??)%s(?P<split>train|valid|dev|validation|%s)(?:\.jsonl?|(?:/[^/]*|-[^/]*)?\.parquet)"
FILES = {"PIQA": _FILE % ("", "tests?"), "ARC-Challenge": _FILE % ("(?:arc-challenge-)?", "test")}
SPLITS = {"PIQA": {"valid": "validation", "dev": "validation", "tests": "test"},  # called otherwise than in the name
          "ARC-Challenge": {"valid": "dev", "validation": "dev"}}
PIQA_FIELDS = {"goal", "sol1", "sol2"}
LOOKED_FOR = {
    "physical": "PIQA's valid.jsonl or dev.jsonl with its -labels.lst, validation/0000.parquet, "
                "validation-00000-of-00001.parquet, or physical.jsonl",
    "science": "ARC-Challenge-Test.jsonl, ARC-Challenge/test-00000-of-00001.parquet, or science.jsonl",
    "riddles": "riddles.jsonl",
}


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in and below a folder, nearest first, in the order of names; not the hidden ones.

    Raises:
        DataError: the folder itself cannot be read.
    """
    waiting = deque([(0, folder)])
    for _ in range(MOST_FOLDERS):
        if not waiting:
            return
        depth, place = waiting.popleft()
        try:
            paths = sorted(place.iterdir())
        except OSError as error:
            if place == folder:
                raise DataError(folder, type(error).__name__, "a folder that can be read") from error
            continue
        for path in paths:
            if path.name.startswith(".") or path.name == "__MACOSX":
                continue
            if os.path.isdir(path):  # unlike the path's own, it takes a link to itself for nothing
                if depth < DEPTH:
                    waiting.append((depth + 1, path))
            elif os.path.isfile(path):
                yield path


def listing(folder: Path, most: int = 6) -> str:
    """Say what is in a folder: `README.md, x/`."""
    names = sorted(ascii(path.name)[1:-1] + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "nothing at all"


def find_own(task: str, folder: Path) -> Path | None:
    """Return the nearest file in the kit's own form (`riddles.jsonl`) in or below a folder, else None."""
    found = [path for path in files_below(folder) if path.stem.lower() == task and path.suffix.lower() in LINES]
    nearest = [path for path in found if len(path.parts) == len(found[0].parts)]
    return _only_one(folder, nearest) if nearest else None


def find_public(name: str, folder: Path) -> tuple[Path, dict[str, list[Path]]] | None:
    """Return where PIQA or ARC-Challenge lies in or below a folder, with the files of each split, else None.

    For PIQA validation questions come first; then a folder called after the data set comes before others, a near one
    before a far one, JSON lines before parquet.

    Raises:
        DataError: two places, or two files of one split, have an equal claim, or a part of a split is missing.
    """
    roots: dict[tuple[bool, int, bool, Path], dict[str, list[Path]]] = {}
    for path in files_below(folder):
        file = re.fullmatch(FILES[name], path.relative_to(folder).as_posix().lower())
        if not file:
            continue
        split = SPLITS[name].get(file["split"], file["split"])
        below = path.relative_to(folder).parts[: file["root"].count("/")]
        named = _is_named(name, [*(below or [folder.resolve().name]), path.stem])
        if named or (name == "PIQA" and not _is_other(path)):
            claim = (not named, len(below), path.suffix.lower() == PARQUET, folder.joinpath(*below))
            roots.setdefault(claim, {}).setdefault(split, []).append(path)
    if not roots:
        return None

    def rank(claim: tuple[bool, int, bool, Path]) -> tuple[bool, ...]:
        return (name == "PIQA" and "validation" not in roots[claim], *claim[:3])

    best = min(roots, key=rank)
    _only_one(folder, [claim[-1] for claim in roots if rank(claim) == rank(best)])
    for files in roots[best].values():
        if files[0].suffix.lower() == PARQUET:
            _whole(folder, files)
        else:
            _only_one(folder, files)
    return best[-1], roots[best]


def _is_named(name: str, parts: Sequence[str]) -> bool:
    """Tell whether the names on the way to a file say that it belongs to a data set; the nearest one decides."""
    for part in reversed(parts):
        if re.search(NAMED[name], part.lower()):
            return True
        if re.search(ARC_EASY, part.lower()):
            return False
    return False


def _is_other(path: Path) -> bool:
    """Tell whether a file's first row shows that it is another data set than PIQA."""
    try:
        if path.suffix.lower() == PARQUET:
            import pyarrow.parquet

            return not PIQA_FIELDS & set(pyarrow.parquet.read_schema(path).names)
        with path.open("rb") as file:
            row = json.loads(file.readline(1_000_000).removeprefix(b"\xef\xbb\xbf"))
        return isinstance(row, dict) and not PIQA_FIELDS & set(row)
    except (OSError, ValueError, RecursionError):  # pyarrow's are ValueErrors; unreadable: the reader of rows says why
        return False


def label_list(lines: Path) -> Path | None:
    """Return PIQA's label list beside a file of rows (`valid-labels.lst`), None where there is none."""
    wanted = f"{lines.stem}-labels.lst".lower()
    found = [path for path in sorted(lines.parent.iterdir()) if path.name.lower() == wanted]
    return _only_one(lines.parent, found) if found else None


def _only_one(folder: Path, found: list[Path]) -> Path:
    found = list({path.resolve(): path for path in found}.values())  # a link beside its goal is no rival
    if len(found) > 1:
        names = " and ".join(path.relative_to(folder).as_posix() for path in found[:3])
        raise DataError(folder, f"the same data {len(found)} times ({names})", "it once: name the folder of one, or "
                        "move the others away")
    return found[0]


def _whole(folder: Path, parts: list[Path]) -> None:
    """Check that the parquet files of a split lie together and are all there (`-00000-of-00002`)."""
    _only_one(folder, sorted({path.parent for path in parts}))
    count = re.search(r"-of-0*(\d+)", parts[0].stem)
    if count and int(count[1]) != len(parts):
        raise DataError(parts[0], f"{len(parts)} parts of this split", f"{count[1]}, as its name says")
