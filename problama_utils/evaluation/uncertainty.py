"""How sure a measured share, or a difference of two, can be. Standard library and numpy only.

    one share                               `wilson_interval`, `counts_giving` (can the figure be a count at all?)
    two policies, the same Q questions      `gains_and_losses`, `mcnemar` (a test), `paired_bootstrap` (an interval)
    several training seeds, one number each `standard_error`, `difference_over_seeds`
    S seeds × Q questions                   `two_level_interval`: would other seeds *and* other questions agree?
    before measuring                        `questions_needed`

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


@dataclass(frozen=True)
class TwoLevel(Interval):
    """An interval over seeds and questions, and where its variance comes from (three parts that sum to SE²)."""

    from_seeds: float
    from_questions: float
    from_rest: float  # seed × question: which question a seed gets right beyond its own and the question's level
    degrees: float  # of freedom, after Satterthwaite


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


def paired_bootstrap(before: Sequence[float], after: Sequence[float], *, seed: int, level: float = 0.95,
                     draws: int = 10_000) -> Interval:
    """Return the mean of after − before over the same Q questions, with a percentile bootstrap interval.

    Questions are drawn with replacement, each with both of its verdicts, `draws` times; the interval holds the
    middle `level` of the means. It answers "would other questions agree?" for these two policies; other training
    seeds need `two_level_interval`. With fewer than about ten changed questions it is too narrow: use `mcnemar`.
    Source: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", chapter 13.

    Args:
        before, after: Q verdicts or scores in [0, 1], in the same order of questions.
        seed: of the draws; the same seed gives the same interval.

    >>> paired_bootstrap([True] * 40 + [False] * 60, [True] * 70 + [False] * 30, seed=0).estimate
    0.3
    """
    was, now = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if was.shape != now.shape or was.ndim != 1 or len(was) < 2:
        raise ValueError(f"scores of shape {was.shape} and {now.shape}: expected two of one length, at least 2.")
    # Only how often each distinct difference is drawn matters: at most three distinct ones, where scores are verdicts.
    values, counts = np.unique(now - was, return_counts=True)
    picked = np.random.default_rng(seed).multinomial(len(was), counts / len(was), size=draws)
    means = picked @ values / len(was)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(now - was)), float(low), float(high), float(means.std(ddof=1)))


def difference_over_seeds(after: Sequence[float], before: Sequence[float] | None = None, *, paired: bool = False,
                          level: float = 0.95) -> Interval:
    """Return the difference of two means over training seeds, its SE and Student's interval; `.ratio` counts the SEs.

    Unpaired (Welch): SE² = s_a²/S_a + s_b²/S_b. Paired (one seed, before and after): the SE of the differences.
    One list alone is taken as the differences. The course asks for a ratio above 2 from at least 4 seeds; know what
    that rule is worth: with 4 paired seeds and no effect, 14 % of ratios lie outside ± 2 (7 % on either side), so the
    interval, which knows that a deviation of 4 values is itself uncertain, is wider: ± 3.18 SE.

    Args:
        after, before: one number per seed (an accuracy, a mean reward), in one unit.
        paired: value i of both lists belongs to the same seed.

    >>> gain = difference_over_seeds([0.50, 0.55, 0.45, 0.54], [0.40, 0.44, 0.38, 0.42], paired=True)
    >>> f"{gain.estimate:.3f}, {gain.ratio:.1f} standard errors, {gain.low:.3f} to {gain.high:.3f}"
    '0.100, 9.3 standard errors, 0.066 to 0.134'
    """
    lists = [list(after)] if before is None else [list(after), list(before)]
    if paired and before is not None:
        lists = [[new - old for new, old in zip(after, before, strict=True)]]
    parts = [standard_error(values) ** 2 for values in lists]
    estimate = float(np.mean(lists[0]) - (np.mean(lists[1]) if len(lists) == 2 else 0.0))
    degrees = _satterthwaite(parts, [len(values) - 1 for values in lists])
    se = math.sqrt(sum(parts))
    half = student_quantile((1 + level) / 2, degrees) * se
    return Interval(estimate, estimate - half, estimate + half, se)


def two_level_interval(right_SQ: np.ndarray, other_SQ: np.ndarray | None = None, *, level: float = 0.95) -> TwoLevel:
    """Return a mean accuracy, or a difference of two, with an interval over seeds *and* questions.

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
    across = [level_Q.var(ddof=1) / n]  # questions, with everything in which seeds differ on single questions
    degrees = [n - 1.0]
    from_rest = from_seeds = 0.0
    for group in groups:
        seeds, means_S = group.shape[0], group.mean(1)
        if seeds == 1:
            continue
        left = group - means_S[:, None] - group.mean(0) + group.mean()
        rest = (left**2).sum() / ((seeds - 1) * (n - 1)) / (seeds * n)
        between = means_S.var(ddof=1) / seeds
        from_rest += rest
        if between > rest:
            from_seeds += between - rest
            across += [between, -rest]
            degrees += [seeds - 1.0, (seeds - 1.0) * (n - 1)]
    if from_rest > across[0]:  # σ²_b would be negative
        across[0] = from_rest
    freedom, se = _satterthwaite(across, degrees), math.sqrt(max(0.0, sum(across)))
    estimate, half = float(level_Q.mean()), student_quantile((1 + level) / 2, freedom) * se
    return TwoLevel(estimate, estimate - half, estimate + half, se, float(from_seeds),
                    float(across[0] - from_rest), float(from_rest), freedom)


