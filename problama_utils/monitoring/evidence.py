"""A log as the diagnosis reads it: numbers only, gaps dropped, the first third of the steps against the last.

A change counts when it exceeds two standard errors. That is one run with one seed: enough to say what to look at, not
enough to claim that training helps (`evaluation.uncertainty` is for claims).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# TRL's names of the metrics that a diagnosis reads.
TOTAL, KL, CLIPPED, LENGTH = "reward", "kl", "completions/clipped_ratio", "completions/mean_length"
ALL_EQUAL, GRADIENT, RATE, LOSS = "frac_reward_zero_std", "grad_norm", "learning_rate", "loss"
LONGEST, LONGEST_ENDED, ENTROPY = "completions/max_length", "completions/max_terminated_length", "entropy"
RIGHT, BRIEF, FORM = (f"rewards/{name}_reward/mean" for name in ("correct_answer", "short_response", "soft_format"))
METRICS = (TOTAL, KL, CLIPPED, LENGTH, ALL_EQUAL, GRADIENT, RATE, LOSS, LONGEST, LONGEST_ENDED, ENTROPY, RIGHT, BRIEF,
           FORM)

STANDARD_ERRORS = 2.0  # the course's rule for every claim
SMALLEST_CHANGE = 0.02  # reward; one completion in 25 that gains its tags (0.5). Less moves nobody's curve
KL_MEASURABLE = 1e-6  # nats per token; below it loss / KL is rounding


@dataclass(frozen=True)
class Change:
    """Mean of a metric in the first and the last third of its steps, and the standard error of their difference."""

    first: float
    last: float
    error: float

    def _exceeds(self, difference: float) -> bool:
        return difference > max(STANDARD_ERRORS * self.error, SMALLEST_CHANGE)

    @property
    def risen(self) -> bool:
        return self._exceeds(self.last - self.first)

    @property
    def fallen(self) -> bool:
        return self._exceeds(self.first - self.last)

    def __str__(self) -> str:
        return f"{self.first:.3g} → {self.last:.3g}"


@dataclass(frozen=True)
class Evidence:
    """A log as the checks read it: numbers only, gaps dropped, with the settings that the log does not hold."""

    log: pd.DataFrame  # see `numbers_only`
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the run, those that are known
    chance: float | None = None  # share of answers that guessing gets right

    def values(self, metric: str) -> pd.Series:
        """Return the finite values of a metric; empty where the log has none."""
        import numpy as np
        import pandas as pd

        if metric not in self.log:
            return pd.Series(dtype=float)
        return self.log[metric].replace([np.inf, -np.inf], np.nan).dropna()

    def setting(self, name: str, default: float) -> float:
        """Return a number from the settings; the default where it is unknown or no number."""
        value = self.settings.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300:
            return default
        return float(value)

    def thirds(self, metric: str) -> tuple[pd.Series, pd.Series]:
        """Return the first and the last third of a metric, of at least 3 steps where there are as many."""
        column = self.values(metric)
        size = max(len(column) // 3, min(3, len(column)))
        return column.head(size), column.tail(size)

    def change(self, metric: str) -> Change:
        """Return first and last third with the Welch standard error of the difference."""
        first, last = self.thirds(metric)
        error = (first.var() / max(len(first), 1) + last.var() / max(len(last), 1)) ** 0.5
        return Change(float(first.mean()), float(last.mean()), float(error))

    def late(self, metric: str) -> float:
        """Return the median of the last third: one odd step does not move it."""
        return float(self.thirds(metric)[1].median())

    def correlation(self, one: str, other: str) -> float:
        """Return Pearson's correlation of two metrics over the steps; NaN where one is missing or constant."""
        import numpy as np

        if not {one, other} <= set(self.log.columns):
            return float("nan")
        both = self.log[[one, other]].replace([np.inf, -np.inf], np.nan)
        with np.errstate(all="ignore"):
            return float(both[one].corr(both[other], min_periods=3))

    @cached_property
    def learns(self) -> bool:
        """Return whether the total reward has risen."""
        return self.change(TOTAL).risen

    @property
    def reach(self) -> float:
        """Return the sum of the learning rates: about as far as Adam can have moved one weight."""
        return float(self.values(RATE).sum()) if len(self.values(RATE)) else float("nan")

    @cached_property
    def beta(self) -> float:
        """Return the KL weight: from the settings, else read off the log. At ratio 1 the loss is beta · KL, since the
        advantages of a group sum to 0."""
        known = self.setting("beta", float("nan"))
        if known == known or not {KL, LOSS} <= set(self.log.columns):
            return known
        moved = self.log[self.log[KL] > KL_MEASURABLE]
        return float((moved[LOSS] / moved[KL]).median())

    def unmendable(self, metric: str) -> Any:
        """Return the first step from which a metric stopped being a number, or None.

        A gap that ends is a gap. NaN weights never heal: NaN up to the last row, or any infinity, means they broke.
        """
        import numpy as np

        if metric not in self.log or not len(self.log):
            return None
        column = self.log[metric].to_numpy()
        never_again = ~np.logical_or.accumulate(np.isfinite(column)[::-1])[::-1]
        broken = np.isinf(column) | never_again
        return self.log.index[broken.argmax()] if broken.any() else None


def numbers_only(log: pd.DataFrame) -> pd.DataFrame:
    """Return the metrics of a log that a diagnosis reads, as floats; what is no number becomes a gap."""
    import pandas as pd

    once = log.loc[:, ~log.columns.duplicated()]
    once = once.set_index("step") if "step" in once else once
    known = once[[name for name in METRICS if name in once]]
    return known.apply(lambda column: pd.to_numeric(column.astype(str), errors="coerce").astype(float))
