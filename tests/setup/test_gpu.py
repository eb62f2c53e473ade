"""Keeping off a card, and what decides whether vLLM samples."""

import dataclasses
import os
import subprocess
import sys

import pytest

import problama_utils
from problama_utils.config import course_root, get_profile
from problama_utils.setup import gpu

# A torch that has one card, unless the variables hide it before its first look, as the real one does.
TORCH = """
import os
class cuda:
    found = None
    @classmethod
    def is_available(cls):
        if cls.found is None:
            cls.found = os.environ.get("CUDA_VISIBLE_DEVICES", "0") != ""
        return cls.found
"""


def run(program, tmp_path, **environment):
    (tmp_path / "torch.py").write_text(TORCH)
    given = {*problama_utils.HIDING, "PROBLAMA_PROFILE"}
    kept = {name: value for name, value in os.environ.items() if name not in given}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          env={**kept, "PYTHONPATH": f"{course_root()}{os.pathsep}{tmp_path}", **environment})


MODULES = ["config", "model", "model.loading", "tasks.registry", "tasks.answers", "rewards.slides", "training.checks",
           "monitoring.curves", "setup.preflight", "evaluation.scoring"]


@pytest.mark.parametrize("module", MODULES)
def test_whatever_is_imported_first_profile_cpu_hides_the_card_before_torch_looks(module, tmp_path):
    program = f"""
import problama_utils.{module}
import torch
print(torch.cuda.is_available())
"""
    assert run(program, tmp_path, PROBLAMA_PROFILE=" cpu ").stdout == "False\n"


@pytest.mark.parametrize("profile", ["", "colab-t4", "slides", "CPU", "nonsense"])
def test_no_other_profile_hides_it(profile, tmp_path):
    program = "import problama_utils.config, torch; print(torch.cuda.is_available())"
    assert run(program, tmp_path, PROBLAMA_PROFILE=profile).stdout == "True\n"


def test_the_variable_may_be_set_after_the_package_and_before_torchs_first_look(tmp_path):
    program = """
import os, torch
from problama_utils.config import detect_profile
os.environ["PROBLAMA_PROFILE"] = "cpu"
print(detect_profile().name, torch.cuda.is_available())
"""
    done = run(program, tmp_path)
    assert done.stdout == "cpu False\n" and not done.stderr


@pytest.mark.parametrize("moment", ["from problama_utils import config", "config.detect_profile()"])
def test_where_torch_has_looked_already_a_sentence_says_what_to_do(moment, tmp_path):
    program = f"""
import os, torch
torch.cuda.is_available()
os.environ["PROBLAMA_PROFILE"] = "cpu"
from problama_utils import config
{moment}
"""
    done = run(program, tmp_path)
    assert done.returncode == 0 and "restart the kernel" in done.stderr
    assert "trains on the CPU all the same" in done.stderr


