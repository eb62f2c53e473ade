"""Profiles: the slides' values to the letter, the switch, and settings that cannot work."""

import dataclasses
import json
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from problama_utils import CourseError
from problama_utils.config import (
    PROFILE_NAMES,
    RANGES,
    GRPOSettings,
    LoraSettings,
    Profile,
    cache_dir,
    course_root,
    describe,
    detect_profile,
    get_profile,
    runs_dir,
)
from problama_utils.setup import gpu
from problama_utils.setup.hub import chosen_name
from problama_utils.tasks.sources import assets_folder, local_folder


def test_the_slides_profile_holds_every_value_of_the_deck():
    slides = get_profile("slides")
    assert slides.model_name == "meta-llama/meta-Llama-3.1-8B-Instruct"
    assert (slides.max_seq_length, slides.lora.r, slides.lora.lora_alpha) == (512, 64, 64)
    assert slides.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert slides.load_in_4bit and slides.fast_inference and slides.gpu_memory_utilization == 0.8
    assert slides.lora.use_gradient_checkpointing == "unsloth" and slides.lora.random_state == 3407
    assert slides.riddles.dataset_size == 800 and slides.piqa.max_steps == 4000


def test_profiles_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_profile("cpu").lora.r = 8


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_the_environment_overrides_the_hardware(name, monkeypatch):
    monkeypatch.setenv("PROBLAMA_PROFILE", name)
    assert detect_profile().name == name


@pytest.mark.parametrize(
    ("gigabytes", "capability", "expected"),
    [(16, (7, 5), "colab-t4"), (24, (8, 6), "colab-t4"), (40, (8, 0), "slides"), (80, (9, 0), "slides"),
     (32, (7, 0), "colab-t4"),  # a V100 has the memory but no bf16
     (15.8, (7, 5), "colab-t4"), (13.9, (8, 9), "cpu"), (12, (8, 6), "cpu"), (8, (8, 6), "cpu"), (4, (7, 5), "cpu"),
     (16, (6, 0), "cpu"), (24, (5, 2), "cpu")],
)
def test_a_card_is_judged_by_memory_and_capability(gigabytes, capability, expected, monkeypatch, capsys):
    import torch

    card = type("Card", (), {"total_memory": gigabytes * 1.0e9})
    monkeypatch.delenv("PROBLAMA_PROFILE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(gpu, "installed_version", lambda name: "2026.10.9")
    assert detect_profile().name == expected
    said = capsys.readouterr().err
    assert ("although there is a GPU" in said and ": take" in said or ": choose" in said) == (expected == "cpu")
    monkeypatch.setattr(gpu, "installed_version", lambda name: "")
    assert detect_profile().name == "cpu"
    assert "although there is a GPU" in capsys.readouterr().err


def test_an_unknown_profile_is_one_line_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("PROBLAMA_PROFILE", "nonsense")
    call = "from problama_utils.config import detect_profile; detect_profile()"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(name in done.stderr for name in PROFILE_NAMES)


@pytest.mark.parametrize(
    ("change", "value"),
    [("num_generations", 1), ("temperature", 0.0), ("max_steps", 0), ("beta", -0.1), ("learning_rate", 0.0)],
)
def test_settings_that_cannot_work_name_value_rule_and_cure(change, value):
    with pytest.raises(CourseError) as caught:
        GRPOSettings(**{"max_steps": 10, "dataset_size": 4, change: value})
    assert change in str(caught.value) and repr(value) in str(caught.value) and ":" in str(caught.value)


def test_a_completion_budget_must_leave_room_for_the_prompt():
    cpu = get_profile("cpu")
    with pytest.raises(CourseError, match="max_completion_length = 600"):
        dataclasses.replace(cpu, riddles=dataclasses.replace(cpu.riddles, max_completion_length=600))


def test_describe_names_every_field_once():
    text = describe(get_profile("cpu"))
    assert text.count("lora.r = 16") == 1 and "riddles.beta = 0.04" in text


# --- the five variables that hold a path ---------------------------------------------------------------------------

READERS = {"PROBLAMA_RUNS": runs_dir, "PROBLAMA_HOME": cache_dir, "PROBLAMA_DATA": local_folder,
           "PROBLAMA_ASSETS": assets_folder, "PROBLAMA_MODEL": lambda: Path(chosen_name(get_profile("cpu")))}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with `my files/`, which every reader accepts."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", "my files")
    for name in (*READERS, "PROBLAMA_UNGATED", "NO_SUCH_THING"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "my files").mkdir()
    (tmp_path / "my files" / "riddles.jsonl").touch()
    return tmp_path


