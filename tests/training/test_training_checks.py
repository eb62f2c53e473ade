"""Impossible settings are refused with value, rule and cure, before they cost anything."""

import dataclasses
import re

import pytest

from problama_utils import CourseError
from problama_utils.config import GRPOSettings, get_profile
from problama_utils.model.loading import load_policy
from problama_utils.training.checks import (
    check_budget,
    check_lengths,
    check_settings,
    leave_out_long,
    prompt_lengths,
)
from problama_utils.training.problems import training_problems
from problama_utils.training.run import run_grpo

CPU = get_profile("cpu")


def changed(**values):
    return dataclasses.replace(CPU, riddles=dataclasses.replace(CPU.riddles, **values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dataset_size": 3}, "prompts_per_step = 4 different ones: raise dataset_size"),
        ({"max_completion_length": 4}, "max_completion_length = 4, but <answer>"),
        ({"max_completion_length": 480}, "together more than max_seq_length = 512"),
    ],
)
def test_what_no_tokenizer_could_mend_is_refused_before_any_model_is_touched(values, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PROBLAMA_MODEL", str(tmp_path / "no-such-model"))
    with pytest.raises(CourseError, match=said):
        run_grpo("riddles", changed(**values), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"per_device_batch_size": 5}, "divisor of prompts_per_step · num_generations = 32"),
        ({"num_generations": 1}, "group of one"),
        ({"temperature": 0.0}, "greedy groups"),
        ({"save_every": 0}, "save_every = 0"),
    ],
)
def test_settings_that_contradict_themselves_cannot_be_made(values, said):
    with pytest.raises(CourseError, match=said):
        dataclasses.replace(CPU.riddles, **values)


def chats(words=20, number=4):
    return [[{"role": "user", "content": "word " * words}]] * number


@pytest.mark.parametrize("prompts", [5, 9, 100])
@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("rows", [0, 8])
def test_the_number_of_prompts_that_is_named_passes(prompts, size, rows):
    settings = dataclasses.replace(CPU.riddles, prompts_per_step=prompts, dataset_size=size, per_device_batch_size=rows)
    with pytest.raises(CourseError, match="lower prompts_per_step to 4") as caught:
        check_settings("riddles", settings, CPU, chats())
    assert ("raise dataset_size" in str(caught.value)) == (size > 0), "where all are taken there are no more"
    check_settings("riddles", dataclasses.replace(settings, prompts_per_step=4, per_device_batch_size=0), CPU, chats())


@pytest.mark.parametrize("words", [40, 56, 64, 100])
@pytest.mark.parametrize("budget", [16, 30])
def test_the_window_and_the_budget_that_are_named_pass(words, budget):
    settings = dataclasses.replace(CPU.riddles, max_completion_length=budget)
    small = dataclasses.replace(CPU, max_seq_length=64, riddles=settings)
    for refuse, again in (
        (lambda: check_lengths([words], settings, 64), lambda s, limit: check_lengths([words], s, limit)),
        (lambda: check_settings("riddles", settings, small, chats(words)), lambda s, limit: check_settings(
            "riddles", s, dataclasses.replace(CPU, max_seq_length=limit), chats(words))),
    ):
        try:
            refuse()
        except CourseError as error:
            window = int(re.search(r"raise max_seq_length to (\d+)", str(error))[1])
            again(settings, window)
            if lower := re.search(r"lower max_completion_length to (\d+)", str(error)):
                again(dataclasses.replace(settings, max_completion_length=int(lower[1])), 64)


def test_few_shot_is_no_cure_where_it_is_on(tiny_model_dir, monkeypatch):
    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    model, tokenizer = load_policy(CPU)
    for few_shot in (True, False):
        settings = GRPOSettings(max_steps=1, dataset_size=2, max_completion_length=8, few_shot=few_shot)
        with pytest.raises(CourseError, match="Raise max_completion_length") as caught:
            check_budget(model, tokenizer, training_problems("riddles", settings, seed=0), settings)
        assert ("few_shot=True" in str(caught.value)) != few_shot


def test_prompt_and_completion_must_fit_the_window(tiny_model_dir, monkeypatch):
    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    settings = GRPOSettings(max_steps=1, dataset_size=4, max_completion_length=8)
    lengths = prompt_lengths(training_problems("riddles", settings, seed=0), load_policy(CPU)[1])
    assert check_lengths(lengths, settings, 4096) == max(lengths)
    with pytest.raises(CourseError, match=f"{max(lengths)} tokens"):
        check_lengths(lengths, settings, max(lengths) + settings.max_completion_length - 1)


@pytest.mark.parametrize(("problems", "too_long", "kept"), [(20, 0, 20), (20, 1, 19), (20, 2, 18), (20, 3, 20),
                                                            (9, 1, 9), (10, 1, 9), (4, 1, 4), (2, 2, 2), (100, 10, 90),
                                                            (100, 11, 100)])
def test_a_tail_of_long_prompts_is_left_out_and_counted_but_many_are_a_matter_of_settings(
    problems, too_long, kept, tiny_model_dir, monkeypatch, capsys
):
    from datasets import Dataset

    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    tokenizer = load_policy(CPU)[1]
    settings = GRPOSettings(max_steps=1, dataset_size=0, max_completion_length=8)
    chats = [[{"role": "user", "content": "word " * (400 if place < too_long else 2)}] for place in range(problems)]
    dataset = Dataset.from_list([{"prompt": chat} for chat in chats])
    left = leave_out_long(dataset, tokenizer, settings, 300, "training")
    said = f"{too_long} of {problems} training problems are left out" if kept < problems else ""
    assert len(left) == kept and (said in capsys.readouterr().err if said else not capsys.readouterr().err)
    if kept == problems and too_long:
        with pytest.raises(CourseError, match="max_seq_length = 300"):
            check_lengths(prompt_lengths(left, tokenizer), settings, 300)


def test_as_many_problems_stay_as_a_step_takes(tiny_model_dir, monkeypatch):
    from datasets import Dataset

    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    settings = GRPOSettings(max_steps=1, dataset_size=0, max_completion_length=8, prompts_per_step=10)
    chats = [[{"role": "user", "content": "word " * (2 if place else 400)}] for place in range(10)]
    dataset = Dataset.from_list([{"prompt": chat} for chat in chats])
    assert len(leave_out_long(dataset, load_policy(CPU)[1], settings, 300, "training")) == 10


def test_a_budget_that_the_policys_own_answers_overrun_is_refused_with_their_length(tiny_model_dir, monkeypatch):
    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    settings = GRPOSettings(max_steps=1, dataset_size=4, max_completion_length=8, few_shot=False)
    model, tokenizer = load_policy(CPU)
    with pytest.raises(CourseError, match="of 4 answers of the untrained .* longer .* more than 2.* few_shot=True"):
        check_budget(model, tokenizer, training_problems("riddles", settings, seed=0), settings)


@pytest.mark.slow
def test_the_embedded_models_own_answers_fit_the_profiles_budgets():
    model, tokenizer = load_policy(CPU)
    for task in ("riddles", "piqa"):
        settings = getattr(CPU, task)
        check_budget(model, tokenizer, training_problems(task, settings, seed=0), settings)
        tight = dataclasses.replace(settings, max_completion_length=7)
        with pytest.raises(CourseError, match="8 of 8 answers .* Raise max_completion_length") as caught:
            check_budget(model, tokenizer, training_problems(task, tight, seed=0), tight)
        assert "few_shot" not in str(caught.value), "the examples are shown already: no cure"