@pytest.mark.parametrize(
    ("capability", "card", "cpu"),
    [((8, 0), "bfloat16", "native"), ((9, 0), "bfloat16", "native"), ((7, 5), "float16", "native"),
     ((7, 0), "float16", "native")],
)
def test_a_cpu_profile_computes_and_trains_as_without_a_card(capability, card, cpu, monkeypatch, tmp_path):
    import torch

    from problama_utils.model.loading import compute_dtype
    from problama_utils.training.run import grpo_config
    from problama_utils.training.trainer import SharedPrefixGRPOTrainer, trainer_class

    profile = get_profile("cpu")
    native = compute_dtype()
    expected = grpo_config(profile.riddles, profile, seed=1, out=tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert compute_dtype(profile) is native
    assert str(compute_dtype(get_profile("colab-t4"))) == str(compute_dtype()) == f"torch.{card}"
    config = grpo_config(profile.riddles, profile, seed=1, out=tmp_path)
    assert (config.use_cpu, config.bf16, config.fp16) == (True, expected.bf16, expected.fp16)
    assert trainer_class(on_gpu=profile.uses_gpu) is SharedPrefixGRPOTrainer
    assert trainer_class(on_gpu=True) is not SharedPrefixGRPOTrainer


VLLM = [
    # version, plugin, samples with 4-bit weights, samples with bf16 weights
    ("", False, False, False), ("0.19.1", False, False, False), ("0.20.0", False, True, True),
    ("0.26.0+cu130", False, True, True), ("0.27.1", False, True, True), ("0.27.1rc1", False, True, True),
    ("0.28.0", False, False, True), ("0.28.0", True, True, True), ("0.30.0", True, True, True),
    ("0.30.0", False, False, True), ("0.30.1", True, False, False), ("0.31.0", True, False, False),
    ("1.0", True, False, False), ("0.9.2", False, False, False),
]  # fmt: skip


@pytest.mark.parametrize(("version", "plugin", "four_bits", "sixteen"), VLLM)
def test_one_answer_says_whether_vllm_samples(version, plugin, four_bits, sixteen, monkeypatch, tmp_path, capsys):
    from problama_utils.training.run import grpo_config

    there = {"vllm": version, gpu.PLUGIN: "1.0" if plugin else ""}
    monkeypatch.setattr(gpu, "installed_version", lambda name: there[name])
    gpu._tell_once.cache_clear()
    slides = get_profile("slides")
    for profile, expected in ((slides, four_bits), (dataclasses.replace(slides, load_in_4bit=False), sixteen)):
        assert gpu.samples_with_vllm(profile) is gpu.samples_with_vllm(profile) is expected
        assert capsys.readouterr().err.count("profile slides wants vLLM") == (not expected)  # once for two questions
        gpu._tell_once.cache_clear()
    monkeypatch.setattr("trl.trainer.grpo_config.GRPOConfig.__post_init__", lambda self: None)
    assert grpo_config(slides.riddles, slides, seed=1, out=tmp_path).use_vllm is four_bits
    capsys.readouterr()
    assert gpu.samples_with_vllm(get_profile("colab-t4")) is False and capsys.readouterr().err == ""


UNSLOTH = """
import os, sys
early = sorted({"transformers", "trl", "peft"} & set(sys.modules))
assert not early, early
print("compiled into", os.environ["UNSLOTH_COMPILE_LOCATION"])
class FastLanguageModel:
    @staticmethod
    def from_pretrained(**settings):
        print("asked", settings)
        raise SystemExit(0)
"""


@pytest.mark.parametrize(
    ("first", "profile", "seed"),
    [("", "colab-t4", 3), ("", "slides", None), ("import problama_utils.training.run", "slides", None),
     ("import problama_utils.evaluation.scoring, torch", "colab-t4", None),
     ("import benchmarks.arc_study", "colab-t4", None)],
)
def test_unsloth_comes_before_the_libraries_that_it_patches(first, profile, seed, tmp_path):
    (tmp_path / "unsloth.py").write_text(UNSLOTH)
    program = f"""
{first}
from problama_utils.config import get_profile
from problama_utils.model.loading import load_policy
load_policy(get_profile({profile!r}), seed={seed})
"""
    environment = {**os.environ, "PYTHONPATH": f"{course_root()}{os.pathsep}{tmp_path}", "PROBLAMA_HOME": str(tmp_path)}
    environment.pop("UNSLOTH_COMPILE_LOCATION", None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment,
                          cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"compiled into {tmp_path / 'unsloth_compiled_cache'}" in done.stdout
    assert "'fast_inference': False" in done.stdout and ("wants vLLM" in done.stderr) == (profile == "slides")


@pytest.mark.parametrize(
    ("model", "cached", "bar"),
    [("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", False, True), ("meta-llama/Llama-3.1-8B-Instruct", False, True),
     ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", True, False), ("embedded", False, False), (".", False, False)],
)
def test_a_download_of_gigabytes_shows_its_bar_and_nothing_else_does(model, cached, bar, tmp_path, monkeypatch):
    from transformers.utils import logging

    from problama_utils.model import loading as models

    if cached:
        place = tmp_path / f"models--{model.replace('/', '--')}" / "snapshots" / "1"
        place.mkdir(parents=True)
        (place / "model.safetensors").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("PROBLAMA_MODEL", raising=False)
    monkeypatch.setattr(models, "embedded_model_dir", lambda: tmp_path)
    shown = []

    def load(profile, source):
        shown.append(logging.is_progress_bar_enabled())
        raise KeyError("far enough")

    monkeypatch.setattr(models, "_load_with_transformers", load)
    with pytest.raises(KeyError):
        models.load_policy(dataclasses.replace(get_profile("cpu"), model_name=model))
    assert shown == [bar]


def test_the_optimiser_is_named_and_counted(tmp_path):
    """unsloth's own default is adamw_8bit, TRL's adamw_torch_fused: named, none of the two decides."""
    from problama_utils.model.memory import ADAM_BYTES, LLAMA_3_1_8B, training_bytes
    from problama_utils.setup.preflight import counted_gpu_gb, runs_gb
    from problama_utils.training.run import grpo_config

    for name in ("cpu", "colab-t4", "slides"):
        profile = get_profile(name)
        plain = dataclasses.replace(profile, fast_inference=False)
        assert grpo_config(profile.riddles, plain, seed=1, out=tmp_path).optim == profile.optim
        assert profile.optim in ADAM_BYTES
    slides = get_profile("slides")
    full = sum(training_bytes(LLAMA_3_1_8B, "grpo", "qlora", 64).values()) / 1e9
    adapter_gb = LLAMA_3_1_8B.lora_parameters(64) / 1e9
    assert full - counted_gpu_gb(slides) == pytest.approx((8 - 2.03125) * adapter_gb)
    assert runs_gb(slides) == pytest.approx(0.1 + (3 * (4 + 2.03125) + 8) * adapter_gb)
    assert runs_gb(get_profile("cpu")) < 0.5 < runs_gb(get_profile("colab-t4")) < runs_gb(slides)


@pytest.mark.parametrize("task", ["riddles", "piqa"])
@pytest.mark.parametrize("name", ["cpu", "colab-t4", "slides"])
def test_a_run_saves_often_enough_to_lose_little_and_seldom_enough_to_cost_little(name, task):
    settings = getattr(get_profile(name), task)
    assert 2 <= settings.max_steps / settings.save_every <= 40
    assert settings.save_every <= 100


@pytest.mark.parametrize("arguments", [[], ["--publish"], ["--only", "01"]])
@pytest.mark.parametrize(
    ("asked", "runs"), [(None, "cpu"), ("cpu", "cpu"), ("colab-t4", "colab-t4"), ("slides", "slides"), ("", "")]
)
def test_the_course_runs_on_the_cpu_unless_another_profile_is_asked_for(arguments, asked, runs, monkeypatch):
    from tools import course

    monkeypatch.setenv("PROBLAMA_PROFILE", asked or "")  # so that it is put back afterwards
    if asked is None:
        monkeypatch.delenv("PROBLAMA_PROFILE")
    seen = []
    monkeypatch.setattr(course, "run_course", lambda *_, **__: seen.append(os.environ["PROBLAMA_PROFILE"]) or 0)
    assert course.main(arguments) == 0 and seen == [runs]


@pytest.mark.parametrize(("profile", "card", "told"), [("cpu", True, True), ("cpu", False, False),
                                                       ("colab-t4", True, False), ("", True, False)])  # fmt: skip
def test_a_card_that_the_course_leaves_idle_is_mentioned(profile, card, told, monkeypatch, capsys):
    from tools import course

    monkeypatch.setenv("PROBLAMA_PROFILE", profile)
    monkeypatch.setattr(course.shutil, "which", lambda name: f"/usr/bin/{name}" if card else None)
    monkeypatch.setattr(course, "run_course", lambda *arguments, **options: 0)
    assert course.main([]) == 0
    assert ("the GPU is not used" in capsys.readouterr().out) is told


BROKEN = ["libcudart.so.13: cannot open shared object file", "undefined symbol: _ZN3c104cuda9SetDeviceEi", "",
          "No module named 'vllm._C'", "cannot import name 'X' from 'vllm'\nand a second line",
          "Unsloth: Please install vLLM before enabling `fast_inference`!", "DLL load failed", "x" * 5000,
          "numpy.core.multiarray failed to import", "GLIBC_2.34 not found"]  # fmt: skip


@pytest.mark.parametrize("reason", BROKEN, ids=range(len(BROKEN)))
def test_a_vllm_that_cannot_be_loaded_is_a_sentence_and_other_import_errors_stay_what_they_are(reason, monkeypatch):
    from problama_utils import CourseError
    from problama_utils.model import loading as models

    def load(**settings):
        raise ImportError(reason)

    unsloth = type(sys)("unsloth")
    unsloth.FastLanguageModel = type("FastLanguageModel", (), {"from_pretrained": staticmethod(load)})
    monkeypatch.setitem(sys.modules, "unsloth", unsloth)
    monkeypatch.setattr(gpu, "installed_version", lambda name: {"vllm": "0.27.1"}.get(name, ""))
    monkeypatch.setattr(models, "installed_version", gpu.installed_version)
    with pytest.raises(CourseError, match="^vLLM 0.27.1 is installed but .*pip uninstall vllm") as caught:
        models.load_policy(get_profile("slides"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    with pytest.raises(ImportError):
        models.load_policy(get_profile("colab-t4"))
