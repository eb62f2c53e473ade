"""The record of a run, read back as a table, diagnosed, and drawn as the slides' curves. `run_folder` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils.diagnosis import Diagnosis, find_causes
from problama_utils.errors import CourseError
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


def read_log(folder: str | Path) -> pd.DataFrame:
    """Return the log of a run, indexed by `step`.

    Args:
        folder: a run folder with `log.csv`, or a TRL checkpoint folder with `trainer_state.json`.

    Raises:
        CourseError: there is no log, or it is empty, or it has no step column.
    """
    import pandas as pd

    folder = Path(folder)
    if (folder / LOG_FILE).exists():
        try:
            table = pd.read_csv(folder / LOG_FILE)
        except pd.errors.EmptyDataError:
            raise CourseError(f"The log in {folder.name!r} is empty: no step has been finished yet.") from None
    elif (folder / "trainer_state.json").exists():
        history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        table = pd.DataFrame([row for row in history if "reward" in row])
    else:
        raise CourseError(f"There is no log in {folder.name!r} (neither {LOG_FILE} nor trainer_state.json): run the "
                          "training notebook that writes it first.")
    if "step" not in table:
        raise CourseError(f"The log in {folder.name!r} has no column 'step'; it has {', '.join(table.columns)}.")
    return table.set_index("step")


def read_run(folder: str | Path) -> dict[str, Any]:
    """Return the description of a run (`run.json`).

    Raises:
        CourseError: there is none.
    """
    path = Path(folder) / RUN_FILE
    if not path.exists():
        raise CourseError(f"There is no {RUN_FILE} in {Path(folder).name!r}: the training has not finished.")
    return json.loads(path.read_text(encoding="utf-8"))


def diagnose(log: pd.DataFrame | str | Path, settings: Any = None, *, chance: float | None = None) -> Diagnosis:
    """Name the cause of a flat or falling reward, with the evidence and the cure.

    Args:
        log: what `read_log` returns, or a folder that it reads. A run folder brings its settings and its chance level.
        settings: the `GRPOSettings` of the run, where they are known and not in the folder.
        chance: share of answers that guessing gets right, where it is known and not by the folder's task.

    Returns:
        A `Diagnosis`: print it, or ask its `verdict` and `findings`.

    Raises:
        CourseError: the folder has no log.
    """
    if isinstance(log, str | Path):
        record = _record_of(Path(log))
        task = record.get("task")
        settings = settings if settings is not None else (record.get("profile") or {}).get(task)
        chance = chance if chance is not None else CHANCE.get(task)
        log = read_log(log)
    return find_causes(log, settings, chance=chance)


def _record_of(folder: Path) -> dict[str, Any]:
    """Return what is known of a run, finished or not; nothing for a checkpoint of TRL."""
    for name in (RUN_FILE, PLAN_FILE):  # the plan stands there while a run lasts
        if (folder / name).exists():
            return json.loads((folder / name).read_text(encoding="utf-8"))
    return {}


def first_and_last(log: pd.DataFrame, metric: str, steps: int = 5) -> tuple[float, float]:
    """Return the mean of a metric over the first and over the last `steps` steps of a run."""
    column = log[metric].dropna()
    return float(column.head(steps).mean()), float(column.tail(steps).mean())


def smooth(values: pd.Series, window: int = 5) -> pd.Series:
    """Return the running mean over the last `window` steps; the first steps average what there is."""
    return values.rolling(window, min_periods=1).mean()


def draw_curve(
    ax: Axes, log: pd.DataFrame, metric: str, *, window: int = 5, title: str = "", unit: str = "reward"
) -> None:
    """Draw one metric over the global step: raw values as dots, their running mean as a line, its ceiling dotted."""
    values = log[metric].dropna()
    ax.plot(values.index, values, linestyle="none", marker=".", color="0.6", label="each step")
    ax.plot(values.index, smooth(values, window), color="black", label=f"mean of {window} steps")
    ax.set_title(title or SLIDE_CURVES.get(metric, metric))
    ax.set_xlabel("global step")
    ax.set_ylabel(unit)
    ax.grid(alpha=0.3)
    if metric in CEILINGS:
        ax.axhline(CEILINGS[metric], linestyle=":", color="black", linewidth=1)
        ax.set_ylim(-0.04 * CEILINGS[metric], 1.08 * CEILINGS[metric])
