"""One row per question and policy on disk: appended as it is measured, resumed after a kill, read back as one table.

A record file is a CSV with a fixed header. Rows are appended in whole blocks; what a kill leaves of a last line is
dropped at the next start and measured again. Every row carries a hash of what the policy read, so that figures of
different policies are compared only where all of them read the same.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError

if TYPE_CHECKING:
    import pandas as pd

KEY = ("policy", "system", "id")
COLUMNS = (*KEY, "prompt_hash", "right", "strict", "lenient", "chosen", "chosen_norm", "scores", "completion")
HEADER = ",".join(COLUMNS).encode()


def prompt_hash(*texts: str) -> str:
    """Return 10 hex digits that stand for everything a policy reads for one question (SHA-256).

    >>> prompt_hash("a", "bc") == prompt_hash("ab", "c")
    False
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:10]


class RecordFile:
    """A CSV of records that survives being killed; made with its header where it is missing.

    Raises:
        CourseError: the file is not one of ours, or is damaged elsewhere than in its last line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.hashes: dict[tuple[str, ...], str] = {}  # key → hash of what was read, of every record that is there
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._remember(self.rows())
        else:
            self._write(HEADER + b"\n", "wb")

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records, in one write that reaches the disk before this returns."""
        rows = [{name: _text(record[name]) for name in COLUMNS} for record in records]
        self._write(_lines(rows), "ab")
        self._remember(rows)

    def has(self, record: Mapping[str, Any]) -> bool:
        """Tell whether the question has been measured.

        Raises:
            CourseError: it has, with another prompt: the data, the prompts or the base model have changed since.
        """
        before = self.hashes.get(tuple(_text(record[name]) for name in KEY))
        if before is not None and before != record["prompt_hash"]:
            raise CourseError(f"{self.path.name} has question {record['id']!r} with another prompt: the data or the "
                              "prompts have changed since. Move the file away, or name another folder to write to.")
        return before is not None

    def _remember(self, rows: Iterable[Mapping[str, str]]) -> None:
        self.hashes |= {tuple(row[name] for name in KEY): row["prompt_hash"] for row in rows}

    def _write(self, data: bytes, mode: str) -> None:
        with self.path.open(mode) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, str]]:
        """Return the rows that are there, as they are in the file; a damaged last line is dropped from it."""
        if HEADER.startswith(self.path.read_bytes()):  # killed before even the header was whole
            self._write(HEADER + b"\n", "wb")
        rows, cut = _sound_rows(self.path)
        if cut:
            self.replace(rows)
            print(f"The last line of {self.path.name} was cut off; it is dropped and measured again.", file=sys.stderr)
        return rows

    def replace(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Write these rows, as `rows` returns them, in place of the file: all of them, or nothing at all."""
        part = self.path.with_name(self.path.name + ".part")
        part.write_bytes(HEADER + b"\n" + _lines(rows))
        os.replace(part, self.path)


def read_records(places: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Read record files, or all `*.csv` of a folder, as one table.

    Added columns: `data` (the file name's part before the first underscore), `correct_strict`, `correct_lenient`,
    `unparsed` and `unread` (no letter could be read strictly, or even leniently), `correct_likelihood`,
    `correct_likelihood_norm`, `chance` (1 / number of choices), so that any share of any subset is one line:
    `records.query("system").groupby("policy").correct_strict.mean()`.

    Raises:
        CourseError: there are none, one is damaged, or policies have read different prompts.
    """
    import pandas as pd

    places = [places] if isinstance(places, str | Path) else places
    found = [sorted(place.glob("*.csv")) if place.is_dir() else [place] for place in map(Path, places)]
    paths = [path for files in found for path in files]
    tables = [_table(path) for path in paths if path.is_file()]
    if not any(map(len, tables)):
        raise CourseError("There are no records there: measure first, with python benchmarks/arc_study.py.")
    table = pd.concat([table for table in tables if len(table)], ignore_index=True)
    _check_same_prompts(table)
    return table


def _check_same_prompts(table: pd.DataFrame) -> None:
    """Raise `CourseError` where policies have read different prompts for a question, or one has answered twice."""
    by = ["data", "system", "id"]
    differing = table.groupby(by).prompt_hash.nunique()
    if (differing > 1).any():
        question = differing[differing > 1].index[0]
        raise CourseError(f"Policies have read different prompts for question {question[-1]!r}: their figures cannot "
                          "be compared. Measure them all anew with the same data and base model.")
    twice = table.duplicated([*by, "policy"])
    if twice.any():
        row = table[twice].iloc[0]
        raise CourseError(f"Policy {row.policy!r} has two records for question {row.id!r}: keep only one of its files.")


def with_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Return records with the verdicts that `read_records` describes, as far as their way was asked."""
    for name, column in (("strict", "strict"), ("lenient", "lenient"), ("likelihood", "chosen"),
                         ("likelihood_norm", "chosen_norm")):
        if column in table:
            table[f"correct_{name}"] = table[column] == table.right
    if "strict" in table:
        table["unparsed"], table["unread"] = table.strict == "", table.lenient == ""
    if "scores" in table:
        table["chance"] = [1 / len(scores) for scores in table.scores]
    return table


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    rows, cut = _sound_rows(path)
    if cut:
        raise CourseError(f"The last line of {path.name} was cut off: go on with its measurement, which repairs it, or "
                          "move the file away.")
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.insert(0, "data", path.stem.split("_")[0])
    table["system"] = table.system == "1"
    table["scores"] = [[float(score) for score in scores.split()] for scores in table.scores]
    table["completion"] = table.completion.map(unescaped)
    return with_verdicts(table)


def _sound_rows(path: Path) -> tuple[list[dict[str, str]], bool]:
    """Return the rows of a file, and whether its last line was cut off and left out.

    Raises:
        CourseError: it is no file of records, or another line is damaged.
    """
    header, *lines = path.read_bytes().split(b"\n")
    if header.rstrip(b"\r") != HEADER:
        raise CourseError(f"{path.name} is not a file of records (its first line is not the expected header): move it "
                          "away, or name another folder to write to.")
    cut = bool(lines and lines.pop())  # what follows the last line break
    rows = [_parse(line) for line in lines]
    if rows and rows[-1] is None:
        rows.pop()
        cut = True
    if None in rows:
        raise CourseError(f"Line {rows.index(None) + 2} of {path.name} is damaged: delete that line and run again (its "
                          "question is measured anew), or move the file away.")
    return rows, cut


def _parse(line: bytes) -> dict[str, str] | None:
    """Return a line's fields by column, None where it is damaged."""
    try:
        fields = next(csv.reader([line.decode("utf-8")], strict=True), [])
        row = dict(zip(COLUMNS, fields, strict=True))
        scores = [float(score) for score in row["scores"].split()]
    except (csv.Error, ValueError):
        return None
    filled = all(row[name] for name in (*KEY, "prompt_hash", "right"))
    return row if scores and filled and "\0" not in "".join(fields) else None


def _lines(rows: Iterable[Mapping[str, str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([row[name] for name in COLUMNS] for row in rows)
    return buffer.getvalue().encode()


def unescaped(text: str) -> str:
    r"""Return a text of a record as it was before it was written on one line.

    >>> unescaped(r"a\nb"), unescaped(r"a\\nb")
    ('a\nb', 'a\\nb')
    """
    return re.sub(r"\\([\\nr])", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), text)


def _text(value: Any) -> str:
    """Return a value as it is written in a file, on one line: a line break becomes the two characters \\n."""
    if isinstance(value, bool):
        return str(int(value))
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list | tuple):
        return " ".join(_text(item) for item in value)
    return str(value).replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n").replace("\0", "")
