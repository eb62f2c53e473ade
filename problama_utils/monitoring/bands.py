"""Several runs of one set-up that differ in their seed only: where they are, their mean and its band.

A band of two standard errors says how well the *mean over seeds* is known. It is not the range of single runs, which is
wider, and it says nothing about other set-ups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from problama_utils import CourseError
from problama_utils.config import course_root
from problama_utils.monitoring.curves import ceiling, column, label_curve, smooth
from problama_utils.monitoring.run_folder import LOG_FILE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def shipped_runs(task: str) -> list[Path]:
    """Return the folders of the runs of a task that the course ships, one per seed, by seed.

    Raises:
        CourseError: there are none.
    """
    runs = (course_root() / "assets" / "runs").glob(f"*/{LOG_FILE}")
    found = [path.parent for path in runs if re.fullmatch(re.escape(task) + r"-[0-9]+", path.parent.name)]
    if not found:
        raise CourseError(f"No runs of {task!r} in assets/runs: `python benchmarks/learning.py --remake assets/runs` "
                          "makes them.")
    return sorted(found, key=lambda folder: int(folder.name.rsplit("-", 1)[1]))


def band(curves: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return per step the mean over seeds and two standard errors of it.

    Args:
        curves: S seeds × N steps, S at least 2.

    Returns:
        `(mean, half_width)`, each of N values; half_width = 2 · s / √S with the unbiased deviation s.

    Raises:
        CourseError: fewer than two curves, of different lengths, or not of numbers.

    >>> mean, half = band([[0.0, 1.0], [2.0, 1.0]])
    >>> mean.tolist(), half.tolist()
    ([1.0, 1.0], [2.0, 0.0])
    """
    try:
        values = np.array([list(curve) for curve in curves], dtype=float)
    except (TypeError, ValueError):  # of different lengths, or no numbers
        values = np.empty(0)
    if values.ndim != 2 or len(values) < 2:
        raise CourseError("A band needs at least two curves of one length, each a list of numbers.")
    return values.mean(0), 2 * values.std(0, ddof=1) / np.sqrt(len(values))


def draw_band(ax: Axes, logs: Sequence[pd.DataFrame], metric: str, *, window: int = 5, title: str = "",
              unit: str = "reward") -> None:
    """Draw one metric over the global step for several seeds: each smoothed run thin, mean and band on top.

    Raises:
        CourseError: a log lacks the metric, or the logs have different steps, which a mean per step cannot mix.
    """
    curves = [smooth(column(log, metric), window) for log in logs]
    for number, curve in enumerate(curves[1:], start=2):
        if list(curve.index) != list(curves[0].index):
            raise CourseError(f"Log {number} has {metric!r} at other steps than log 1: a band needs the same steps.")
    mean, half = band([curve.to_list() for curve in curves])
    for curve in curves:
        ax.plot(curve.index, curve, color="0.65", linewidth=0.8)
    ax.plot(curves[0].index, mean, color="black", label=f"mean of {len(curves)} seeds")
    ax.fill_between(curves[0].index, mean - half, mean + half, color="0.8", hatch="///", edgecolor="0.6", linewidth=0,
                    label="± 2 standard errors", alpha=0.6)
    ceilings = {ceiling(log, metric) for log in logs}
    label_curve(ax, metric, ceilings.pop() if len(ceilings) == 1 else None, title=title, unit=unit)
