"""Intervals held against scipy, simulation and the slides' own figures."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from problama_utils import uncertainty
from problama_utils.uncertainty import counts_giving, standard_error, wilson_interval


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (5, 10), (774, 1172), (1, 1)])
def test_wilson_agrees_with_scipy(right, n):
    reference = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, n, z=1.959963984540054) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_covers_the_truth_about_as_often_as_it_says():
    # 4,000 draws: the standard deviation of the coverage is 0.0034; 0.93 is more than four of them below 0.945.
    draws = np.random.default_rng(0).binomial(60, 0.25, size=4000)
    covered = np.mean([low <= 0.25 <= high for low, high in (wilson_interval(int(k), 60) for k in draws)])
    assert 0.93 <= covered <= 0.98


@given(st.integers(1, 400), st.data())
def test_wilson_stays_inside_zero_and_one_and_contains_the_share(n, data):
    right = data.draw(st.integers(0, n))
    low, high = wilson_interval(right, n)
    assert -1e-12 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1 + 1e-12


@pytest.mark.parametrize(("right", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(right, n):
    with pytest.raises(ValueError, match=f"right = {right}"):
        wilson_interval(right, n)


def test_the_slides_figures_that_are_fractions_of_1172_and_the_two_that_are_not():
    figures = (41.72, 66.04, 42.24, 50.46, 71.20)
    assert [counts_giving(value, 1172) for value in figures] == [[489], [774], [495], [], []]


@given(st.integers(1, 2000), st.data())
def test_a_count_is_found_from_its_own_percentage(n, data):
    k = data.draw(st.integers(0, n))
    assert k in counts_giving(round(100 * k / n, 2), n)


def test_standard_error_is_numpys_and_needs_two_values():
    values = [1.0, 4.0, 2.5, 2.0]
    assert standard_error(values) == pytest.approx(np.std(values, ddof=1) / 2)
    with pytest.raises(ValueError, match="at least 2"):
        standard_error([1.0])


def test_examples_in_the_docstrings_run():
    assert doctest.testmod(uncertainty).failed == 0
