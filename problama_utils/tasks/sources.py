"""Where problems come from: JSON lines, label lists, parquet and the hub, read strictly.

Everything here turns a source into `Record`s that remember their file and line, so that a bad value can be named
exactly. What a riddle or a question must look like is decided in `problama_utils.tasks.rows`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from problama_utils import CourseError
from problama_utils.config import course_root, path_variable
from problama_utils.setup.hub import clear_text_trouble, scrubbed, shows_token

ASSETS_VARIABLE = "PROBLAMA_ASSETS"
DATA_VARIABLE = "PROBLAMA_DATA"
USE_EMBEDDED = 'Without a network, use source="embedded" or name a local folder in PROBLAMA_DATA.'


class DataError(CourseError):
    """Bad data or a missing source: the only error that bad input yields.

    Attributes:
        file: file (or hub address) that holds the problem.
        line: line in that file (parquet and hub: row), counted from 1; None where the whole file is meant.
        field: name of the offending field, None where the whole line or file is meant.
        expected: what should have been there, in words.
    """

    def __init__(self, file: str | Path, line: int | None, field: str | None, found: str, expected: str) -> None:
        self.file, self.line, self.field, self.expected = str(file), line, field, expected
        place = self.file + (f", line {line}" if line is not None else "") + (f", field '{field}'" if field else "")
        super().__init__(f"{place}: found {found}; expected {expected}")


@dataclass(frozen=True)
class Record:
    """One raw line or row with its address; the methods return a checked value or raise `DataError`."""

    file: str
    line: int
    fields: dict[str, Any]

    def error(self, field: str | None, found: str, expected: str) -> DataError:
        """Build (not raise) the error that names this record's file and line."""
        return DataError(self.file, self.line, field, found, expected)

    def only(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Check that every required field is there and that no unknown one is."""
        for name in required:
            if name not in self.fields:
                raise self.error(name, "no such field", f"the fields {', '.join(required)}")
        for name in self.fields:
            if name not in required and name not in optional:
                raise self.error(ascii(name)[1:-1], "an unknown field", f"only {', '.join([*required, *optional])}")

    def text(self, field: str) -> str:
        """Return a field that must be a non-empty string, encodable as UTF-8."""
        return self._text(field, self.fields.get(field), "a non-empty text")

    def texts(self, field: str, least: int, most: int) -> list[str]:
        """Return a field that must be a list of `least` to `most` non-empty strings."""
        count = str(least) if least == most else f"{least} to {most}"
        expected = f"a list of {count} non-empty texts"
        values = self.fields.get(field)
        if not isinstance(values, list) or not least <= len(values) <= most:
            raise self.error(field, show(values), expected)
        return [self._text(field, value, expected) for value in values]

    def word(self, field: str, allowed: Collection[str], why: str = "") -> str:
        """Return a field that must be one of the words in `allowed`."""
        value = self.text(field)
        if value not in allowed:
            raise self.error(field, show(value), f"{' or '.join(allowed)} {why}".rstrip())
        return value

    def whole(self, field: str, allowed: Collection[int]) -> int:
        """Return a field that must be one of the whole numbers in `allowed` (true and 1.0 are not)."""
        value = self.fields.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
            raise self.error(field, show(value), f"one of {', '.join(map(str, allowed))}")
        return value

    def inside(self, field: str) -> Record:
        """Return a field that must itself be an object, as a record at the same address."""
        value = self.fields.get(field)
        if not isinstance(value, dict):
            raise self.error(field, show(value), "an object with named fields")
        return Record(self.file, self.line, value)

    def _text(self, field: str, value: Any, expected: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, show(value), expected)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise self.error(field, show(value), "text without lone surrogates (valid UTF-8)") from None
        return value


Entry = Record | DataError


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
    root = Path(path_variable(ASSETS_VARIABLE) or course_root() / "assets")
    for folder in (root / "data", root):
        if (folder / "riddles.jsonl").is_file():
            return folder
    raise DataError(root, None, None, "no data/riddles.jsonl there", f"the repository's assets folder: install with "
                    f"'pip install -e .' from a checkout, or set {ASSETS_VARIABLE} to that folder")


def local_folder() -> Path | None:
    """Return the folder that PROBLAMA_DATA names, None where it is unset.

    Raises:
        DataError: it names something that is no folder (falling back silently would mislabel a run).
    """
    named = path_variable(DATA_VARIABLE)
    return existing_folder(Path(named), f" (named by {DATA_VARIABLE})", f"{DATA_VARIABLE} unset") if named else None


def existing_folder(folder: Path, named_by: str, otherwise: str) -> Path:
    """Return the folder; raise `DataError` where it is none."""
    try:
        if folder.is_dir():
            return folder
        found = "a file, not a folder" if folder.exists() else "no such folder"
    except (OSError, ValueError) as error:  # a name too long, a null character
        found = f"a name that cannot be a folder's ({str(error).splitlines()[0][:60]})"
    raise DataError(folder, None, None, f"{found}{named_by}", f"an existing folder, or {otherwise}")


def read_text(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, without their line ends; the file must hold at least one."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(path, None, None, f"{type(error).__name__}", "a readable file") from error
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    if not any(line.strip() for line in lines):
        raise DataError(path, None, None, "an empty file", "at least one line")
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise DataError(path, number, None, f"byte 0x{line[error.start]:02x} at column {error.start + 1}",
                            "UTF-8 text (save the file as UTF-8)") from None
    return texts


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field that occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is not JSON")


def read_json_lines(path: Path) -> list[Entry]:
    """Read a file of JSON objects, one a line; a broken line becomes a `DataError` in its place."""
    entries: list[Entry] = []
    for number, line in enumerate(read_text(path), start=1):
        try:
            value = json.loads(line, object_pairs_hook=_object, parse_constant=_no_constant)
            if not isinstance(value, dict):
                raise ValueError(show(value))
            entries.append(Record(str(path), number, value))
        except (ValueError, RecursionError) as error:
            reason = "an empty line" if not line.strip() else str(error).split("\n")[0]
            entries.append(DataError(path, number, None, reason, "one JSON object with double-quoted names"))
    return entries


def read_labels(path: Path) -> list[int | DataError]:
    """Read PIQA's label list: 0 or 1, one a line."""
    return [int(text) if (text := line.strip()) in ("0", "1") else DataError(path, number, None, show(text), "0 or 1")
            for number, line in enumerate(read_text(path), start=1)]


def read_parquet(paths: Iterable[Path]) -> list[Entry]:
    """Read the rows of parquet files, in the order of their names."""
    import pyarrow
    import pyarrow.parquet

    entries: list[Entry] = []
    for path in sorted(paths):
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(path, None, None, str(error).split("\n")[0][:120], "a parquet file") from error
        entries += [Record(str(path), number, row) for number, row in enumerate(rows, start=1)]
    if not entries:
        raise DataError(", ".join(map(str, paths)), None, None, "no rows", "at least one row")
    return entries


def read_hub(address: str, **arguments: Any) -> list[Entry]:
    """Read one split from the Hugging Face hub.

    Args:
        address: what messages call the source, such as ``hub:allenai/ai2_arc@210d026``.
        arguments: passed to `datasets.load_dataset`.

    Raises:
        DataError: the hub did not deliver; the message names the embedded source.
    """
    import datasets

    if trouble := clear_text_trouble():
        raise DataError(address, None, None, trouble.rstrip("."), f"an https address. {USE_EMBEDDED}")
    try:
        loaded = datasets.load_dataset(**arguments)
    except Exception as error:  # the hub's clients raise requests', httpx' and their own kinds: name and chain them all
        said = scrubbed(str(error))
        reason = f"{type(error).__name__}: {said.splitlines()[0][:160] if said else 'no message'}"
        cause = None if shows_token(error) else error
        raise DataError(address, None, None, reason, f"an answer from the hub. {USE_EMBEDDED}") from cause
    return [Record(address, number, dict(row)) for number, row in enumerate(loaded, start=1)]


def parse_all(entries: Iterable[Entry], parse: Callable[[Record], dict[str, Any]], *, drop: bool = False
              ) -> tuple[list[dict[str, Any]], list[DataError]]:
    """Apply `parse` to every record and check that ids are unique.

    Returns:
        The rows, and the errors of the rows left out (empty unless `drop`).

    Raises:
        DataError: the first bad line, unless `drop`.
    """
    rows, dropped, first_seen = [], [], {}
    for row, error in _parsed(entries, parse, first_seen):
        if error is None:
            rows.append(row)
        elif drop:
            dropped.append(error)
        else:
            raise error
    return rows, dropped


def _parsed(entries: Iterable[Entry], parse: Callable[[Record], dict[str, Any]], first_seen: dict[str, str]
            ) -> Iterator[tuple[dict[str, Any], DataError | None]]:
    for entry in entries:
        if isinstance(entry, DataError):
            yield {}, entry
            continue
        try:
            row = parse(entry)
            if row["id"] in first_seen:
                raise entry.error("id", show(row["id"]), f"an id used once (first in {first_seen[row['id']]})")
            first_seen[row["id"]] = f"{entry.file}, line {entry.line}"
            yield row, None
        except DataError as error:
            yield {}, error
