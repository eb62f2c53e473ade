"""Where problems come from: JSON lines, parquet and the hub, read strictly.

Everything here turns a source into `Record`s that remember their file and line, so that a bad value can be named
exactly. What a riddle or a question must look like is decided in `problama_utils.tasks.rows`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from problama_utils import CourseError
from problama_utils.config import course_root, path_variable
from problama_utils.setup.hub import clear_text_trouble, scrubbed, shows_token

USE_EMBEDDED = 'Without a network, use source="embedded" or name a local folder in PROBLAMA_DATA.'


class DataError(CourseError):
    """Bad data or a missing source: the only error that bad input yields.

    It names a file (or hub address), a line in it (parquet and hub: row) counted from 1, and a field; line and field
    are None where the whole file or line is meant.
    """

    def __init__(
        self, file: str | Path, found: str, expected: str, line: int | None = None, field: str | None = None
    ) -> None:
        self.file, self.line, self.field = str(file), line, field
        place = self.file + (f", line {line}" if line is not None else "") + (f", field '{field}'" if field else "")
        super().__init__(f"{place}: found {found}; expected {expected}")


@dataclass(frozen=True)
class Record:
    """One raw line or row with its address; the methods return a checked value or raise `DataError`."""

    file: str
    line: int
    fields: dict[str, Any]

    def error(self, field: str, found: str, expected: str) -> DataError:
        """Build (not raise) the error that names this record's file and line."""
        return DataError(self.file, found, expected, self.line, field)

    def only(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Check that every required field is there and that no unknown one is."""
        for name in [*required, *self.fields]:
            if name not in optional and (name in required) != (name in self.fields):
                found = "an unknown field" if name in self.fields else "no such field"
                raise self.error(ascii(name)[1:-1], found, f"the fields {', '.join([*required, *optional])} alone")

    def text(self, field: str, form: str = "") -> str:
        """Return a field that must be a non-empty string, encodable as UTF-8, and of a form (regular expression)."""
        text = self._text(field, self.fields.get(field), "a non-empty text")
        if form and not re.fullmatch(form, text):
            raise self.error(field, show(text), f"the form {form}")
        return text

    def texts(self, field: str, least: int, most: int) -> list[str]:
        """Return a field that must be a list of `least` to `most` non-empty strings."""
        count = str(least) if least == most else f"{least} to {most}"
        expected = f"a list of {count} non-empty texts"
        values = self.fields.get(field)
        if not isinstance(values, list) or not least <= len(values) <= most:
            raise self.error(field, show(values), expected)
        return [self._text(field, value, expected) for value in values]

    def word(self, field: str, allowed: Collection[str]) -> str:
        """Return a field that must be one of the words in `allowed`."""
        value = self.text(field)
        if value not in allowed:
            raise self.error(field, show(value), " or ".join(allowed))
        return value

    def whole(self, field: str, allowed: Collection[int]) -> int:
        """Return a field that must be one of the whole numbers in `allowed` (true and 1.0 are not)."""
        value = self.fields.get(field)
        if type(value) is not int or value not in allowed:
            raise self.error(field, show(value), f"one of {', '.join(map(str, allowed))}")
        return value

    def inside(self, field: str) -> Record:
        """Return a field that must itself be an object, as a record at the same address."""
        value = self.fields.get(field)
        if not isinstance(value, dict):
            raise self.error(field, show(value), "an object with named fields")
        return Record(self.file, self.line, value)

    def _text(self, field: str, value: Any, expected: str) -> str:
        if not isinstance(value, str) or not value.strip() or re.search("[\ud800-\udfff]", value):
            raise self.error(field, show(value), f"{expected} in valid UTF-8")
        return value


def show(value: Any) -> str:
    """Describe a value in at most about 60 characters, without walking into nested ones.

    >>> show("tail"), show([1, 2]), show(None)
    ("'tail'", 'a list of 2', 'nothing')
    """
    if value is None:
        return "nothing"
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def assets_folder() -> Path:
    """Return the folder of the embedded files (`assets/data` of the checkout or wheel, or below PROBLAMA_ASSETS).

    Raises:
        DataError: the folder is not there.
    """
    root = Path(path_variable("PROBLAMA_ASSETS") or course_root() / "assets")
    for folder in (root / "data", root):
        if (folder / "riddles.jsonl").is_file():
            return folder
    raise DataError(root, "no data/riddles.jsonl there", "the repository's assets folder: install with "
                    "'pip install -e .' from a checkout, or set PROBLAMA_ASSETS to that folder")


def local_folder() -> Path | None:
    """Return the folder that PROBLAMA_DATA names, None where it is unset.

    Raises:
        DataError: it names something that is no folder (falling back silently would mislabel a run).
    """
    named = path_variable("PROBLAMA_DATA")
    return existing_folder(named, "PROBLAMA_DATA unset") if named else None


def existing_folder(folder: str, otherwise: str) -> Path:
    """Return the folder; raise `DataError` where it is none."""
    if not os.path.isdir(folder):
        raise DataError(folder, "no folder of that name", f"an existing folder, or {otherwise}")
    return Path(folder)


def read_text(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, without their line ends; the file must hold at least one."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(path, type(error).__name__, "a readable file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(path, f"byte 0x{error.object[error.start]:02x}", "UTF-8 text (save the file as UTF-8)",
                        line) from None
    if not lines[-1].strip():
        lines.pop()
    if not any(line.strip() for line in lines):
        raise DataError(path, "an empty file", "at least one line")
    return [line.removesuffix("\r") for line in lines]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field that occurs twice")
    return found


def read_json_lines(path: Path) -> list[Record]:
    """Read a file of JSON objects, one a line."""
    records = []
    for number, line in enumerate(read_text(path), start=1):
        try:
            value = json.loads(line, object_pairs_hook=_object)
            if not isinstance(value, dict):
                raise ValueError(show(value))
        except (ValueError, RecursionError) as error:
            raise DataError(path, str(error), "one JSON object with double-quoted names", number) from error
        records.append(Record(str(path), number, value))
    return records


def read_parquet(paths: Iterable[Path]) -> list[Record]:
    """Read the rows of parquet files, in the order of their names."""
    import pyarrow.parquet

    records: list[Record] = []
    for path in sorted(paths):
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(path, str(error).split("\n")[0][:120], "a parquet file") from error
        records += [Record(str(path), number, row) for number, row in enumerate(rows, start=1)]
    if not records:
        raise DataError(", ".join(map(str, paths)), "no rows", "at least one row")
    return records


def read_hub(address: str, **arguments: Any) -> list[Record]:
    """Read one split from the Hugging Face hub; messages call it by its address, such as "hub:allenai/ai2_arc@210d026".

    Raises:
        DataError: the hub did not deliver; the message names the embedded source.
    """
    import datasets

    if trouble := clear_text_trouble():
        raise DataError(address, trouble.rstrip("."), f"an https address. {USE_EMBEDDED}")
    try:
        loaded = datasets.load_dataset(**arguments)
    except Exception as error:  # the hub's clients raise requests', httpx' and their own kinds: name and chain them all
        said = scrubbed(str(error))
        reason = f"{type(error).__name__}: {said.splitlines()[0][:160] if said else 'no message'}"
        cause = None if shows_token(error) else error
        raise DataError(address, reason, f"an answer from the hub. {USE_EMBEDDED}") from cause
    return [Record(address, number, dict(row)) for number, row in enumerate(loaded, start=1)]
