"""Keeping off a card, and what decides whether vLLM samples."""

import dataclasses
import os
import subprocess
import sys

import pytest

from problama_utils import gpu
from problama_utils.config import course_root, get_profile

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
    kept = {name: value for name, value in os.environ.items() if name not in (*gpu.HIDING, "PROBLAMA_PROFILE")}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          env={**kept, "PYTHONPATH": f"{course_root()}{os.pathsep}{tmp_path}", **environment})


MODULES = ["config", "models", "problems", "prompts", "rewards", "training_checks", "monitoring", "preflight",
           "evaluation"]


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

    from problama_utils.models import compute_dtype
    from problama_utils.trainer import SharedPrefixGRPOTrainer, trainer_class
    from problama_utils.training import grpo_config

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
    from problama_utils.training import grpo_config

    there = {"vllm": version, gpu.PLUGIN: "1.0" if plugin else ""}
    monkeypatch.setattr(gpu, "installed", lambda name: there[name])
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
