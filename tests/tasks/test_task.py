"""A task is one frozen value: the course's three, and a fourth that trains, plots, diagnoses and evaluates."""

import dataclasses
import json

import pytest

from problama_utils import CourseError
from problama_utils.config import GRPOSettings, get_profile
from problama_utils.monitoring.curves import ceiling, diagnose, draw_curve, read_log, read_run, reward_curves
from problama_utils.rewards.slides import SLIDE_REWARDS, rewards_of
from problama_utils.tasks.answers import Verdict
from problama_utils.tasks.base import Task
from problama_utils.tasks.registry import TASKS, get_task

OWN = '''
import json, pathlib
from problama_utils.config import GRPOSettings
from problama_utils.tasks.base import Task

def load(split, **_):
    lines = (pathlib.Path(__file__).parent / "sums.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]

def digits_reward(completions, answer, **_):
    return [float(sum(mark.isdigit() for mark in turns[-1]["content"])) for turns in completions]

SUMS = Task(
    name="sums", load=load, question=lambda row: row["question"], answer=lambda row: row["sum"],
    system="Add.", rewards=(digits_reward,), maxima=(8.0,),
    settings=GRPOSettings(max_steps=10, dataset_size=0, prompts_per_step=2, num_generations=4, max_completion_length=8,
                          learning_rate=1e-3, warmup_steps=0, few_shot=False, temperature=1.0, heldout_size=2,
                          heldout_every=0),
)
'''


@pytest.fixture
def own(tmp_path):
    rows = [{"id": f"s{n}", "question": f"{n} + {n + 1}?", "sum": str(2 * n + 1),
             "split": "heldout" if n > 7 else "train"} for n in range(10)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my_task.py").write_text(OWN)
    return f"{tmp_path / 'my_task.py'}:SUMS"


def test_the_course_has_three_and_each_is_complete():
    assert list(TASKS) == ["riddles", "piqa", "science"]
    for name, task in TASKS.items():
        row = task.load("test" if name == "science" else "heldout", source="embedded")[0]
        asked = task.asked(row, few_shot=True)
        assert asked["id"] == row["id"] and asked["prompt"][0] == {"role": "system", "content": task.system}
        assert task.judge(f"<answer>{asked['answer']}</answer>", asked) is Verdict.RIGHT
        assert task.judge("I would rather not.", asked) is Verdict.UNJUDGED
        assert rewards_of(task) == SLIDE_REWARDS
        assert get_task(name) is task is get_task(task)


def test_a_fourth_task_trains_plots_diagnoses_and_evaluates(own, tiny_model_dir, tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from problama_utils.evaluation.scoring import score_task
    from problama_utils.model.loading import load_adapter, load_policy
    from problama_utils.training.run import run_grpo

    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    monkeypatch.setenv("PROBLAMA_RUNS", str(tmp_path / "runs"))
    profile = dataclasses.replace(get_profile("cpu"), max_seq_length=2048)
    folder = run_grpo(get_task(own), profile, seed=1)
    assert folder.name == "sums" and read_run(folder)["rewards"] == ["digits_reward"]
    log = read_log(folder)
    assert reward_curves(log) == {"rewards/digits_reward/mean": "digits_reward", "reward": "Total Reward"}
    assert ceiling(log, "rewards/digits_reward/mean") == ceiling(log, "reward") == 8.0
    draw_curve(plt.figure().subplots(), log, "rewards/digits_reward/mean")
    plt.close("all")
    assert diagnose(folder).verdict
    model, tokenizer = load_policy(profile)
    rows = get_task(own).load("heldout")
    scored = score_task(load_adapter(model, folder / "adapter"), tokenizer, get_task(own), rows, policy="own")
    assert list(scored["id"]) == ["s8", "s9"] and set(scored["verdict"]) <= {"right", "wrong", "unjudged"}
    again = run_grpo(get_task(own), profile, seed=1, out=tmp_path / "again")
    assert (again / "log.csv").read_bytes() == (folder / "log.csv").read_bytes()


@pytest.mark.parametrize(("given", "sentence"), [
    ("chess", "Choose one of: riddles, piqa, science"), (3, "There is no task 3"), (None, "There is no task None"),
    ("no_such_file.py:SUMS", "is no Python file"),
])  # fmt: skip
def test_a_task_that_is_not_there_is_told(given, sentence):
    with pytest.raises(CourseError, match=sentence):
        get_task(given)


def test_a_file_without_the_task_or_with_an_error_is_told(own, tmp_path):
    with pytest.raises(CourseError, match="has no Task called 'NONE'"):
        get_task(own.replace("SUMS", "NONE"))
    (tmp_path / "my_task.py").write_text("import no_such_module")
    with pytest.raises(CourseError, match="cannot be imported .ModuleNotFoundError"):
        get_task(own)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"name": "my task"}, "cannot be called"), ({"name": "../up"}, "cannot be called"),
    ({"rewards": SLIDE_REWARDS[:1] * 2}, "name of its own"), ({"maxima": (1.0,)}, "0 rewards and 1 maxima"),
])  # fmt: skip
def test_a_task_that_cannot_work_is_refused_when_it_is_made(changes, sentence):
    with pytest.raises(CourseError, match=sentence):
        dataclasses.replace(TASKS["riddles"], **changes)


def test_a_task_without_settings_says_where_they_come_from():
    from problama_utils.training.problems import task_settings

    with pytest.raises(CourseError, match="no training settings for task 'science'"):
        task_settings(TASKS["science"], get_profile("cpu"))
    mine = GRPOSettings(max_steps=3, dataset_size=0)
    assert task_settings(dataclasses.replace(TASKS["science"], settings=mine), get_profile("cpu")) is mine


def test_a_task_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS["piqa"].name = "other"
    assert isinstance(TASKS["piqa"], Task)
