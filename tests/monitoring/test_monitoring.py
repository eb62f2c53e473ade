"""Writing and reading the record of a run."""

import json

import matplotlib
import pandas as pd
import pytest

from problama_utils import CourseError
from problama_utils.monitoring.curves import (
    SLIDE_CURVES,
    ceiling,
    diagnose,
    draw_curve,
    first_and_last,
    read_log,
    read_run,
    reward_curves,
    smooth,
)
from problama_utils.monitoring.run_folder import LOG_FILE, PLAN_FILE, RUN_FILE, write_json, write_table

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


def test_a_curve_has_labelled_axes_and_both_raw_and_smoothed_values():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    draw_curve(ax, pd.DataFrame({"reward": [0.0, 1.0, 2.0]}, index=[1, 2, 3]), "reward")
    assert ax.get_xlabel() == "global step" and ax.get_ylabel() == "reward" and ax.get_title() == "Total Reward"
    assert len(ax.lines) == 3 and ax.get_ylim()[0] < 0 < 3.0 < ax.get_ylim()[1]
    plt.close(figure)


DAMAGED_TABLES = {  # contents of log.csv → words of the sentence
    "nothing": (b"", "is empty"),
    "blank lines": (b"\n\n\n", "is empty"),
    "a header only": (b"step,reward\n", "is empty"),
    "a header of another kind": (b"epoch,reward\n", "no step"),
    "no step": (b"epoch,reward\n1,2\n", "epoch, reward"),
    "capital step": (b"Step,reward\n1,2\n", "no column 'step'"),
    "half a last row": (b"step,reward,kl\n1,0.5,0.1\n2,0.", "line 3"),
    "a row in the middle cut": (b"step,reward,kl\n1,0.5\n2,0.5,0.1\n", "line 2"),
    "rows longer than the header": (b"step,reward\n1,0.5,0.1\n2,0.5,0.1\n", "line 2"),
    "an open quote": (b'step,reward\n1,"0.5\n2,0.7\n', "cut or changed"),
    "semicolons": (b"step;reward\n1;0,5\n", "commas were expected"),
    "tabs": (b"step\treward\n1\t0.5\n", "no column 'step' between commas"),
    "a column twice": (b"step,reward,reward\n1,0.5,0.6\n", "column more than once"),
    "text in the reward": (b"step,reward\n1,0.5\n2,high\n", "'high' in row 2"),
    "decimal commas in quotes": (b'step,reward\n1,"0,5"\n', "'0,5' in row 1"),
    "text in a metric": (b"step,reward,kl\n1,0.5,0.1\n2,0.5,#REF!\n", "#REF!"),
    "text in a column of others": (b"step,reward,mine\n1,0.5,1\n2,0.5,x\n", "'mine'.*'x'"),
    "yes and no as reward": (b"step,reward\n1,True\n2,False\n", "numbers were expected"),
    "text as step": (b"step,reward\none,0.5\n", "'one' in row 1"),
    "a step missing": (b"step,reward\n1,0.5\n,0.5\n", "step nan in row 2"),
    "half a step": (b"step,reward\n1,0.5\n1.5,0.5\n", "step 1.5"),
    "a step below 0": (b"step,reward\n-1,0.5\n", "step -1"),
    "an endless step": (b"step,reward\ninf,0.5\n", "step inf"),
    "a step beyond all counting": (b"step,reward\n1e300,0.5\n", "whole numbers"),
    "a step twice": (b"step,reward\n1,0.5\n2,0.5\n2,0.6\n", "step 2 .* each once"),
    "no reward": (b"step,loss\n1,2.5\n", "supervised training.*|without a reward"),
    "bytes": (b"\x89PNG\r\n\x1a\n\x00\x00", "no UTF-8 text"),
    "zeros": (b"step,reward\n1,0.5\n" + b"\0" * 64, "no UTF-8 text"),
    "UTF-16": ("step,reward\n1,0.5\n".encode("utf-16"), "no UTF-8 text"),
    "Latin-1": (b"step,reward,caf\xe9\n1,2,3\n", "no UTF-8 text"),
    "one endless field": (b"step,reward\n1," + b"9" * 200_000 + b"\n", "cut or changed"),
}


