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
        for number, row in enumerate(rows, start=1):
            if len(row) != len(rows[0]):
                raise csv.Error(f"line {number} has {len(row)} of the {len(rows[0])} fields of its header")
        if rows and len(set(rows[0])) < len(rows[0]):
            raise csv.Error("its header has a column more than once")
        return pd.read_csv(io.StringIO(text), index_col=False) if rows else pd.DataFrame()
    except (csv.Error, pd.errors.ParserError) as error:
        raise CourseError(f"{called(path)} was cut or changed ({' '.join(str(error).split())}), where rows of numbers "
                          f"between commas were expected: {COPY_AGAIN}.") from None


def state_table(path: Path) -> pd.DataFrame:
    """Return the steps of a TRL checkpoint; the closing summary and evaluations have no reward and are left out."""
    import pandas as pd

    state = json_object(path)
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise CourseError(f"{called(path)} has no list 'log_history' of steps (it has {listed(state)}): give a "
                          "checkpoint folder that TRL has written.")
    rows = [row for row in history if any(name == "reward" or REWARD_COLUMN.fullmatch(name) for name in row)]
    return pd.DataFrame(rows or history)  # without any reward, `checked` tells what there is instead


def checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a table as a log: rewards, whole steps, each once, in order, and numbers where numbers belong."""
    names = list(table.columns)
    if not len(table):
        raise CourseError(f"{called(path)} is empty: no step has been finished yet; run the training first.")
    if "step" not in names:
        raise CourseError(f"{called(path)} has no column 'step' between commas; it has {listed(names)}: {COPY_AGAIN}.")
    if not any(name == "reward" or REWARD_COLUMN.fullmatch(name) for name in names):
        raise CourseError(f"{called(path)} has {len(table)} rows without a reward (it has {listed(names)}), as "
                          "supervised training (SFT) leaves them; the log of a GRPO run was expected, with 'reward' "
                          "or 'rewards/<name>/mean': give the folder of such a run.")
    for name in names:
        place = f"the column {name!r} of {called(path)}"
        if name in ("step", *METRICS) or REWARD_COLUMN.fullmatch(name) or _some_number(table[name]):
            table[name] = numbers(table[name], place)  # a column of nothing but text, such as a remark, stays
    steps = table["step"]
    odd = steps[~((steps % 1 == 0) & steps.between(0, 2**53)) | steps.duplicated()]  # NaN and infinity too
    if len(odd):
        raise CourseError(f"{called(path)} has the step {odd.iloc[0]:g} in row {odd.index[0] + 1}, where whole numbers "
                          "from 0 on were expected, each once: keep the rows of one run, or make the run again in a "
                          "folder of its own.")
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
        there = Path(folder).is_dir()
    except (TypeError, ValueError, OSError):
        there = False
    if not there:
        raise CourseError(f"{str(folder)[-80:]!r} is no folder to read a run from: correct the name, give the folder "
                          "of a file instead of the file, or run the training notebook that writes it first.")
    return Path(folder)


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or say what is wrong with it."""
    text = _text(path)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CourseError(f"{called(path)} is no whole JSON ({error}): {COPY_AGAIN}.") from None
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
