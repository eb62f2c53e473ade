"""How sure a measured share, or a difference of two, can be. Standard library and numpy only.

    one share                               `wilson_interval`, `counts_giving` (can the figure be a count at all?)
    two policies, the same Q questions      `gains_and_losses`, `mcnemar`
    several training seeds, one number each `standard_error`, `difference_over_seeds`
    S seeds × Q questions                   `two_level_interval`: would other seeds *and* other questions agree?

A share is a fraction of 1, never a percentage; S counts training seeds, Q questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval around it; `se` is its standard error in the same unit."""

    estimate: float
    low: float
    high: float
    se: float

    @property
    def ratio(self) -> float:
        """The estimate in standard errors; ± inf where nothing varied, 0 where nothing differed either."""
        return self.estimate / self.se if self.se else math.copysign(math.inf, self.estimate) if self.estimate else 0.0

    def __str__(self) -> str:
        return f"{self.estimate:+.3f} ({self.low:+.3f} to {self.high:+.3f}, SE {self.se:.3f})"


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval for a share of `right` out of `n`.

    Unlike share ± z·SE it stays inside [0, 1] and keeps its coverage near 0 and 1, where small models live.
    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    Args:
        right: successes, 0 … n.
        n: trials, at least 1.
        z: normal quantile; 1.96 gives 95 %.

    Raises:
        ValueError: `n` < 1 or `right` outside 0 … n.

    >>> low, high = wilson_interval(774, 1172)
    >>> f"{low:.3f} to {high:.3f}"
    '0.633 to 0.687'
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"right = {right} of n = {n}: expected n of at least 1 and 0 ≤ right ≤ n.")
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding may step over the edge


