"""Which source a task is read from: a folder, the hub, or the kit's own files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from problama_utils.config import expanded
from problama_utils.tasks.folders import DEPTH, LOOKED_FOR, find_own, find_public, listing
from problama_utils.tasks.sources import (
    DataError,
    Record,
    assets_folder,
    existing_folder,
    local_folder,
    read_json_lines,
    read_parquet,
)

PUBLIC = {"physical": "PIQA", "science": "ARC-Challenge"}
OWN = ""  # stands for the split of a file in the kit's own form, which holds all of them


@dataclass(frozen=True)
class Place:
    """A source that holds a task: "embedded", "hub" or "folder", with the files of each split that were found there."""

    kind: str
    about: str  # what a reader is told, without a path of this machine
    public: bool = False  # PIQA or ARC-Challenge, not the kit's own form
    files: dict[str, list[Path]] = field(default_factory=dict)  # by split
    announced: bool = True  # worth a line on stderr: not the default

    def records(self, split: str = OWN) -> list[Record]:
        """Read the raw records of a split, or of the whole file where it has the kit's own form."""
        files = self.files[split if self.public else OWN]
        return read_parquet(files) if files[0].suffix.lower() == ".parquet" else read_json_lines(files[0])


def resolve(task: str, source: str | Path | None) -> Place:
    """Return the source of a task: "embedded", "hub", a folder that holds it, or None: PROBLAMA_DATA's folder.

    A folder that is named and does not hold the task is an error, with one exception: riddles have no public source,
    so beside a PROBLAMA_DATA that holds another task they are the embedded ones.
    """
    source = "" if source is None else expanded(str(source), "source")
    others = '"embedded" or "hub"' if task in PUBLIC else '"embedded"'
    if source == "hub" and task in PUBLIC:
        return Place("hub", f"{PUBLIC[task]} from the hub", public=True)
    folder = None
    if source != "embedded":
        folder = existing_folder(source, others) if source else local_folder()
    if folder is None:
        return _embedded(task)
    place = _in_folder(task, folder)
    if place is not None:
        return place
    if not source and task not in PUBLIC and any(_in_folder(other, folder) for other in PUBLIC):
        return _embedded(task, " (PROBLAMA_DATA holds none)")
    cure = f"another folder, {others}" if source else (
        "the files there, PROBLAMA_DATA unset, or source=\"embedded\" for the course's own")
    raise DataError(folder, f"no {task} there, but {listing(folder)}", f"{LOOKED_FOR[task]}, in it or up to {DEPTH} "
                    f"folders below. Cure: {cure}")


def _embedded(task: str, why: str = "") -> Place:
    file = assets_folder() / f"{task}.jsonl"
    return Place("embedded", f"the course's own {file.name}{why}", files={OWN: [file]}, announced=bool(why))


def _in_folder(task: str, folder: Path) -> Place | None:
    """Return the place of a task's files in or below a folder, PIQA and ARC-Challenge before the kit's own form."""
    if task in PUBLIC and (found := find_public(PUBLIC[task], folder)):
        root, files = found
        return Place("folder", f"{PUBLIC[task]} in folder {_inside(folder, root)}", True, files)
    if file := find_own(task, folder):
        return Place("folder", f"{file.name} in folder {_inside(folder, file.parent)}", files={OWN: [file]})
    return None


def _inside(folder: Path, below: Path) -> str:
    """Name a folder by the last part of the one that the reader named, and what follows below it."""
    return (Path(folder.resolve().name) / below.relative_to(folder)).as_posix()
