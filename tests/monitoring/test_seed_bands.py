"""Bands over seeds: hand-computed, refused where they mean nothing, and drawn with what a reader needs."""

import matplotlib
import pandas as pd
import pytest

from problama_utils import CourseError
from problama_utils.monitoring.bands import band, draw_band, shipped_runs

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


@pytest.mark.parametrize("curves", [[["a"], ["b"]], [[1.0], [object()]], [[[1.0]], [[1.0, 2.0]]], [["1,5"], [2.0]]])
def test_a_band_of_what_is_no_number_is_refused(curves):
    with pytest.raises(CourseError, match="plain numbers|one length"):
        band(curves)


@pytest.mark.parametrize(("logs", "metric", "words"), [
    ([pd.DataFrame({"reward": [1.0, 2.0]}, index=[1, 2]), pd.DataFrame({"reward": [1.0, 2.0]}, index=[2, 3])],
     "reward", "the same steps"),
    ([pd.DataFrame({"reward": [1.0, 2.0]}), pd.DataFrame({"reward": [1.0]})], "reward", "the same steps"),
    ([pd.DataFrame({"reward": [1.0]})], "reward", "at least two"), ([], "reward", "at least two"),
    ([pd.DataFrame({"reward": [1.0]})] * 2, "kl", "has no 'kl'"),
    ([pd.DataFrame({"reward": [1.0]}), pd.DataFrame({"loss": [1.0]})], "reward", "it has loss"),
    ([pd.DataFrame({"reward": [1.0]}), pd.DataFrame({"reward": ["x"]})], "reward", "'x' in row 1"),
    ([pd.DataFrame({"reward": [1.0]}), "runs/riddles-2"], "reward", "read_log"),
])  # fmt: skip
def test_logs_that_have_no_common_band_are_refused_and_nothing_is_drawn(logs, metric, words):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    with pytest.raises(CourseError, match=words):
        draw_band(ax, logs, metric)
    assert not ax.lines
    plt.close("all")


def test_shipped_runs_are_those_that_a_seed_names(tmp_path, monkeypatch):
    names = ["riddles-10", "riddles-2", "riddles-best", "riddles-2-old", "riddles-", "riddles-x-3", "piqa-1"]
    for name in names:
        (tmp_path / "assets" / "runs" / name).mkdir(parents=True)
        (tmp_path / "assets" / "runs" / name / "log.csv").write_text("step,reward\n1,2\n")
    monkeypatch.setattr("problama_utils.monitoring.bands.course_root", lambda: tmp_path)
    assert [folder.name for folder in shipped_runs("riddles")] == ["riddles-2", "riddles-10"]
    for task in ("*", "[rp]iddles", "", "riddles-x-3"):
        with pytest.raises(CourseError, match="No runs of"):
            shipped_runs(task)


def test_every_task_ships_at_least_four_seeds_of_one_set_up():
    from problama_utils.monitoring.curves import read_run

    for task in ("riddles", "piqa"):
        records = [read_run(folder) for folder in shipped_runs(task)]
        assert len({record["seed"] for record in records}) >= 4
        assert len({str(record["profile"]) for record in records}) == 1


def test_a_task_without_runs_names_the_command_that_makes_them():
    with pytest.raises(CourseError, match="learning.py --remake"):
        shipped_runs("chess")
