"""The record of a run, read back as a table, diagnosed, and drawn as the slides' curves. `run_folder` writes it.

Everything here may meet a file that was cut, saved by a spreadsheet or written by another trainer. Such a file is
refused in one sentence: a curve drawn from half of it would be believed.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils.diagnosis import Diagnosis, find_causes
from problama_utils.errors import CourseError
from problama_utils.evidence import METRICS
from problama_utils.run_folder import LOG_FILE, PLAN_FILE, RUN_FILE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# TRL's metric → the title of the slide that shows it, in the slides' order.
SLIDE_CURVES = {
    "rewards/correct_answer_reward/mean": "Correct Answer",
    "rewards/short_response_reward/mean": "Short Response",
    "rewards/soft_format_reward/mean": "Soft Format",
    "reward": "Total Reward",
}

# The most each can be (the amounts of `rewards`). Curves are drawn from 0 to here: none looks steeper than it is.
CEILINGS = {
    "rewards/correct_answer_reward/mean": 2.0,
    "rewards/short_response_reward/mean": 0.5,
    "rewards/soft_format_reward/mean": 0.5,
    "reward": 3.0,
}

CHANCE = {"piqa": 0.5}  # share of answers that guessing gets right; riddles have no options to guess among
STATE_FILE = "trainer_state.json"  # in each checkpoint of TRL
REWARD_COLUMN = re.compile(r"rewards/(.+)/mean")
COPY_AGAIN = "copy it again from where the run was made, or make the run again"


def read_log(folder: str | Path) -> pd.DataFrame:
    """Return the log of a run, indexed by `step`, one row per step in their order.

    Args:
        folder: a run folder with `log.csv`, or a TRL checkpoint folder with `trainer_state.json`. The reward functions
            may have any names; see `reward_curves`.

    Raises:
        CourseError: there is no log, it is empty or damaged, has no rewards (supervised training), no step column, a
            step twice, or text among the numbers of a column.
    """
    folder = _existing(folder)
    if (folder / LOG_FILE).exists():
        path = folder / LOG_FILE
        table = _csv_table(path)
    elif (folder / STATE_FILE).exists():
        path = folder / STATE_FILE
        table = _state_table(path)
    else:
        inner = sorted(state.parent.name for state in folder.glob(f"checkpoint-*/{STATE_FILE}"))
        cure = f"give its folder {inner[-1]!r}, which has one" if inner else ("run the training notebook that writes "
                                                                              "it first")
        raise CourseError(f"There is no log in {_name(folder)!r} (neither {LOG_FILE} nor {STATE_FILE}): {cure}.")
    return _checked(table, path)


def read_run(folder: str | Path) -> dict[str, Any]:
    """Return the description of a run (`run.json`).

    Raises:
        CourseError: there is none, or it is damaged.
    """
    path = _existing(folder) / RUN_FILE
    if not path.exists():
        raise CourseError(f"There is no {RUN_FILE} in {_name(path.parent)!r}: the training has not finished.")
    return _json_object(path)


def diagnose(log: pd.DataFrame | str | Path, settings: Any = None, *, chance: float | None = None) -> Diagnosis:
    """Name the cause of a flat or falling reward, with the evidence and the cure.

    Args:
        log: what `read_log` returns, or a folder that it reads. A run folder brings its settings and its chance level.
        settings: the `GRPOSettings` of the run, where they are known and not in the folder.
        chance: share of answers that guessing gets right, where it is known and not by the folder's task.

    Returns:
        A `Diagnosis`: print it, or ask its `verdict` and `findings`. Checks whose figures a log lacks, such as one
        with other reward functions, are named as skipped.

    Raises:
        CourseError: the folder has no log that can be read, or its `run.json` does not describe a run of the course.
    """
    if isinstance(log, str | Path):
        task, recorded = _task_and_settings(_existing(log), needed=settings is None)
        settings = settings if settings is not None else recorded
        chance = chance if chance is not None else CHANCE.get(task)
        log = read_log(log)
    return find_causes(_table(log), settings, chance=chance)


def _task_and_settings(folder: Path, *, needed: bool) -> tuple[str, Mapping[str, Any] | None]:
    """Return the task of a run, finished or not, and its settings; nothing for a checkpoint of TRL."""
    path = next((folder / name for name in (RUN_FILE, PLAN_FILE) if (folder / name).exists()), None)
    if path is None:  # the plan stands there while a run lasts
        return "", None
    record = _json_object(path)
    task, profile = record.get("task"), record.get("profile")
    if not isinstance(task, str):
        raise CourseError(f"{_called(path)} names no task (it has {_listed(record)}): a run of the course has 'task' "
                          f"and 'profile' there. {COPY_AGAIN.capitalize()}, or diagnose its log: "
                          "diagnose(read_log(folder)).")
    recorded = profile.get(task) if isinstance(profile, dict) else None
    if needed and not isinstance(recorded, dict):
        held = f"the profile has {_listed(profile)}" if isinstance(profile, dict) else "it has no profile"
        raise CourseError(f"{_called(path)} names the task {task!r}, but no settings of it ({held}): give them, as in "
                          "diagnose(folder, settings), or diagnose the log alone: diagnose(read_log(folder)).")
    return task, recorded


def reward_curves(log: pd.DataFrame) -> dict[str, str]:
    """Return every reward that a log holds, metric → title: the slides' first, then others by their name, then the sum.

    Raises:
        CourseError: the log has no reward.

    >>> import pandas as pd
    >>> reward_curves(pd.DataFrame(columns=["reward", "loss", "rewards/tidy/mean", "rewards/soft_format_reward/mean"]))
    {'rewards/soft_format_reward/mean': 'Soft Format', 'rewards/tidy/mean': 'tidy', 'reward': 'Total Reward'}
    """
    there = [name for name in _table(log).columns if isinstance(name, str)]
    parts = {name: found[1] for name in there if (found := REWARD_COLUMN.fullmatch(name))}
    known = {metric: title for metric, title in SLIDE_CURVES.items() if metric in parts}
    total = {"reward": SLIDE_CURVES["reward"]} if "reward" in there else {}
    curves = {**known, **{name: title for name, title in parts.items() if name not in known}, **total}
    if not curves:
        raise CourseError(f"The log has no reward to draw: it has {_listed(there)}, a GRPO log has 'reward' and "
                          "'rewards/<name>/mean'.")
    return curves


def ceiling(log: pd.DataFrame, metric: str) -> float | None:
    """Return the most that a reward of the slides can be; None where it is not known.

    The sum's is known only where no other reward takes part in it, and none is where the log itself goes beyond.
    """
    values = column(log, metric)
    parts = [name for name in log.columns if isinstance(name, str) and REWARD_COLUMN.fullmatch(name)]
    most = CEILINGS.get(metric)
    if metric == "reward" and parts:
        most = sum(CEILINGS[name] for name in parts) if set(parts) <= set(CEILINGS) else None
    return most if most is not None and values.between(-1e-6, most + 1e-6).all() else None


def first_and_last(log: pd.DataFrame, metric: str, steps: int = 5) -> tuple[float, float]:
    """Return the mean of a metric over the first and over the last `steps` steps of a run.

    Raises:
        CourseError: the log has no such metric, or no number in it.
    """
    values = column(log, metric)
    _whole("steps", steps)
    return float(values.head(steps).mean()), float(values.tail(steps).mean())


def smooth(values: pd.Series, window: int = 5) -> pd.Series:
    """Return the running mean over the last `window` steps; the first steps average what there is."""
    _whole("window", window)
    return values.rolling(window, min_periods=1).mean()


def draw_curve(
    ax: Axes, log: pd.DataFrame, metric: str, *, window: int = 5, title: str = "", unit: str = "reward"
) -> None:
    """Draw one metric over the global step: raw values as dots, their running mean as a line, its ceiling dotted.

    Raises:
        CourseError: the log has no such metric, or no number in it.
    """
    values = column(log, metric)
    mean = smooth(values, window)
    ax.plot(values.index, values, linestyle="none", marker=".", color="0.6", label="each step")
    ax.plot(mean.index, mean, color="black", label=f"mean of {window} steps")
    label_curve(ax, metric, ceiling(log, metric), title=title, unit=unit)


def label_curve(ax: Axes, metric: str, most: float | None, *, title: str = "", unit: str = "reward") -> None:
    """Give a drawn curve its title and axes, and its ceiling as a dotted line where there is one."""
    named = REWARD_COLUMN.fullmatch(metric)
    ax.set_title(title or SLIDE_CURVES.get(metric) or (named[1] if named else metric))
    ax.set_xlabel("global step")
    ax.set_ylabel(unit)
    ax.grid(alpha=0.3)
    if most is not None:
        ax.axhline(most, linestyle=":", color="black", linewidth=1)
        ax.set_ylim(-0.04 * most, 1.08 * most)


def column(log: pd.DataFrame, metric: str) -> pd.Series:
    """Return the numbers of one metric of a log, its gaps dropped.

    Raises:
        CourseError: the log has no such metric, has it twice, or holds text or nothing there.
    """
    import pandas as pd

    names = [name for name in _table(log).columns if isinstance(name, str)]
    if metric not in names:
        near = difflib.get_close_matches(str(metric), names, 1)
        raise CourseError(f"The log has no {metric!r}; it has {_listed(names)}."
                          f"{f' Did you mean {near[0]!r}?' if near else ''} `reward_curves(log)` lists its rewards.")
    values = log[metric]
    if isinstance(values, pd.DataFrame):
        raise CourseError(f"The log has {values.shape[1]} columns {metric!r}; keep one of them.")
    numbers = _numbers(values, f"the log's column {metric!r}").dropna()
    if numbers.empty:
        raise CourseError(f"The log's column {metric!r} holds no number in its {len(values)} rows: choose another, "
                          "`reward_curves(log)` lists the rewards.")
    return numbers


def _csv_table(path: Path) -> pd.DataFrame:
    """Return a CSV log as a table, after a look at its form: pandas would fill up short rows and shift long ones."""
    import pandas as pd

    text = _text(path)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise _damaged(path, error) from None
    if not rows:
        raise CourseError(f"The log in {_name(path.parent)!r} is empty: {LOG_FILE} has no row, so no step has been "
                          "finished yet; run the training first.")
    header = rows[0]
    other = re.search(r"[;\t|]", header[0]) if len(header) == 1 else None
    if other:
        raise CourseError(f"{_called(path)} separates its columns by {other[0]!r}, as a spreadsheet saves it, where "
                          f"commas were expected: {COPY_AGAIN}.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CourseError(f"{_called(path)} has the column {twice[0]!r} more than once: keep one of them.")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            which = "last row" if number == len(rows) else f"row {number}"
            raise CourseError(f"The {which} of {_called(path)} has {len(row)} of the {len(header)} fields of its "
                              f"header, so the file was cut or changed: {COPY_AGAIN}, or remove that row.")
    if len(rows) == 1 and "step" in header:
        raise CourseError(f"The log in {_name(path.parent)!r} is empty: {LOG_FILE} has its header only, so no step has "
                          "been finished yet; run the training first.")
    try:
        return pd.read_csv(io.StringIO(text), index_col=False)
    except pd.errors.ParserError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CourseError:
    return CourseError(f"{_called(path)} is damaged ({' '.join(str(error).split())}): rows of numbers between commas "
                       f"were expected; {COPY_AGAIN}.")


def _state_table(path: Path) -> pd.DataFrame:
    """Return the steps of a TRL checkpoint; the closing summary and evaluations have no reward and are left out."""
    import pandas as pd

    state = _json_object(path)
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise CourseError(f"{_called(path)} has no list 'log_history' of steps (it has {_listed(state)}): give a "
                          "checkpoint folder that TRL has written.")
    rows = [row for row in history if any(name == "reward" or REWARD_COLUMN.fullmatch(name) for name in row)]
    return pd.DataFrame(rows or history)  # without any reward, `_checked` tells what there is instead


def _checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a table as a log: rewards, whole steps, each once, in order, and numbers where numbers belong."""
    names = list(table.columns)
    if not len(table):
        raise CourseError(f"The log in {_name(path.parent)!r} is empty: {path.name} has no step yet; run the training "
                          "first.")
    if "step" not in names:
        raise CourseError(f"The log in {_name(path.parent)!r} has no column 'step'; {path.name} has {_listed(names)}. "
                          f"{COPY_AGAIN.capitalize()}.")
    if not any(name == "reward" or REWARD_COLUMN.fullmatch(name) for name in names):
        raise CourseError(f"{_called(path)} has {len(table)} rows without a reward (it has {_listed(names)}), as "
                          "supervised training (SFT) leaves them; the log of a GRPO run was expected, with 'reward' "
                          "or 'rewards/<name>/mean': give the folder of such a run.")
    for name in names:
        place = f"the column {name!r} of {_called(path)}"
        if name in ("step", *METRICS) or REWARD_COLUMN.fullmatch(name) or _some_number(table[name]):
            table[name] = _numbers(table[name], place)  # a column of nothing but text, such as a remark, stays
    steps = table["step"]
    odd = steps[~((steps % 1 == 0) & steps.between(0, 2**53))]  # NaN and infinity too
    if len(odd):
        raise CourseError(f"{_called(path)} has the step {odd.iloc[0]:g} in row {odd.index[0] + 1}, where whole "
                          f"numbers from 0 on were expected: {COPY_AGAIN}.")
    again = steps[steps.duplicated()]
    if len(again):
        raise CourseError(f"{_called(path)} has step {int(again.iloc[0])} more than once, as if two runs had written "
                          "into one folder: keep the rows of one run, or make the run again in a folder of its own.")
    table["step"] = steps.astype("int64")
    return table.set_index("step").sort_index(kind="stable")