def standard_error(values: list[float]) -> float:
    """Return the standard error of the mean of independent values (unbiased deviation over √n).

    >>> round(standard_error([1.0, 2.0, 3.0, 4.0]), 4)
    0.6455
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} value(s) have no standard error: at least 2 are needed.")
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def counts_giving(percent: float, n: int, decimals: int = 2) -> list[int]:
    """Return every count k for which k of n, as a percentage rounded to `decimals`, reads `percent`.

    An empty list means that no number of right answers out of n can have produced the figure.

    >>> counts_giving(66.04, 1172), counts_giving(71.20, 1172)
    ([774], [])
    """
    near = percent / 100 * n
    candidates = range(max(0, math.floor(near) - 1), min(n, math.ceil(near) + 1) + 1)
    return [k for k in candidates if round(100 * k / n, decimals) == round(percent, decimals)]


def gains_and_losses(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """Return on how many of the same Q questions the verdict went from wrong to right, and from right to wrong.

    >>> gains_and_losses([True, False, False, True], [True, True, True, False])
    (2, 1)
    """
    was, now = np.asarray(before), np.asarray(after)
    if was.shape != now.shape or was.ndim != 1 or was.dtype != bool or now.dtype != bool:
        raise ValueError(f"verdicts of shape {was.shape} ({was.dtype}) and {now.shape} ({now.dtype}): expected two "
                         "lists of True and False, of one length and in the same order of questions.")
    return int((~was & now).sum()), int((was & ~now).sum())


def mcnemar(gains: int, losses: int) -> float:
    """Return the exact two-sided probability of a split of the changed questions at least this uneven.

    With n = gains + losses and no difference between the policies, each change is a toss of a fair coin:
    p = min(1, 2 · Σ_{k ≥ max(gains, losses)} C(n, k) / 2ⁿ). Questions on which the two agree carry no information.
    Source: McNemar (1947), "Note on the sampling error of the difference between correlated proportions", exact form.

    >>> round(mcnemar(8, 2), 3), mcnemar(0, 0), mcnemar(*gains_and_losses([True, False], [True, True]))
    (0.109, 1.0, 1.0)
    """
    if gains < 0 or losses < 0:
        raise ValueError(f"gains = {gains}, losses = {losses}: both are counts of questions, 0 or more.")
    n = gains + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(max(gains, losses), n + 1)) / 2**n) if n else 1.0


def difference_over_seeds(gaps: Sequence[float]) -> Interval:
    """Return the mean difference over training seeds, its SE and Student's 95 % interval; `.ratio` counts the SEs.

    The course asks for a ratio above 2 from at least 4 seeds; know what that rule is worth: with 4 seeds and no
    effect, 14 % of ratios lie outside ± 2 (7 % on either side), so the interval, which knows that a deviation of 4
    values is itself uncertain, is wider: ± 3.18 SE.

    Args:
        gaps: after − before of each seed, at least 2 (of an accuracy, a mean reward).

    >>> gain = difference_over_seeds([0.10, 0.11, 0.07, 0.12])
    >>> f"{gain.estimate:.3f}, {gain.ratio:.1f} standard errors, {gain.low:.3f} to {gain.high:.3f}"
    '0.100, 9.3 standard errors, 0.066 to 0.134'
    """
    estimate, se = float(np.mean(gaps)), standard_error(gaps)
    half = student_quantile(0.975, len(gaps) - 1) * se
    return Interval(estimate, estimate - half, estimate + half, se)


def two_level_interval(right_SQ: np.ndarray, other_SQ: np.ndarray | None = None) -> Interval:
    """Return a mean accuracy, or a difference of two, with a 95 % interval over seeds *and* questions.

    Seeds and questions are crossed random effects: score of seed s on question q = μ + a_s + b_q + e_sq, and for two
    policies b_q is the question's own difference, because both answered the same questions. SE² sums three parts:

        seeds      σ²_a / S, for either policy; σ²_a = (MS_seeds − MS_rest) / Q, 0 where that is negative
        questions  σ²_b / Q, 0 where the estimate is negative
        rest       σ²_e / (S·Q), for either policy; within one run and question it cannot be told from sampling noise

    MS are the mean squares of the two-way analysis of variance without replication. A matrix of one row is a policy
    without seeds (the base model, greedily decoded): it adds nothing for seeds, and its rest counts with questions.
    The quantile is Student's with Satterthwaite's degrees of freedom: few seeds give a wide interval. (A bootstrap
    over both levels knows no degrees: 83 % instead of 95 % where 4 seeds spread by 14 points, see the tests.)
    Where seeds do not differ at all it is a little too wide, 97 %, since a negative part counts as 0.
    Sources: Cornfield & Tukey (1956), "Average values of mean squares in factorials"; Satterthwaite (1946).

    Args:
        right_SQ: S × Q verdicts or scores in [0, 1], one row per training seed, at least 2 questions.
        other_SQ: the policy to subtract, S′ × Q over the same questions; its seeds are independent of the first's.
            Where row s of both is the same seed (before and after), subtract the matrices yourself and pass one.

    >>> tuned = np.array([[1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1], [1, 0, 1, 0, 1, 1]])
    >>> print(two_level_interval(tuned, np.array([[1, 0, 0, 0, 1, 0]])))
    +0.375 (-0.056 to +0.806, SE 0.168)
    """
    groups = [np.asarray(group, dtype=float) for group in (right_SQ, other_SQ) if group is not None]
    for group in groups:
        if group.ndim != 2 or group.shape[0] < 1 or group.shape[1] < 2 or group.shape[1] != groups[0].shape[1]:
            raise ValueError(f"scores of shape {[g.shape for g in groups]}: expected (seeds, questions), one row per "
                             "seed, at least 2 questions, the same ones for both policies.")
    n = groups[0].shape[1]
    level_Q = groups[0].mean(0) - (groups[1].mean(0) if len(groups) == 2 else 0.0)
    parts = [level_Q.var(ddof=1) / n]  # questions, with everything in which seeds differ on single questions
    degrees = [n - 1.0]
    rest_of_all = 0.0
    for group in groups:
        seeds, means_S = group.shape[0], group.mean(1)
        if seeds == 1:
            continue
        left = group - means_S[:, None] - group.mean(0) + group.mean()
        rest = (left**2).sum() / ((seeds - 1) * (n - 1)) / (seeds * n)
        between = means_S.var(ddof=1) / seeds
        rest_of_all += rest
        if between > rest:
            parts += [between, -rest]
            degrees += [seeds - 1.0, (seeds - 1.0) * (n - 1)]
    parts[0] = max(parts[0], rest_of_all)  # below it σ²_b would be negative
    estimate, se = float(level_Q.mean()), math.sqrt(max(0.0, sum(parts)))
    half = student_quantile(0.975, _satterthwaite(parts, degrees)) * se
    return Interval(estimate, estimate - half, estimate + half, se)


@lru_cache
def student_quantile(probability: float, degrees: float) -> float:
    """Return Student's t quantile for a probability in (0.5, 1) and any degrees of freedom from 1.

    With t = √ν · tan θ the density becomes cos^(ν−1) θ, smooth on a bounded range, so that a sum over a grid is enough.

    >>> round(student_quantile(0.975, 3), 3)
    3.182
    """
    if degrees > 1e4:
        return NormalDist().inv_cdf(probability)
    angles = np.linspace(0.0, min(math.pi / 2, 12 / math.sqrt(degrees)), 4001)
    density = np.cos(angles).clip(0.0) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(np.interp(2 * probability - 1, mass / mass[-1], angles))


def _satterthwaite(parts: Sequence[float], degrees: Sequence[float]) -> float:
    """Degrees of freedom of a sum of independent variance estimates; never below those of a single comparison."""
    spread = sum(part**2 / df for part, df in zip(parts, degrees, strict=True))
    return max(1.0, float(sum(parts) ** 2 / spread)) if spread else math.inf