@pytest.mark.parametrize("name", DAMAGED_TABLES)
def test_a_damaged_table_is_refused_in_one_sentence_that_names_the_file(tmp_path, name):
    content, words = DAMAGED_TABLES[name]
    (tmp_path / LOG_FILE).write_bytes(content)
    for read in (read_log, diagnose):
        with pytest.raises(CourseError, match=words) as caught:
            read(tmp_path)
        assert LOG_FILE in str(caught.value) and "\n" not in str(caught.value)


DAMAGED_STATES = {
    "nothing": (b"", "no whole JSON"),
    "cut": (b'{"log_history": [{"step": 1, "rew', "no whole JSON"),
    "bytes": (b"\x80\x81\x00", "no UTF-8 text"),
    "UTF-16": ('{"log_history": []}'.encode("utf-16"), "no UTF-8 text"),
    "a list": (b"[1, 2]", "JSON list"),
    "null": (b"null", "JSON NoneType"),
    "a page of an error": (b"<html>404</html>", "no whole JSON"),
    "deeper than a reader goes": (b"[" * 200_000, "no whole JSON"),
    "no history": (b'{"global_step": 3}', "global_step"),
    "a history of another type": (b'{"log_history": {"step": 1}}', "log_history"),
    "rows of another type": (b'{"log_history": [1, 2]}', "log_history"),
    "no step yet": (b'{"log_history": []}', "is empty"),
    "supervised training": (json.dumps({"log_history": [{"step": 1, "loss": 2.5, "mean_token_accuracy": 0.4},
                                                        {"step": 2, "loss": 2.4}]}).encode(), "supervised training"),
    "its summary alone": (b'{"log_history": [{"step": 2, "train_runtime": 3.0}]}', "without a reward"),
    "rewards without steps": (b'{"log_history": [{"reward": 1.0}]}', "no column 'step'"),
    "text as reward": (b'{"log_history": [{"step": 1, "reward": "good"}]}', "'good'"),
    "a list as reward": (b'{"log_history": [{"step": 1, "reward": [1, 2]}]}', "numbers were expected"),
    "a step twice": (b'{"log_history": [{"step": 1, "reward": 1}, {"step": 1, "reward": 2}]}', "each once"),
}


@pytest.mark.parametrize("name", DAMAGED_STATES)
def test_a_damaged_trainer_state_is_refused_in_one_sentence_that_names_the_file(tmp_path, name):
    content, words = DAMAGED_STATES[name]
    (tmp_path / "trainer_state.json").write_bytes(content)
    for read in (read_log, diagnose):
        with pytest.raises(CourseError, match=words) as caught:
            read(tmp_path)
        assert "trainer_state.json" in str(caught.value) and "\n" not in str(caught.value)


DAMAGED_RECORDS = {  # of run.json and plan.json
    "nothing": (b"", "no whole JSON"),
    "cut": (b'{"task": "piqa", "pro', "no whole JSON"),
    "bytes": (b"\x00\x01\xff", "no UTF-8 text"),
    "a list": (b"[]", "JSON list"),
    "a word": (b'"piqa"', "JSON str"),
    "no task": (b'{"seed": 1}', "names no task"),
    "a task of another type": (b'{"task": ["piqa"]}', "names no task"),
    "no profile": (b'{"task": "piqa"}', "no task with its settings"),
    "a profile of another type": (b'{"task": "piqa", "profile": "cpu"}', "no task with its settings"),
    "a profile without the task": (b'{"task": "piqa", "profile": {"riddles": {}}}', "no task with its settings"),
    "settings of another type": (b'{"task": "piqa", "profile": {"piqa": 3}}', "no task with its settings"),
}


@pytest.mark.parametrize("file", [RUN_FILE, PLAN_FILE])
@pytest.mark.parametrize("name", DAMAGED_RECORDS)
def test_a_damaged_record_is_refused_in_one_sentence_and_the_log_alone_can_be_diagnosed(tmp_path, name, file):
    content, words = DAMAGED_RECORDS[name]
    write_table(tmp_path / LOG_FILE, ROWS)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CourseError, match=words) as caught:
        diagnose(tmp_path)
    assert file in str(caught.value) and "\n" not in str(caught.value)
    assert diagnose(read_log(tmp_path)).verdict == "too short to tell"
    if file == RUN_FILE and name in list(DAMAGED_RECORDS)[:5]:
        with pytest.raises(CourseError, match=words):
            read_run(tmp_path)