@pytest.mark.parametrize("value", ["~/my files", "$HOME/my files", "${HOME}/my files", "~/$WHERE", " ~/my files ",
                                   "$HOME/${WHERE}", "~/./my files", "~/my files/", "\t~/my files\n", "~//my files"])
@pytest.mark.parametrize("name", READERS)
def test_all_five_variables_expand_the_home_folder_and_other_variables(name, value, home, monkeypatch):
    monkeypatch.setenv(name, value)
    assert READERS[name]() == home / "my files"


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
@pytest.mark.parametrize("name", READERS)
def test_a_blank_variable_counts_as_unset(name, value, home, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    unset = READERS[name]()
    monkeypatch.setenv(name, value)
    assert READERS[name]() == unset


@pytest.mark.parametrize("value", ["~nobody-of-that-name", "~nobody-of-that-name/x", "$NO_SUCH_THING/x",
                                   "${NO_SUCH_THING}", "~/$NO_SUCH_THING/x", "/$NO_SUCH_THING"])
@pytest.mark.parametrize("name", READERS)
def test_an_unknown_user_or_variable_is_a_sentence_and_no_folder_of_that_name(name, value, home, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(CourseError, match=f"{name} = .* is unknown here"):
        READERS[name]()


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
@pytest.mark.parametrize("name", ["PROBLAMA_RUNS", "PROBLAMA_HOME", "PROBLAMA_DATA", "PROBLAMA_ASSETS"])
def test_a_file_where_a_folder_is_expected_is_a_sentence(name, below, home, monkeypatch):
    monkeypatch.setenv(name, f"~/my files/riddles.jsonl{below}")
    with pytest.raises(CourseError, match="folder"):
        READERS[name]()


def test_a_hub_id_and_the_defaults_stay_as_they_are(home, monkeypatch):
    assert runs_dir() == course_root() / "runs" and cache_dir() == home / ".cache" / "problama"
    monkeypatch.setenv("PROBLAMA_MODEL", "meta-llama/Llama-3.1-8B-Instruct")
    assert chosen_name(get_profile("cpu")) == "meta-llama/Llama-3.1-8B-Instruct"
    monkeypatch.setenv("PROBLAMA_RUNS", "~/not/yet/there")
    assert runs_dir() == home / "not/yet/there"


def test_preflight_says_in_one_line_that_a_variable_is_unknown(home):
    import os

    done = subprocess.run([sys.executable, "-m", "problama_utils.setup", "--profile", "cpu"], capture_output=True,
                          text=True, env={**os.environ, "PROBLAMA_HOME": "$NO_SUCH_THING/x"}, cwd=course_root())
    assert done.returncode == 1 and "NO_SUCH_THING" in done.stdout and not done.stderr


NO_NUMBERS = ["5e-6", "3", "", None, True, False, [4], {}, float("nan"), float("inf"), -float("inf"), np.float64("nan"),
              np.True_, 1j, Decimal("2"), np.array([2, 3]), 10**400, -(10**5000), object(), b"4"]
NO_WHOLE_NUMBERS = [7.0, 2.5, np.float32(4), Fraction(4, 1), 1e3]


def fields_of(kind, *classes):
    return [(cls, field.name) for cls in classes for field in dataclasses.fields(cls) if field.type == kind]


def base(cls):
    cpu = get_profile("cpu")
    return {GRPOSettings: cpu.riddles, LoraSettings: cpu.lora, Profile: cpu}[cls]


def refused(cls, name, value):
    with pytest.raises(CourseError) as caught:
        dataclasses.replace(base(cls), **{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} = ") and message.count(": ") >= 1 and len(message) < 400
    return message


@pytest.mark.parametrize(("cls", "name"), fields_of("int", GRPOSettings, LoraSettings, Profile))
def test_a_whole_number_is_one_and_nothing_else(cls, name):
    for value in [*NO_NUMBERS, *NO_WHOLE_NUMBERS, -1]:
        refused(cls, name, value)


@pytest.mark.parametrize(("cls", "name"), fields_of("float", GRPOSettings, Profile))
def test_a_number_is_finite_and_no_text(cls, name):
    for value in [*NO_NUMBERS, -1, -0.5]:
        refused(cls, name, value)


@pytest.mark.parametrize(
    ("cls", "name", "values"),
    [
        (LoraSettings, "use_gradient_checkpointing", ["false", "True", "Unsloth", 1, 0, None, "", 2.0]),
        (LoraSettings, "target_modules", ["q_proj", (), [], (1,), None, ("q_proj", None), {"q_proj": 1}, ("",), 3]),
        (LoraSettings, "random_state", [-1, 2**32, 1.5, "3407", None]),
        (Profile, "load_in_4bit", ["no", 0, 1, None, "False", 1.0]),
        (Profile, "fast_inference", ["yes", 0, [], None]),
        (GRPOSettings, "few_shot", ["no", 0, 1, None, "False"]),
        (Profile, "name", ["", " ", None, 3, b"cpu"]),
        (Profile, "model_name", ["", None, 8, ["embedded"]]),
        (Profile, "backend", ["Unsloth", "", None, "vllm", True, "transformers "]),
        (Profile, "optim", ["adamw", "AdamW_8bit", "sgd", "adamw_torch", "paged_adamw_8bit", "", " ", None, 8, True,
                            "adamw_8bit ", ["adamw_8bit"]]),
        (Profile, "lora", [None, {"r": 8}, 16, get_profile("cpu")]),
        (Profile, "riddles", [None, {"max_steps": 3}, "riddles", LoraSettings()]),
        (Profile, "gpu_memory_utilization", [1.5, 80, -0.1]),
    ],
)
def test_every_other_field_has_its_type_too(cls, name, values):
    for value in values:
        refused(cls, name, value)


def test_numpys_numbers_become_pythons_and_fit_into_a_plan():
    settings = GRPOSettings(max_steps=np.int64(4), dataset_size=np.uint8(8), learning_rate=np.float64(1e-4), beta=0,
                            temperature=np.float32(0.5), few_shot=np.False_)
    assert type(settings.max_steps) is int and type(settings.temperature) is float and settings.few_shot is False
    assert type(settings.beta) is float
    profile = dataclasses.replace(get_profile("cpu"), riddles=settings, lora=LoraSettings(target_modules=["q_proj"]))
    assert profile.lora.target_modules == ("q_proj",)
    assert json.loads(json.dumps(dataclasses.asdict(profile)))["riddles"]["max_steps"] == 4


def cures(message):
    """The values that a message names after its rule."""
    found = re.findall(r"(?<![\w.])-?\d[\d.]*(?:e-?\d+)?(?!\w)", message.split(": ", 1)[1])
    return [float(number.rstrip(".")) for number in found]


@given(prompts=st.integers(1, 12), group=st.integers(2, 16), rows=st.integers(1, 300))
def test_a_batch_that_is_no_divisor_is_told_the_divisors_and_each_of_them_passes(prompts, group, rows):
    plain = {"max_steps": 1, "dataset_size": 1, "prompts_per_step": prompts, "num_generations": group}
    if prompts * group % rows == 0:
        assert GRPOSettings(**plain, per_device_batch_size=rows).per_device_batch_size == rows
        return
    with pytest.raises(CourseError, match="per_device_batch_size") as caught:
        GRPOSettings(**plain, per_device_batch_size=rows)
    named = cures(str(caught.value))
    assert len(named) > 1 and prompts * group in named or prompts * group > 64
    for value in named:
        GRPOSettings(**plain, per_device_batch_size=int(value))


def test_a_batch_of_4_with_6_completions_is_told_1_2_3_6():
    with pytest.raises(CourseError, match="use 0 for all rows at once, or one of 1, 2, 3, 6"):
        GRPOSettings(max_steps=1, dataset_size=1, prompts_per_step=1, num_generations=6, per_device_batch_size=4)


@given(name=st.sampled_from(sorted(RANGES)), value=st.one_of(
    st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=3), st.none(), st.booleans(), st.just(10**30)))
def test_every_value_that_a_refusal_names_is_itself_accepted(name, value):
    for cls in (GRPOSettings, LoraSettings, Profile):
        if name not in {field.name for field in dataclasses.fields(cls)}:
            continue
        try:
            dataclasses.replace(base(cls), **{name: value})
        except CourseError as error:
            named = cures(str(error))
            kind = {field.name: field.type for field in dataclasses.fields(cls)}[name]
            assert named, error
            for cure in named:
                target = "max_completion_length" if "max_completion_length" in str(error) else name
                if target == name:
                    dataclasses.replace(base(cls), **{name: int(cure) if kind == "int" else cure})
                else:  # the window is too small for a task's budget: the cure is the budget's
                    budget = {task: dataclasses.replace(getattr(base(Profile), task), max_completion_length=int(cure))
                              for task in ("riddles", "piqa")}
                    dataclasses.replace(base(Profile), max_seq_length=value, **budget)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_trl_takes_every_divisor_that_a_message_names(rows, tmp_path):
    from problama_utils.training.run import grpo_config

    settings = GRPOSettings(max_steps=1, dataset_size=1, prompts_per_step=1, num_generations=6,
                            per_device_batch_size=rows)
    config = grpo_config(settings, get_profile("cpu"), seed=0, out=tmp_path)
    assert config.generation_batch_size == 6 and config.per_device_train_batch_size == rows