def questions_needed(p1: float, p2: float, *, power: float = 0.8, alpha: float = 0.05,
                     discordance: float | None = None) -> int:
    """Return how many questions show a difference from p1 to p2 with probability `power` in a two-sided test.

    Without `discordance` each policy gets questions of its own (the two-sample z test; n is per policy):
    n = (z_{1−α/2} √(2 p̄ (1 − p̄)) + z_power √(p1 (1 − p1) + p2 (1 − p2)))² / d², with d = |p1 − p2|.
    Source: Fleiss, Levin & Paik (2003), "Statistical Methods for Rates and Proportions", formula 4.14.

    With it, both answer the same questions and disagree on that share ψ of them; then the exact `mcnemar` decides:
    d √n − 1/√n = z_{1−α/2} √ψ + z_power √(ψ − d²), solved for n. Source: Connor (1987), "Sample size for testing
    differences in proportions for the paired-sample design"; the 1/√n is the continuity that the exact test costs.

    Args:
        p1, p2: the two accuracies, shares strictly between 0 and 1.
        discordance: share of questions with different verdicts, between |p1 − p2| and what p1 and p2 allow;
            (gains + losses) / Q of a pilot. Independent answers have p1 (1 − p2) + p2 (1 − p1).

    >>> questions_needed(0.58, 0.62), questions_needed(0.58, 0.62, discordance=0.10)
    (2354, 538)
    """
    gap = abs(p1 - p2)
    if not (0 < p1 < 1 and 0 < p2 < 1 and gap > 0 and 0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"p1 = {p1}, p2 = {p2}, power = {power}, alpha = {alpha}: expected shares between 0 and 1 and "
                         "two different accuracies; no number of questions shows a difference that is not there.")
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    if discordance is None:
        mean = (p1 + p2) / 2
        root = z_alpha * math.sqrt(2 * mean * (1 - mean)) + z_power * math.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
        return math.ceil((root / gap) ** 2)
    most = min(p1 + p2, 2 - p1 - p2)
    if not gap - 1e-12 <= discordance <= most + 1e-12:
        raise ValueError(f"discordance = {discordance}: accuracies of {p1} and {p2} disagree on between {gap:.3f} and "
                         f"{most:.3f} of the questions.")
    root = z_alpha * math.sqrt(discordance) + z_power * math.sqrt(max(0.0, discordance - gap**2))
    return math.ceil(((root + math.sqrt(root**2 + 4 * gap)) / (2 * gap)) ** 2)


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
