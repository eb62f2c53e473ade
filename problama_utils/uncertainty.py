"""How sure a measured share can be. Standard library and numpy only, so that it can be read in one sitting."""

from __future__ import annotations

import math


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
