"""Writing and reading the record of a run."""

import json

import matplotlib
import pandas as pd
import pytest

from problama_utils.errors import CourseError
from problama_utils.monitoring import (
    CEILINGS,
    SLIDE_CURVES,
    draw_curve,
    first_and_last,
    read_log,
    read_run,
    smooth,
)
from problama_utils.rewards import CORRECT, FORMAT, SHORT
from problama_utils.run_folder import LOG_FILE, RUN_FILE, write_json, write_table

matplotlib.use("Agg")
ROWS = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 1.0, "kl": 0.25}, {"step": 3, "reward": 1.5}]


def test_a_log_comes_back_as_it_was_written_with_late_columns_filled_by_gaps(tmp_path):
    write_table(tmp_path / LOG_FILE, ROWS)
    log = read_log(tmp_path)
    assert log.index.tolist() == [1, 2, 3] and log.reward.tolist() == [0.5, 1.0, 1.5]
    assert log.kl.isna().tolist() == [True, False, True]
    assert [path.name for path in tmp_path.iterdir()] == [LOG_FILE]


def test_a_trl_checkpoint_is_read_without_its_closing_summary(tmp_path):
    history = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.7}, {"step": 2, "train_runtime": 3.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert read_log(tmp_path).reward.tolist() == [0.5, 0.7]


def test_a_folder_without_a_log_says_what_to_run(tmp_path):
    with pytest.raises(CourseError, match="run the training notebook"):
        read_log(tmp_path)
    with pytest.raises(CourseError, match="has not finished"):
        read_run(tmp_path)


def test_a_log_without_steps_names_the_columns_it_has(tmp_path):
    (tmp_path / LOG_FILE).write_text("reward,kl\n1,2\n")
    with pytest.raises(CourseError, match="reward, kl"):
        read_log(tmp_path)


def test_a_run_record_comes_back_equal(tmp_path):
    record = {"seed": 7, "profile": {"name": "cpu"}}
    write_json(tmp_path / RUN_FILE, record)
    assert read_run(tmp_path) == record


def test_first_and_last_average_the_stated_number_of_steps():
    log = pd.DataFrame({"reward": [0.0, 1.0, 5.0, 3.0, 5.0]})
    assert first_and_last(log, "reward", steps=2) == (0.5, 4.0)


def test_smoothing_never_looks_ahead():
    assert smooth(pd.Series([0.0, 0.0, 9.0]), 3).tolist() == [0.0, 0.0, 3.0]


def test_the_ceilings_are_the_amounts_that_the_rewards_pay():
    parts = [CORRECT, SHORT, FORMAT]
    assert list(CEILINGS.values()) == [*parts, sum(parts)] and list(CEILINGS) == list(SLIDE_CURVES)


def test_a_curve_has_labelled_axes_and_both_raw_and_smoothed_values():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    draw_curve(ax, pd.DataFrame({"reward": [0.0, 1.0, 2.0]}, index=[1, 2, 3]), "reward")
    assert ax.get_xlabel() == "global step" and ax.get_ylabel() == "reward" and ax.get_title() == "Total Reward"
    assert len(ax.lines) == 3 and ax.get_ylim()[0] < 0 < 3.0 < ax.get_ylim()[1]
    plt.close(figure)
