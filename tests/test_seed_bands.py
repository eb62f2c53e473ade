"""Bands over seeds: hand-computed, refused where they mean nothing, and drawn with what a reader needs."""

import matplotlib
import pandas as pd
import pytest

from problama_utils.errors import CourseError
from problama_utils.seed_bands import band, draw_band, shipped_runs

matplotlib.use("Agg")


def test_two_seeds_by_hand():
    mean, half = band([[0.0, 1.0], [2.0, 1.0]])  # deviation √2, over √2 seeds, twice
    assert mean.tolist() == [1.0, 1.0] and half.tolist() == pytest.approx([2.0, 0.0])


@pytest.mark.parametrize("curves", [[], [[1.0]], [[1.0, 2.0], [1.0]]])
def test_one_curve_or_unequal_ones_have_no_band(curves):
    with pytest.raises(CourseError, match="at least two curves of one length"):
        band(curves)


def test_a_drawn_band_has_axes_legend_and_every_seed():
    import matplotlib.pyplot as plt

    logs = [pd.DataFrame({"reward": [0.0, 1.0, seed]}, index=[1, 2, 3]) for seed in (1.0, 2.0, 3.0)]
    _, ax = plt.subplots()
    draw_band(ax, logs, "reward", window=1)
    assert ax.get_xlabel() == "global step" and ax.get_ylabel() == "reward" and len(ax.lines) == 3 + 1 + 1
    assert ax.lines[3].get_ydata().tolist() == [0.0, 1.0, 2.0]
    plt.close("all")


def test_every_task_ships_at_least_four_seeds_of_one_set_up():
    from problama_utils.monitoring import read_run

    for task in ("riddles", "piqa"):
        records = [read_run(folder) for folder in shipped_runs(task)]
        assert len({record["seed"] for record in records}) >= 4
        assert len({str(record["profile"]) for record in records}) == 1


def test_a_task_without_runs_names_the_command_that_makes_them():
    with pytest.raises(CourseError, match="learning.py --remake"):
        shipped_runs("chess")