def test_settings_that_are_given_are_not_looked_for_in_the_record(tmp_path):
    write_table(tmp_path / LOG_FILE, ROWS)
    write_json(tmp_path / RUN_FILE, {"task": "piqa", "profile": {"riddles": {}}})
    assert diagnose(tmp_path, {"beta": 0.04}).verdict == "too short to tell"


@pytest.mark.parametrize(("folder", "words"), [
    ("missing", "missing' is no folder"), ("file", "file' is no folder"), ("a\0b", "no folder"), (None, "no folder"),
    (7, "no folder"), ("x" * 5000, "no folder"),
])  # fmt: skip
def test_a_folder_that_is_none_is_told_in_a_sentence(tmp_path, folder, words):
    (tmp_path / "file").write_text("step,reward\n1,2\n")
    place = tmp_path / folder if isinstance(folder, str) else folder
    for read in (read_log, read_run):
        with pytest.raises(CourseError, match=words):
            read(place)


def test_files_that_are_folders_and_the_folder_above_checkpoints_are_told_in_a_sentence(tmp_path):
    above = tmp_path / "above"
    (above / "checkpoint-4").mkdir(parents=True)
    (above / "checkpoint-4" / "trainer_state.json").write_text("{}")
    with pytest.raises(CourseError, match="checkpoint-4"):
        read_log(above)
    for name in (LOG_FILE, RUN_FILE):
        (tmp_path / name).mkdir()
    for read in (read_log, read_run):
        with pytest.raises(CourseError, match="cannot be read"):
            read(tmp_path)


@pytest.mark.parametrize("content", [
    b"\xef\xbb\xbfstep,reward\n1,0.5\n2,1.0\n",  # a byte-order mark
    b"step,reward\r\n1,0.5\r\n2,1.0\r\n",
    b"step,reward\n1,0.5\n\n2,1.0",
    b"step,reward\n2,1.0\n1,0.5\n",
    b"reward,step\n0.5,1.0\n1.0,2.0\n",
    b"step,reward,remark\n1,0.5,first\n2,1.0,\n",  # a column of words is no column of numbers
    b"step,reward,kl\n1,0.5,\n2,1.0,nan\n",
])
def test_what_is_whole_is_read_however_it_was_saved(tmp_path, content):
    (tmp_path / LOG_FILE).write_bytes(content)
    log = read_log(tmp_path)
    assert log.index.tolist() == [1, 2] and log.reward.tolist() == [0.5, 1.0] and log.index.dtype == "int64"


OTHERS = pd.DataFrame({"reward": [0.5, 1.0, 4.0] * 4, "rewards/tidy/mean": [-1.0, 0.0, 1.0] * 4,
                       "rewards/soft_format_reward/mean": [0.5, 0.25, 0.5] * 4, "loss": [0.0] * 12, "remark": "x"},
                      index=range(1, 13))


def test_curves_are_found_whatever_the_reward_functions_are_called():
    assert reward_curves(OTHERS) == {"rewards/soft_format_reward/mean": "Soft Format", "rewards/tidy/mean": "tidy",
                                     "reward": "Total Reward"}
    slides = pd.DataFrame(columns=["reward", *reversed(SLIDE_CURVES), "rewards/x/std", "eval_rewards/x/mean"])
    assert list(reward_curves(slides.loc[:, ~slides.columns.duplicated()]).items()) == list(SLIDE_CURVES.items())
    assert reward_curves(pd.DataFrame(columns=["rewards/a/b/mean", 7])) == {"rewards/a/b/mean": "a/b"}
    with pytest.raises(CourseError, match="no reward to draw: it has loss"):
        reward_curves(OTHERS[["loss"]])