def _some_number(values: pd.Series) -> bool:
    import pandas as pd

    return bool(pd.to_numeric(values.astype(str), errors="coerce").notna().any())


def _numbers(values: pd.Series, place: str) -> pd.Series:
    """Return a column as numbers; text there is an error, a gap is not."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return values
    numbers = pd.to_numeric(values.astype(str), errors="coerce")
    wrong = numbers.isna() & values.notna() & (values.astype(str).str.strip().str.lower() != "nan")
    text = values[wrong]
    if len(text):
        shown, row = " ".join(str(text.iloc[0]).split())[:40], int(wrong.to_numpy().argmax()) + 1
        raise CourseError(f"{place[0].upper()}{place[1:]} holds {shown!r} in row {row}, where numbers were expected: "
                          f"{COPY_AGAIN}.")
    return numbers


def _table(log: Any) -> pd.DataFrame:
    import pandas as pd

    if not isinstance(log, pd.DataFrame):
        raise CourseError(f"A log is a table, as read_log(folder) returns it, not {type(log).__name__}.")
    return log


def _whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CourseError(f"{name} must be a whole number of at least 1, not {value!r}.")


def _existing(folder: Any) -> Path:
    """Return the folder as a path, once it is known to be one."""
    try:
        path = Path(folder)
        there = path.exists()
    except (TypeError, ValueError, OSError):
        raise CourseError(f"{str(folder)[:80]!r} cannot be the name of a folder: give a run folder, such as "
                          "runs/riddles.") from None
    if there and not path.is_dir():
        raise CourseError(f"{path.name!r} is a file: give the folder that holds it, {_name(path.parent)!r}.")
    if not there:
        raise CourseError(f"There is no folder {path.name!r} to read a run from: run the training notebook that writes "
                          "it first, or correct the name.")
    return path


def _json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or say what is wrong with it."""
    try:
        record = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CourseError):
            raise
        what = getattr(error, "msg", type(error).__name__)
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        state = "is empty" if not path.stat().st_size else f"is no whole JSON ({what}{where})"
        raise CourseError(f"{_called(path)} {state}, where a JSON object was expected: {COPY_AGAIN}.") from None
    if not isinstance(record, dict):
        raise CourseError(f"{_called(path)} holds a JSON {type(record).__name__}, where an object was expected: "
                          f"{COPY_AGAIN}.")
    return record


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # an editor may have put a byte-order mark in front
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise CourseError(f"{_called(path)} cannot be read ({error.strerror}): check that it is a file and that you "
                          "may read it.") from None
    if "\0" in text:
        raise CourseError(f"{_called(path)} is no UTF-8 text, where a text file was expected: {COPY_AGAIN}.")
    return text


def _called(path: Path) -> str:
    return f"{path.name} in {_name(path.parent)!r}"


def _name(folder: Path) -> str:
    return folder.name or folder.resolve().name


def _listed(names: Iterable[Any], most: int = 30) -> str:
    names = [str(name)[:60] for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"
