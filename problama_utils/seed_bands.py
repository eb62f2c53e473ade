"""Several runs of one set-up that differ in their seed only: where they are, their mean and its band.

A band of two standard errors says how well the *mean over seeds* is known. It is not the range of single runs, which is
wider, and it says nothing about other set-ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from problama_utils.config import course_root
from problama_utils.errors import CourseError
from problama_utils.monitoring import CEILINGS, SLIDE_CURVES, smooth
from problama_utils.run_folder import LOG_FILE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def shipped_runs(task: str) -> list[Path]:
    """Return the folders of the runs of a task that the course ships, one per seed, by seed.

    Raises:
        CourseError: there are none.
    """
    found = [path.parent for path in (course_root() / "assets" / "runs").glob(f"{task}-*/{LOG_FILE}")]
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
        CourseError: fewer than two curves, or of different lengths.

    >>> mean, half = band([[0.0, 1.0], [2.0, 1.0]])
    >>> mean.tolist(), half.tolist()
    ([1.0, 1.0], [2.0, 0.0])
    """
    lengths = {len(curve) for curve in curves}
    if len(curves) < 2 or len(lengths) != 1:
        raise CourseError(f"A band needs at least two curves of one length; these are {len(curves)}, with "
                          f"{', '.join(map(str, sorted(lengths)))} steps.")
    values = np.array(curves, dtype=float)
    return values.mean(0), 2 * values.std(0, ddof=1) / np.sqrt(len(values))


def draw_band(ax: Axes, logs: Sequence[pd.DataFrame], metric: str, *, window: int = 5, title: str = "",
              unit: str = "reward") -> None:
    """Draw one metric over the global step for several seeds: each smoothed run thin, mean and band on top."""
    curves = [smooth(log[metric], window) for log in logs]
    for curve in curves:
        ax.plot(curve.index, curve, color="0.65", linewidth=0.8)
    mean, half = band([curve.to_list() for curve in curves])
    ax.plot(curves[0].index, mean, color="black", label=f"mean of {len(curves)} seeds")
    ax.fill_between(curves[0].index, mean - half, mean + half, color="0.8", hatch="///", edgecolor="0.6", linewidth=0,
                    label="± 2 standard errors", alpha=0.6)
    ax.set(title=title or SLIDE_CURVES.get(metric, metric), xlabel="global step", ylabel=unit)
    ax.grid(alpha=0.3)
    if metric in CEILINGS:
        ax.axhline(CEILINGS[metric], linestyle=":", color="black", linewidth=1)
        ax.set_ylim(-0.04 * CEILINGS[metric], 1.08 * CEILINGS[metric])
