"""From problems to a run folder, on a Llama made on the spot: every step real, only small."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from problama_utils import CourseError
from problama_utils.config import GRPOSettings, get_profile
from problama_utils.model.loading import load_adapter, load_policy
from problama_utils.monitoring import curves as monitoring
from problama_utils.monitoring.run_folder import ADAPTER_FOLDER
from problama_utils.tasks.piqa import load_piqa
from problama_utils.tasks.riddles import load_riddles
from problama_utils.training.problems import heldout_problems, training_order, training_problems
from problama_utils.training.run import grpo_config, run_grpo

SHORT = GRPOSettings(max_steps=2, dataset_size=4, prompts_per_step=2, num_generations=2, max_completion_length=4,
                     learning_rate=1e-3, warmup_steps=0, few_shot=False, heldout_size=2)


@pytest.fixture
def profile(tiny_model_dir, monkeypatch):
    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    return dataclasses.replace(get_profile("cpu"), riddles=SHORT, piqa=SHORT, max_seq_length=2048)


def test_an_unknown_task_lists_the_known_ones(profile):
    with pytest.raises(CourseError, match="riddles, piqa"):
        training_problems("chess", SHORT, seed=0)


def test_riddles_arrive_with_what_the_rewards_read_and_only_from_the_training_split():
    rows = training_problems("riddles", dataclasses.replace(SHORT, dataset_size=20, difficulty=1), seed=0)
    train = {row["id"]: row for row in load_riddles("train", difficulty=1)}
    assert len(rows) == 20 and set(rows.column_names) == {"id", "prompt", "answer", "aliases"}
    assert all(row["answer"] == train[row["id"]]["answer"] for row in rows)


def test_piqa_answers_are_the_letter_of_the_label():
    rows = training_problems("piqa", SHORT, seed=0)
    pairs = {row["id"]: row for row in load_piqa("train")}
    assert all(row["answer"] == "AB"[pairs[row["id"]]["label"]] and row["labels"] == ["A", "B"] for row in rows)
    assert all(row["choices"] == [pairs[row["id"]][name] for name in ("sol1", "sol2")] for row in rows)


def test_the_seed_decides_which_problems_are_taken():
    first, again, other = (training_problems("riddles", SHORT, seed=seed)["id"] for seed in (1, 1, 2))
    assert list(first) == list(again) != list(other)


def test_held_out_problems_are_the_same_for_every_run_and_none_is_trained_on():
    settings = dataclasses.replace(SHORT, dataset_size=0, heldout_size=20, difficulty=1)
    held = heldout_problems("riddles", settings)["id"]
    assert len(held) == 20 and not set(held) & set(training_problems("riddles", settings, seed=0)["id"])


@given(lengths=st.lists(st.integers(1, 99), min_size=2, max_size=12), steps=st.integers(1, 9), seed=st.integers(0, 9))
def test_every_step_has_different_problems_and_the_first_has_the_longest(lengths, steps, seed):
    settings = dataclasses.replace(SHORT, max_steps=steps, prompts_per_step=2)
    order = training_order(lengths, settings, seed=seed)
    assert len(order) == 2 * steps and all(order[i] != order[i + 1] for i in range(0, len(order), 2))
    assert sorted(lengths[i] for i in order[:2]) == sorted(lengths)[-2:]
    assert order == training_order(lengths, settings, seed=seed)
    whole_pass = order[: len(lengths) // 2 * 2]
    assert len(set(whole_pass)) == len(whole_pass)


def test_our_settings_reach_trl_unchanged(profile, tmp_path):
    config = grpo_config(SHORT, profile, seed=5, out=tmp_path)
    assert (config.num_generations, config.per_device_train_batch_size, config.beta) == (2, 4, 0.04)
    assert (config.max_completion_length, config.seed, config.loss_type) == (4, 5, "grpo")


@pytest.mark.parametrize("task", ["riddles", "piqa"])
def test_a_run_leaves_a_log_a_record_and_an_adapter_that_loads(task, profile, seed, tmp_path):
    folder = run_grpo(task, profile, seed=seed, out=tmp_path / task, strict=False)
    log, record = monitoring.read_log(folder), monitoring.read_run(folder)
    assert log.index.tolist() == [1, 2] and set(monitoring.SLIDE_CURVES) <= set(log.columns)
    assert record["seed"] == seed and record["problems"] == 4 and record["versions"]["trl"]
    assert record["source"] == f"the course's own {'physical' if task == 'piqa' else task}.jsonl"
    load_adapter(load_policy(profile)[0], folder / ADAPTER_FOLDER)


def test_questions_like_piqas_train_a_run_that_says_their_source(profile, tmp_path, monkeypatch, capsys):
    """Without levels, though the settings ask for one, and with a question too long for the window."""
    rows = [{"goal": f"goal {number}", "sol1": "a", "sol2": "b"} for number in range(30)]
    rows[7]["sol2"] = "b " * 2000
    (tmp_path / "valid.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "valid-labels.lst").write_text("0\n1\n" * 15)
    monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path))
    settings = dataclasses.replace(SHORT, dataset_size=0, heldout_size=0, difficulty=1)
    folder = run_grpo("piqa", dataclasses.replace(profile, piqa=settings), out=tmp_path / "run", strict=False)
    record = monitoring.read_run(folder)
    assert record["source"].startswith("PIQA in folder ") and "20 train and 10 held out" in record["source"]
    assert record["problems"] in (19, 20) and "1 of " in capsys.readouterr().err


def test_two_runs_with_the_same_seed_agree_and_another_seed_differs(profile, seed, tmp_path):
    logs = [monitoring.read_log(run_grpo("riddles", profile, seed=s, out=tmp_path / name, strict=False))
            for name, s in (("a", seed), ("b", seed), ("c", seed + 1))]
    columns = ["reward", "loss", "grad_norm", "completions/mean_length", "entropy"]
    assert logs[0][columns].equals(logs[1][columns]) and not logs[0][columns].equals(logs[2][columns])


def test_the_stock_trainer_can_be_chosen(profile, tmp_path):
    folder = run_grpo("riddles", profile, seed=3, out=tmp_path, trainer="stock", strict=False)
    assert len(monitoring.read_log(folder)) == 2


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_step_may_be_cut_into_parts_that_hold_no_whole_group(rows, profile, tmp_path):
    odd = dataclasses.replace(SHORT, max_steps=1, prompts_per_step=1, num_generations=6, per_device_batch_size=rows)
    run = run_grpo("riddles", dataclasses.replace(profile, riddles=odd), seed=3, out=tmp_path / "run", strict=False)
    assert len(monitoring.read_log(run)) == 1
