"""Read the files of a run strictly: one that was cut, damaged or written by another trainer is refused.

Each refusal is one sentence: the file, what is in it, what was expected, what to do.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.monitoring.evidence import METRICS
from problama_utils.monitoring.run_folder import LOG_FILE

if TYPE_CHECKING:
    import pandas as pd

STATE_FILE = "trainer_state.json"  # in each checkpoint of TRL
REWARD_COLUMN = re.compile(r"rewards/(.+)/mean")
COPY_AGAIN = "copy it again from where the run was made, or make the run again"


def csv_table(path: Path) -> pd.DataFrame:
    """Return a CSV log as a table, after a look at its form: pandas would fill up short rows and shift long ones."""
    import pandas as pd

    text = _text(path)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise _damaged(path, error) from None
    if not rows:
        raise CourseError(f"The log in {name_of(path.parent)!r} is empty: {LOG_FILE} has no row, so no step has been "
                          "finished yet; run the training first.")
    header = rows[0]
    other = re.search(r"[;\t|]", header[0]) if len(header) == 1 else None
    if other:
        raise CourseError(f"{called(path)} separates its columns by {other[0]!r}, as a spreadsheet saves it, where "
                          f"commas were expected: {COPY_AGAIN}.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CourseError(f"{called(path)} has the column {twice[0]!r} more than once: keep one of them.")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            which = "last row" if number == len(rows) else f"row {number}"
            raise CourseError(f"The {which} of {called(path)} has {len(row)} of the {len(header)} fields of its "
                              f"header, so the file was cut or changed: {COPY_AGAIN}, or remove that row.")
    if len(rows) == 1 and "step" in header:
        raise CourseError(f"The log in {name_of(path.parent)!r} is empty: {LOG_FILE} has its header only, so no step "
                          "has been finished yet; run the training first.")
    try:
        return pd.read_csv(io.StringIO(text), index_col=False)
    except pd.errors.ParserError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CourseError:
    return CourseError(f"{called(path)} is damaged ({' '.join(str(error).split())}): rows of numbers between commas "
                       f"were expected; {COPY_AGAIN}.")


def state_table(path: Path) -> pd.DataFrame:
    """Return the steps of a TRL checkpoint; the closing summary and evaluations have no reward and are left out."""
    import pandas as pd

    state = json_object(path)
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise CourseError(f"{called(path)} has no list 'log_history' of steps (it has {listed(state)}): give a "
                          "checkpoint folder that TRL has written.")
    rows = [row for row in history if any(name == "reward" or REWARD_COLUMN.fullmatch(name) for name in row)]
    return pd.DataFrame(rows or history)  # without any reward, `_checked` tells what there is instead


def checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a table as a log: rewards, whole steps, each once, in order, and numbers where numbers belong."""
    names = list(table.columns)
    if not len(table):
        raise CourseError(f"The log in {name_of(path.parent)!r} is empty: {path.name} has no step yet; run the "
                          "training first.")
    if "step" not in names:
        raise CourseError(f"The log in {name_of(path.parent)!r} has no column 'step'; {path.name} has {listed(names)}. "
                          f"{COPY_AGAIN.capitalize()}.")
    if not any(name == "reward" or REWARD_COLUMN.fullmatch(name) for name in names):
        raise CourseError(f"{called(path)} has {len(table)} rows without a reward (it has {listed(names)}), as "
                          "supervised training (SFT) leaves them; the log of a GRPO run was expected, with 'reward' "
                          "or 'rewards/<name>/mean': give the folder of such a run.")
    for name in names:
        place = f"the column {name!r} of {called(path)}"
        if name in ("step", *METRICS) or REWARD_COLUMN.fullmatch(name) or _some_number(table[name]):
            table[name] = numbers(table[name], place)  # a column of nothing but text, such as a remark, stays
    steps = table["step"]
    odd = steps[~((steps % 1 == 0) & steps.between(0, 2**53))]  # NaN and infinity too
    if len(odd):
        raise CourseError(f"{called(path)} has the step {odd.iloc[0]:g} in row {odd.index[0] + 1}, where whole "
                          f"numbers from 0 on were expected: {COPY_AGAIN}.")
    again = steps[steps.duplicated()]
    if len(again):
        raise CourseError(f"{called(path)} has step {int(again.iloc[0])} more than once, as if two runs had written "
                          "into one folder: keep the rows of one run, or make the run again in a folder of its own.")
    table["step"] = steps.astype("int64")
    return table.set_index("step").sort_index(kind="stable")


def _some_number(values: pd.Series) -> bool:
    import pandas as pd

    return bool(pd.to_numeric(values.astype(str), errors="coerce").notna().any())


def numbers(values: pd.Series, place: str) -> pd.Series:
    """Return a column as numbers; text there is an error, a gap is not."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return values
    read = pd.to_numeric(values.astype(str), errors="coerce")
    wrong = read.isna() & values.notna() & (values.astype(str).str.strip().str.lower() != "nan")
    text = values[wrong]
    if len(text):
        shown, row = " ".join(str(text.iloc[0]).split())[:40], int(wrong.to_numpy().argmax()) + 1
        raise CourseError(f"{place[0].upper()}{place[1:]} holds {shown!r} in row {row}, where numbers were expected: "
                          f"{COPY_AGAIN}.")
    return read


def existing(folder: Any) -> Path:
    """Return the folder as a path, once it is known to be one."""
    try:
        path = Path(folder)
        there = path.exists()
    except (TypeError, ValueError, OSError):
        raise CourseError(f"{str(folder)[:80]!r} cannot be the name of a folder: give a run folder, such as "
                          "runs/riddles.") from None
    if there and not path.is_dir():
        raise CourseError(f"{path.name!r} is a file: give the folder that holds it, {name_of(path.parent)!r}.")
    if not there:
        raise CourseError(f"There is no folder {path.name!r} to read a run from: run the training notebook that writes "
                          "it first, or correct the name.")
    return path


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or say what is wrong with it."""
    try:
        record = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CourseError):
            raise
        what = getattr(error, "msg", type(error).__name__)
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        state = "is empty" if not path.stat().st_size else f"is no whole JSON ({what}{where})"
        raise CourseError(f"{called(path)} {state}, where a JSON object was expected: {COPY_AGAIN}.") from None
    if not isinstance(record, dict):
        raise CourseError(f"{called(path)} holds a JSON {type(record).__name__}, where an object was expected: "
                          f"{COPY_AGAIN}.")
    return record


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # an editor may have put a byte-order mark in front
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise CourseError(f"{called(path)} cannot be read ({error.strerror}): check that it is a file and that you "
                          "may read it.") from None
    if "\0" in text:
        raise CourseError(f"{called(path)} is no UTF-8 text, where a text file was expected: {COPY_AGAIN}.")
    return text


def called(path: Path) -> str:
    return f"{path.name} in {name_of(path.parent)!r}"


def name_of(folder: Path) -> str:
    return folder.name or folder.resolve().name


def listed(names: Iterable[Any], most: int = 30) -> str:
    names = [str(name)[:60] for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"
