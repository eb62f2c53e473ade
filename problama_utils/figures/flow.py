"""How answers to the same questions change between two policies: right and wrong before and after, as ribbons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

GAP = 0.06  # between the right and the wrong block, as a share of all questions
# (right before, right after): grey, hatch and name; only the last two carry information
STYLE = {(True, True): ("0.85", "", ""), (False, False): ("0.95", "", ""), (False, True): ("0.55", "///", "gains"),
         (True, False): ("0.35", "\\\\\\", "losses")}


def flow_counts(before: pd.Series, after: pd.Series) -> dict[tuple[bool, bool], int]:
    """Return how many questions went from `before` to `after`, by (right before, right after).

    Raises:
        ValueError: the two do not hold verdicts on the same questions.
    """
    if set(before.index) != set(after.index):
        raise ValueError("The two policies were not asked the same questions: nothing can be said about changes.")
    after = after.reindex(before.index)
    return {(a, b): int(((before == a) & (after == b)).sum()) for a in (True, False) for b in (True, False)}


def draw_flow(ax: Axes, before: pd.Series, after: pd.Series, *, names: tuple[str, str]) -> None:
    """Draw the four ribbons from the verdicts of one policy (left) to those of another (right).

    `before` and `after` hold verdicts (bool) by question id, over the same questions.
    """
    counts = flow_counts(before, after)
    total = sum(counts.values())
    left, right = _starts(counts, total, side=0), _starts(counts, total, side=1)
    x = np.linspace(0, 1, 60)
    bend = x**2 * (3 - 2 * x)
    for change, count in counts.items():
        if not count:
            continue
        low = left[change] + (right[change] - left[change]) * bend
        grey, hatch, name = STYLE[change]
        ax.fill_between(x, low, low + count / total, facecolor=grey, hatch=hatch, edgecolor="black", linewidth=0.5,
                        label=f"{name}: {count}" if name else None)
    for side, (name, verdicts) in enumerate(zip(names, (before, after), strict=True)):
        ax.text(side, 1.03 + GAP, f"{name}\n{int(verdicts.sum())} right", ha=("left", "right")[side], fontsize=9)
    ax.set(ylim=(0, 1.28 + GAP), xticks=[], ylabel=f"share of {total} questions, right on top")
    ax.set_yticks([0, 0.5, 1])
    if counts[(False, True)] or counts[(True, False)]:
        ax.legend(loc="lower center", fontsize=9)


def _starts(counts: dict[tuple[bool, bool], int], total: int, side: int) -> dict[tuple[bool, bool], float]:
    """Return where each ribbon begins on one side, stacked from the top: the right ones, a gap, the wrong ones."""
    top, starts = 1.0 + GAP, {}
    for change in sorted(counts, key=lambda change: (change[side], change[1 - side]), reverse=True):
        top -= counts[change] / total
        starts[change] = top if change[side] else top - GAP
    return starts
