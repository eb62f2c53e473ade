"""A run's log, read back as a table, diagnosed, and drawn as the slides' curves. `monitoring.run_folder` writes it.

Everything here may meet a file that was cut, saved by a spreadsheet or written by another trainer. Such a file is
refused in one sentence: a curve drawn from half of it would be believed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.config import check_number
from problama_utils.monitoring.diagnosis import Diagnosis, find_causes
from problama_utils.monitoring.logs import (
    COPY_AGAIN,
    REWARD_COLUMN,
    STATE_FILE,
    called,
    checked,
    csv_table,
    existing,
    json_object,
    listed,
    name_of,
    numbers,
    state_table,
)
from problama_utils.monitoring.run_folder import LOG_FILE, PLAN_FILE, RUN_FILE
from problama_utils.rewards.slides import CORRECT, FORMAT, SHORT
from problama_utils.tasks.registry import TASKS

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

# The most each can be; a task of one's own says its `maxima`. Curves are drawn from 0 to here, so none looks too steep.
CEILINGS = dict(zip(SLIDE_CURVES, (CORRECT, SHORT, FORMAT, CORRECT + SHORT + FORMAT), strict=True))


def read_log(folder: str | Path) -> pd.DataFrame:
    """Return the log of a run, indexed by `step`, one row per step in their order.

    Args:
        folder: a run folder with `log.csv`, or a TRL checkpoint folder with `trainer_state.json`. The reward functions
            may have any names; see `reward_curves`.

    Raises:
        CourseError: there is no log, it is empty or damaged, has no rewards (supervised training), no step column, a
            step twice, or text among the numbers of a column.
    """
    folder = existing(folder)
    if (folder / LOG_FILE).exists():
        path = folder / LOG_FILE
        table = csv_table(path)
        table.attrs["maxima"] = _maxima(folder)
    elif (folder / STATE_FILE).exists():
        path = folder / STATE_FILE
        table = state_table(path)
    else:
        inner = sorted(state.parent.name for state in folder.glob(f"checkpoint-*/{STATE_FILE}"))
        cure = f"give its folder {inner[-1]!r}" if inner else "run the training notebook that writes it first"
        raise CourseError(f"There is no log in {name_of(folder)!r} (neither {LOG_FILE} nor {STATE_FILE}): {cure}.")
    return checked(table, path)


def read_run(folder: str | Path) -> dict[str, Any]:
    """Return the description of a run (`run.json`).

    Raises:
        CourseError: there is none, or it is damaged.
    """
    path = existing(folder) / RUN_FILE
    if not path.exists():
        raise CourseError(f"There is no {RUN_FILE} in {name_of(path.parent)!r}: the training has not finished.")
    return json_object(path)


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
        path, record = _record(existing(log))
        if path.exists():
            task, profile = record.get("task"), record.get("profile")
            named = isinstance(task, str)
            recorded = profile.get(task) if named and isinstance(profile, dict) else None
            if not named or (settings is None and not isinstance(recorded, dict)):
                raise CourseError(f"{called(path)} names no task with its settings in the profile (it has "
                                  f"{listed(record)}): {COPY_AGAIN}, or diagnose the log alone: "
                                  "diagnose(read_log(folder)).")
            known = TASKS.get(task)
            settings = recorded if settings is None else settings
            chance = record.get("chance", known.chance if known else None) if chance is None else chance
        log = read_log(log)
    return find_causes(_table(log), settings, chance=chance)


def _record(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that describes a run, finished or not, and what it holds; nothing for a checkpoint of TRL."""
    path = folder / (RUN_FILE if (folder / RUN_FILE).exists() else PLAN_FILE)
    return path, json_object(path) if path.exists() else {}


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
        raise CourseError(f"The log has no reward to draw: it has {listed(there)}, a GRPO log has 'reward' and "
                          "'rewards/<name>/mean'.")
    return curves


def _maxima(folder: Path) -> dict[str, float]:
    """Return metric → the most it can be, of a run of a task that says its own; nothing where its record does not."""
    try:
        _, record = _record(folder)
        named = zip(record.get("rewards", ()), record.get("maxima", ()), strict=False)
        return {f"rewards/{name}/mean": float(most) for name, most in named}
    except (TypeError, ValueError):  # a curve without its dotted line is still the curve
        return {}


def ceiling(log: pd.DataFrame, metric: str) -> float | None:
    """Return the most that a reward can be: the slides', or one of a task that says it; None where it is not known.

    The sum's is known only where that of every part is, and none is where the log itself goes beyond.
    """
    values = column(log, metric)
    known = CEILINGS | log.attrs.get("maxima", {})
    parts = [name for name in log.columns if isinstance(name, str) and REWARD_COLUMN.fullmatch(name)]
    most = known.get(metric)
    if metric == "reward" and parts:
        most = sum(known[name] for name in parts) if set(parts) <= set(known) else None
    return most if most is not None and values.between(-1e-6, most + 1e-6).all() else None


def first_and_last(log: pd.DataFrame, metric: str, steps: int = 5) -> tuple[float, float]:
    """Return the mean of a metric over the first and over the last `steps` steps of a run.

    Raises:
        CourseError: the log has no such metric, or no number in it.
    """
    values = column(log, metric)
    check_number("steps", steps, 1, 10**6, 5)
    return float(values.head(steps).mean()), float(values.tail(steps).mean())


def smooth(values: pd.Series, window: int = 5) -> pd.Series:
    """Return the running mean over the last `window` steps; the first steps average what there is."""
    check_number("window", window, 1, 10**6, 5)
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
    names = [name for name in _table(log).columns if isinstance(name, str)]
    if names.count(metric) != 1:
        raise CourseError(f"The log has no {metric!r}, or has it more than once; it has {listed(names)}.")
    found = numbers(log[metric], f"the log's column {metric!r}").dropna()
    if found.empty:
        raise CourseError(f"The log's column {metric!r} holds no number in its {len(log)} rows: choose another.")
    return found


def _table(log: Any) -> pd.DataFrame:
    import pandas as pd

    if not isinstance(log, pd.DataFrame):
        raise CourseError(f"A log is a table, as read_log(folder) returns it, not {type(log).__name__}.")
    return log