def test_every_curve_of_a_foreign_log_is_drawn_whole_and_has_a_ceiling_only_where_it_is_known():
    import matplotlib.pyplot as plt

    for metric, most in zip(reward_curves(OTHERS), [0.5, None, None], strict=True):
        _, ax = plt.subplots()
        draw_curve(ax, OTHERS, metric)
        low, high = ax.get_ylim()
        assert low < OTHERS[metric].min() and OTHERS[metric].max() < high and ceiling(OTHERS, metric) == most
        assert len(ax.lines) == (3 if most else 2) and ax.get_title() == reward_curves(OTHERS)[metric]
        assert first_and_last(OTHERS, metric)[0] == pytest.approx(OTHERS[metric].head(5).mean())
    plt.close("all")
    assert ceiling(OTHERS[["reward"]].clip(upper=3), "reward") == 3.0  # nothing speaks against the slides' rewards
    assert ceiling(OTHERS[["reward"]], "reward") is None  # 4 points: other amounts or weights than the slides'
    two = OTHERS[["reward", "rewards/soft_format_reward/mean"]].clip(upper=0.5)
    assert ceiling(two, "reward") == 0.5


@pytest.mark.parametrize(("log", "metric", "words"), [
    (OTHERS, "rewards/correct_answer_reward/mean", "rewards/tidy/mean"),
    (OTHERS, "rewards", "rewards/tidy/mean"), (OTHERS, "Reward", "it has reward"), (OTHERS, None, "has no None"),
    (OTHERS, ["reward"], "has no"), (OTHERS, "", "has no ''"), (OTHERS, 0, "has no 0"),
    (OTHERS, "remark", "'x' in row 1"),
    (pd.DataFrame(), "reward", "it has nothing"), (pd.DataFrame({"reward": []}), "reward", "no number"),
    (pd.DataFrame({"reward": [None, float("nan")]}), "reward", "no number"),
    (pd.DataFrame([[1, 2]], columns=["reward", "reward"]), "reward", "more than once"),
    ("runs/riddles", "reward", "read_log"), (None, "reward", "not NoneType"), ({"reward": [1.0]}, "reward", "not dict"),
])  # fmt: skip
def test_a_metric_that_cannot_be_drawn_or_averaged_is_told_in_a_sentence(log, metric, words):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    for use in (lambda: draw_curve(ax, log, metric), lambda: first_and_last(log, metric), lambda: ceiling(log, metric)):
        with pytest.raises(CourseError, match=words):
            use()
    assert not ax.lines  # nothing half drawn
    plt.close("all")


@pytest.mark.parametrize("window", [0, -1, 2.5, "5", None, True])
def test_a_window_is_a_whole_number(window):
    for use in (lambda: smooth(OTHERS.reward, window), lambda: first_and_last(OTHERS, "reward", window)):
        with pytest.raises(CourseError, match="whole number"):
            use()


def test_a_run_with_other_rewards_is_diagnosed_and_what_it_lacks_is_named(tmp_path):
    history = [{"step": step, "reward": 0.1 * step, "rewards/accuracy_reward/mean": 0.1 * step, "kl": 0.01,
                "loss": 0.0} for step in range(1, 16)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [*history, {"step": 15, "loss": 0.1}]}))
    diagnosis = diagnose(tmp_path)
    assert diagnosis.verdict == "healthy"
    assert any("rewards/correct_answer_reward/mean" in reason for reason in diagnosis.skipped)
    supervised = diagnose(pd.DataFrame({"loss": [2.0] * 12}))
    assert supervised.verdict == "too short to tell" and "no reward" in supervised.summary


@pytest.mark.parametrize(("settings", "chance", "words"), [
    ("cpu", None, "settings"), (3, None, "settings"), ([1], None, "settings"),
    (None, "half", "chance"), (None, 50, "chance"), (None, float("nan"), "chance"),
])  # fmt: skip
def test_settings_and_chance_of_another_kind_are_refused(settings, chance, words):
    with pytest.raises(CourseError, match=words):
        diagnose(OTHERS, settings, chance=chance)


def test_a_setting_that_is_too_large_to_be_a_number_counts_as_unknown():
    assert diagnose(OTHERS, {"beta": 10**400, "max_completion_length": 10**400}).verdict
