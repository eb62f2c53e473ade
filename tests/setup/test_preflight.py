"""The preflight on simulated machines: what runs, what does not, and which cure each trouble comes with."""

import ast
import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from problama_utils.config import course_root, detect_profile, get_profile
from problama_utils.setup import gpu as lane
from problama_utils.setup import machine as machine_module
from problama_utils.setup import preflight
from problama_utils.setup import versions as tested_versions
from problama_utils.setup.hub import UNGATED_COPIES
from problama_utils.setup.install import fits
from problama_utils.setup.machine import Gpu, Machine, complaint_of, look, parse_nvidia_smi, profile_for
from problama_utils.setup.preflight import NOTE, OK, PROBLEM, WARNING, measured_course, report, run_checks
from problama_utils.setup.versions import wanted_packages

T4 = Gpu("Tesla T4", (7, 5), 16.1, 15.8, "580.82.07")
A100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 42.9, 42.4, "580.95.05")
SLIDES_MODEL = get_profile("slides").model_name
TOKEN = "hf_" + "Sec" * 11


def pinned(profile, **other):
    pins = tested_versions.tested_pins()
    versions = {p.name: p.tested or pins.get(p.name, "1.0") for p in wanted_packages(get_profile(profile))}
    return {**versions, **other}


def laptop(**differences):
    """A machine on which profile `cpu` runs without a word."""
    seen = Machine(
        python=(3, 11, 7), system="Linux x86_64", cores=4, fast_bf16=True, ram_gb=16.0, ram_free_gb=12.0,
        disk_free_gb=50.0, packages=pinned("cpu"), torch_cuda="", model="embedded", model_here=True,
    )  # fmt: skip
    return dataclasses.replace(seen, **differences)


def with_card(profile, card, **differences):
    """A machine on which a GPU profile runs, its model open on the hub."""
    model = get_profile(profile).model_name
    settled = {"gpu": card, "torch_cuda": "13.0", "packages": pinned(profile), "model": model, "model_here": False,
               "hub": "open", "token": "the environment variable HF_TOKEN"}
    return laptop(**{**settled, **differences})


SIMULATED = [
    # name, machine, profile, runs, {check: grade}, word in a cure
    ("laptop", laptop(), "cpu", True, {"GPU": OK, "token": OK, "model": OK}, ""),
    ("laptop without network or model yet", laptop(model_here=False), "cpu", True, {"model": OK}, ""),
    ("laptop told to run the slides", laptop(packages=pinned("slides"), model=SLIDES_MODEL, hub="open"), "slides",
     False, {"GPU": PROBLEM}, "PROBLAMA_PROFILE=cpu"),
    ("T4", with_card("colab-t4", T4, token=""), "colab-t4", True, {"GPU memory": OK, "token": OK}, ""),
    ("A100", with_card("slides", A100, packages=pinned("slides", vllm="0.27.1")), "slides", True,
     {"GPU": OK, "GPU memory": OK, "vLLM": OK, "token": OK}, ""),
    ("T4 told to run the slides", with_card("slides", T4), "slides", True, {"GPU": WARNING}, "colab-t4"),
    ("A100 without vLLM", with_card("slides", A100, packages=pinned("colab-t4")), "slides", True, {"vLLM": NOTE},
     "pip install -r requirements-gpu.txt"),
    ("A100 under the lock with vLLM",
     with_card("slides", A100, packages=pinned("slides", vllm="0.27.1", numpy="2.3.5")), "slides", True,
     {"vLLM": OK, "packages": OK}, ""),
    ("Colab with the torchao of its image", laptop(packages=pinned("cpu", torchao="0.10.0"), host="Colab"), "cpu",
     False, {"torchao": PROBLEM}, "set-up cell"),
    ("laptop with an old torchao", laptop(packages=pinned("cpu", torchao="0.15.0+cpu")), "cpu", False,
     {"torchao": PROBLEM}, "pip uninstall torchao"),
    ("T4 with an old torchao", with_card("colab-t4", T4, packages=pinned("colab-t4", torchao="0.12.0")), "colab-t4",
     False, {"torchao": PROBLEM}, "install.py"),
    ("laptop with a new torchao", laptop(packages=pinned("cpu", torchao="0.17.0")), "cpu", True, {"packages": OK}, ""),
    ("A100 with a vLLM that TRL does not know", with_card("slides", A100, packages=pinned("slides", vllm="0.31.0")),
     "slides", True, {"vLLM": NOTE}, ""),
    ("Colab's own numpy", laptop(packages=pinned("cpu", numpy="2.1.3"), host="Colab"), "cpu", True, {"packages": NOTE},
     ""),
    ("T4 on which profile cpu runs for want of unsloth", laptop(gpu=T4, torch_cuda="13.0"), "cpu", True, {"GPU": NOTE},
     ""),
    ("A100 that others use", with_card("slides", dataclasses.replace(A100, free_gb=3.0)), "slides", False,
     {"GPU memory": PROBLEM}, "nvidia-smi"),
    ("4 GB card", with_card("colab-t4", Gpu("GTX 1650", (7, 5), 4.3, 4.0, "580.1")), "colab-t4", False,
     {"GPU memory": PROBLEM}, "larger card"),
    ("2 GB disk, nothing installed", laptop(disk_free_gb=2.0, packages={}), "cpu", False,
     {"disk": PROBLEM, "packages": PROBLEM}, "free some space"),
    ("2 GB disk, all installed and cached", laptop(disk_free_gb=2.0), "cpu", True, {"disk": OK}, ""),
    ("2 GB disk and a T4", with_card("colab-t4", T4, disk_free_gb=2.0), "colab-t4", False, {"disk": PROBLEM},
     "HF_HOME"),
    ("old driver", with_card("slides", dataclasses.replace(A100, driver="470.256.02")), "slides", False,
     {"GPU": PROBLEM}, "update it to 580"),
    ("old driver, CPU meanwhile", laptop(gpu=dataclasses.replace(A100, driver="470.256.02"), torch_cuda="12.8"), "cpu",
     True, {"GPU": WARNING}, "update it to 525"),
    ("driver that does not answer", laptop(gpu_note="NVIDIA-SMI has failed"), "cpu", True, {"GPU": WARNING}, "driver"),
    ("Kaggle's P100", with_card("colab-t4", Gpu("Tesla P100-PCIE-16GB", (6, 0), 17.1, 16.8, "580.1"), host="Kaggle"),
     "colab-t4", False, {"GPU": PROBLEM}, "GPU T4 x2"),
    ("CPU build of torch beside a GPU", laptop(gpu=A100), "cpu", True, {"GPU": WARNING}, "one for CUDA"),
    ("missing token, unsloth in 4 bits", with_card("slides", A100, hub="refused (401)", token=""), "slides", True,
     {"token": WARNING, "model": WARNING}, "PROBLAMA_UNGATED=1"),
    ("old Python", laptop(python=(3, 9, 18)), "cpu", False, {"Python": PROBLEM}, "Python 3.11"),
    ("too new a Python", laptop(python=(3, 15, 0)), "cpu", False, {"Python": PROBLEM}, "Python 3.11"),
    ("too little RAM", laptop(ram_gb=2.1, ram_free_gb=1.0), "cpu", False, {"memory": PROBLEM}, "free Colab"),
    ("RAM in use", laptop(ram_free_gb=1.0), "cpu", True, {"memory": WARNING}, "close other programs"),
    ("wrong release", laptop(packages=pinned("cpu", trl="1.16.0")), "cpu", False, {"packages": PROBLEM}, "make setup"),
    ("untested release", laptop(packages=pinned("cpu", numpy="2.0.2")), "cpu", True, {"packages": WARNING},
     "make setup"),
    ("Colab before the set-up cell", laptop(packages={"torch": "2.13.0", "numpy": "2.4.6"}, host="Colab"), "cpu", False,
     {"packages": PROBLEM}, "set-up cell"),
    ("A100 without unsloth", with_card("slides", A100, packages=pinned("cpu", vllm="1")), "slides", False,
     {"packages": PROBLEM}, "install.py"),
    ("T4 without network", with_card("colab-t4", T4, hub="unreachable (no route)"), "colab-t4", False,
     {"model": PROBLEM}, "PROBLAMA_PROFILE=cpu"),
    ("T4 without network, weights cached", with_card("colab-t4", T4, hub="", model_here=True), "colab-t4", True,
     {"model": OK}, ""),
    ("misspelt model", with_card("slides", A100, model="unsloth/nothing", hub="missing (404)"), "slides", False,
     {"model": PROBLEM}, "PROBLAMA_MODEL"),
    ("folder that is not there", laptop(model="./nowhere/at/all", model_here=False), "cpu", False, {"model": PROBLEM},
     "PROBLAMA_MODEL"),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "profile", "runs", "grades", "cure"), [row[1:] for row in SIMULATED],
                         ids=[row[0] for row in SIMULATED])  # fmt: skip
def test_a_simulated_machine_gets_the_right_verdict_and_cure(seen, profile, runs, grades, cure):
    checks = run_checks(seen, get_profile(profile), measured_course())
    found = {check.name: check.grade for check in checks}
    assert (PROBLEM not in found.values()) is runs, report(checks, get_profile(profile), seen.model)
    assert {name: found[name] for name in grades} == grades
    assert cure in " ".join(check.cure for check in checks)
    for check in checks:
        assert check.grade not in (WARNING, PROBLEM) or check.cure, f"{check.name} has no cure"


LINUX, PLAIN = "Linux x86_64", {"host": "", "torch": "2.13.0", "torch_cuda": "13.0"}
ON_COLAB = {"host": "Colab", "torch": "2.11.0+cu128", "torch_cuda": "12.8"}
VLLMS = [
    # driver, compute capability, system, what else is there → release, words of the sentence
    ("580.95.05", (8, 0), LINUX, PLAIN, "0.27.1", "pip install -r requirements-gpu.txt"),
    ("595.10", (9, 0), LINUX, PLAIN, "0.27.1", "fresh environment"),
    ("580.82.07", (7, 5), LINUX, PLAIN, "0.27.1", "fresh environment"),
    ("580", None, LINUX, PLAIN, "0.27.1", "fresh environment"),
    ("[N/A]", (12, 1), LINUX, PLAIN, "0.27.1", "driver 580 or newer"),
    ("580.95.05", (8, 0), LINUX, {"host": "", "torch": "", "torch_cuda": None}, "0.27.1", "requirements-gpu.txt"),
    ("580.95.05", (8, 0), LINUX, {"host": "", "torch": "2.13.0+cpu", "torch_cuda": ""}, "0.27.1", "fresh environment"),
    ("580.95.05", (8, 0), LINUX, {"host": "", "torch": "2.14.1", "torch_cuda": "13.0"}, "0.27.1", "fresh environment"),
    ("579.99", (8, 0), LINUX, PLAIN, "", "driver of 580 or newer, and this one is 579.99"),
    ("550.54.15", (8, 9), LINUX, PLAIN, "", "this one is 550.54.15"),
    ("470.256.02", (7, 5), LINUX, PLAIN, "", "this one is 470"),
    ("580.95.05", (7, 0), LINUX, PLAIN, "", "none below compute capability 7.5"),
    ("580.95.05", (6, 0), LINUX, ON_COLAB | {"host": "Kaggle"}, "", "none below compute capability 7.5"),
    ("580.95.05", (8, 0), "Windows AMD64", PLAIN, "", "Windows AMD64"),
    ("580.95.05", (12, 1), "Linux aarch64", PLAIN, "", "Linux aarch64"),
    ("580.95.05", (7, 5), LINUX, ON_COLAB, "", "CUDA 12.8, and vLLM releases that TRL takes need 2.11 or"),
    ("550.54.15", (8, 0), LINUX, ON_COLAB, "", "for CUDA 13"),
    ("580.95.05", (7, 5), LINUX, ON_COLAB | {"torch": "2.11.0+cpu", "torch_cuda": ""}, "", "a build for CPUs"),
    ("580.95.05", (8, 0), LINUX, ON_COLAB | {"torch": "2.11.0+cu130", "torch_cuda": "13.0"}, "0.26.0", "vllm==0.26.0"),
    ("550.54.15", (8, 0), LINUX, ON_COLAB | {"torch": "2.11.0+cu130", "torch_cuda": "13.0"}, "", "this one is 550"),
    ("580.95.05", (8, 0), LINUX, ON_COLAB | {"torch": "2.13.0+cu130", "torch_cuda": "13.0"}, "0.27.1", "vllm==0.27.1"),
    ("580.95.05", (8, 0), LINUX, ON_COLAB | {"torch": "2.12.1+cu130", "torch_cuda": "13.0"}, "", "torch 2.12.1"),
    ("580.95.05", (8, 0), LINUX, ON_COLAB | {"torch": "2.14.0+cu130", "torch_cuda": "13.0"}, "", "torch 2.14.0"),
    ("580.95.05", (8, 0), LINUX, ON_COLAB | {"torch": "", "torch_cuda": None}, "0.27.1", "requirements-gpu.txt"),
]  # fmt: skip


@pytest.mark.parametrize(("driver", "capability", "system", "there", "release", "words"), VLLMS)
def test_one_function_says_which_vllm_goes_with_a_card_and_preflight_and_the_set_up_repeat_it(
        driver, capability, system, there, release, words, monkeypatch):  # fmt: skip
    found, sentence = lane.vllm_for(driver=driver, capability=capability, system=system, **there)
    assert found == release and words in sentence and "\n" not in sentence
    assert not found or lane.vllm_obstacle(found, four_bits=True, plugin=False) == ""  # what it names, TRL takes
    assert "pip install vllm`" not in sentence  # without a release it brings a torch of its own

    card = Gpu("card", capability, 42.9, 42.4, driver)
    packages = pinned("colab-t4", torch=there["torch"])
    seen = with_card("slides", card, packages=packages, system=system, host=there["host"],
                     torch_cuda=there["torch_cuda"])  # fmt: skip
    check = {check.name: check for check in run_checks(seen, get_profile("slides"))}["vLLM"]
    assert check.grade == NOTE and sentence in (check.cure if release else check.found)

    monkeypatch.setattr(machine_module, "_gpu", lambda: (card, ""))
    monkeypatch.setattr(machine_module, "_system", lambda: system)
    monkeypatch.setattr(machine_module, "_host", lambda: there["host"])
    monkeypatch.setattr(machine_module, "_torch_cuda", lambda: there["torch_cuda"])
    monkeypatch.setattr(machine_module, "installed_version", lambda name: {"torch": there["torch"]}.get(name, ""))
    shown = machine_module.vllm_sentence()
    assert sentence in shown and shown.count("\n") == 1
    assert ("only profile slides" if release else "sampled without it") in shown


def test_the_set_up_is_silent_on_vllm_without_a_card_and_where_vllm_is_there(monkeypatch):
    monkeypatch.setattr(machine_module, "_gpu", lambda: (None, "no driver"))
    assert machine_module.vllm_sentence() == ""
    monkeypatch.setattr(machine_module, "_gpu", lambda: (A100, ""))
    monkeypatch.setattr(machine_module, "installed_version", lambda name: "0.27.1")
    assert machine_module.vllm_sentence() == ""


def test_the_lock_and_environment_yml_hold_what_the_sentence_promises():
    lock = tested_versions.tested_pins(lane.GPU_LOCK)
    assert lock["vllm"] == lane.LOCKED_VLLM == lane.VLLMS_OF_TORCH[tuple(map(int, lock["torch"].split(".")[:2]))]
    text = (course_root() / "environment.yml").read_text(encoding="utf-8").split("name:")[0]
    for word in (lane.GPU_LOCK, lane.LOCKED_VLLM, str(lane.OLDEST_DRIVERS[13]), "7.5", "Colab"):
        assert word in text


def test_a_gated_model_without_token_is_a_problem_where_no_copy_steps_in():
    """transformers asks the hub for the very name; unsloth in 4 bits asks for its own copy."""
    plain = dataclasses.replace(get_profile("slides"), backend="transformers", fast_inference=False)
    seen = with_card("slides", A100, hub="refused (403)", token="", packages=pinned("cpu"))
    checks = {check.name: check for check in run_checks(seen, plain)}
    assert checks["model"].grade == checks["token"].grade == PROBLEM
    assert "PROBLAMA_UNGATED=1" in checks["token"].cure and "PROBLAMA_UNGATED=1" in checks["model"].cure


def test_the_ungated_copy_needs_no_token(monkeypatch):
    monkeypatch.setenv("PROBLAMA_UNGATED", "1")
    seen = with_card("slides", A100, model=UNGATED_COPIES[SLIDES_MODEL.lower()], token="")
    checks = {check.name: check.grade for check in run_checks(seen, get_profile("slides"))}
    assert checks["token"] == checks["model"] == OK


def test_minutes_and_memory_come_from_the_measured_course_and_gpu_profiles_admit_they_have_none():
    measured = measured_course()
    minutes = sum(row["minutes"] for row in measured["notebooks"])
    said = run_checks(laptop(), get_profile("cpu"), measured)[-1].found
    assert f"{minutes:.1f} minutes" in said and measured["machine"] in said
    assert "unmeasured" in run_checks(with_card("slides", A100), get_profile("slides"), measured)[-1].found
    assert "unmeasured" in run_checks(laptop(), get_profile("cpu"), None)[-1].found


NVIDIA_SMI = [  # as printed by --format=csv,noheader,nounits
    ("Tesla T4, 7.5, 15360, 15101, 550.54.15", "Tesla T4", (7, 5), 16.1),
    ("NVIDIA A100-SXM4-40GB, 8.0, 40960, 40426, 535.104.05", "NVIDIA A100-SXM4-40GB", (8, 0), 42.9),
    ("NVIDIA H100 80GB HBM3, 9.0, 81559, 81008, 580.65.06\nNVIDIA H100 80GB HBM3, 9.0, 81559, 81008, 580.65.06",
     "NVIDIA H100 80GB HBM3", (9, 0), 85.5),
    ("NVIDIA GB10, 12.1, [N/A], [N/A], 580.95.05", "NVIDIA GB10", (12, 1), None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "capability", "gigabytes"), NVIDIA_SMI)
def test_real_lines_of_nvidia_smi_are_read(text, name, capability, gigabytes):
    card = parse_nvidia_smi(text + "\n")[0]
    assert (card.name, card.capability) == (name, capability)
    assert card.memory_gb is None if gigabytes is None else round(card.memory_gb, 1) == gigabytes


def fake_nvidia_smi(folder, script, monkeypatch):
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_driver_that_does_not_know_compute_cap_is_to_be_updated(tmp_path, monkeypatch):
    script = 'echo "Field \\"compute_cap\\" is not a valid field to query."; exit 2'
    fake_nvidia_smi(tmp_path, script, monkeypatch)
    card, note = machine_module._gpu()
    assert card is None and note == "its driver is too old: update it to 580 or newer"


def test_a_broken_driver_is_quoted_in_one_sentence(tmp_path, monkeypatch):
    script = ("echo \"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
              'latest NVIDIA driver is installed and running."; exit 9')  # fmt: skip
    fake_nvidia_smi(tmp_path, script, monkeypatch)
    card, note = machine_module._gpu()
    assert card is None and note == "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver"
    assert complaint_of("No devices were found\n") == "No devices were found"


def test_the_card_that_cuda_visible_devices_names_is_the_one_that_counts(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, 'echo "Tesla T4, 7.5, 15360, 15101, 580.1"; echo "NVIDIA L4, 8.9, 23034, 22500, 580.1"',
                    monkeypatch)  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine_module._gpu()[0].name == "NVIDIA L4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_module._gpu()[0] is None


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize("unsloth", [True, False])
@pytest.mark.parametrize("card", [None, T4, A100, Gpu("NVIDIA L4", (8, 9), 24.2, 23.0, "580.1"),
                                  Gpu("Quadro RTX 8000", (7, 5), 51.0, 50.0, "580.1"),
                                  Gpu("GTX 1650", (7, 5), 4.3, 4.0, "580.1"), Gpu("RTX 4070", (8, 9), 12.9, 12.0, "5"),
                                  Gpu("GTX TITAN Xp", (6, 1), 14.9, 14.0, "580.1")])  # fmt: skip
def test_it_predicts_the_profile_that_the_course_will_pick(card, unsloth, monkeypatch):
    import torch

    class Properties:
        total_memory = card and card.memory_gb * 1e9

    monkeypatch.delenv("PROBLAMA_PROFILE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=0: card.capability)
    monkeypatch.setattr(lane, "installed_version", lambda name: "2026.10.9" if unsloth else "")
    assert profile_for(card, "13.0") == detect_profile()
    if card and not unsloth:
        assert detect_profile().name == "cpu"


def test_the_profile_named_by_hand_wins(monkeypatch):
    monkeypatch.setenv("PROBLAMA_PROFILE", "slides")
    assert profile_for(None, None) == detect_profile() == get_profile("slides")


@pytest.mark.slow  # imports torch
def test_this_machine_is_seen_as_it_is(monkeypatch):
    import torch

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    seen = look(get_profile("cpu"))
    assert seen.python == tuple(sys.version_info[:3])
    assert seen.packages["torch"] == torch.__version__
    assert (seen.torch_cuda or None) == torch.version.cuda
    assert seen.hub == "" and seen.model == "embedded"  # the hub is not asked about a model that needs none
    assert 0 < seen.ram_free_gb < seen.ram_gb and seen.disk_free_gb > 0
    assert seen.fast_bf16 is torch.cpu._is_avx512_bf16_supported()
    assert seen.token == "the environment variable HF_TOKEN"
    assert TOKEN not in repr(seen) + report(run_checks(seen, get_profile("cpu")), get_profile("cpu"), seen.model)


@pytest.mark.parametrize(("version", "ranges", "answer"), [
    ("2.13.0+cpu", ">=2.11,<2.15", True), ("2.15.0", ">=2.11,<2.15", False), ("5.17", ">=5.17.0", True),
    ("1.15.0rc1", ">=1.14.2,<1.15", False), ("3", "", True), ("1.9", ">=1.10", False),
])  # fmt: skip
def test_versions_are_compared_as_numbers(version, ranges, answer):
    assert fits(version, ranges) is answer


def test_the_ranges_are_those_of_pyproject_and_each_tested_release_lies_within_its_own():
    import tomllib

    project = tomllib.loads((course_root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = wanted_packages(get_profile("cpu"))
    assert {package.name + package.ranges for package in wanted} == set(project["dependencies"])
    assert all(package.tested and fits(package.tested, package.ranges) for package in wanted)


@pytest.mark.parametrize("name", ["__init__", "config", "model/memory", "model/weights", "setup/gpu", "setup/hub",
                                  "setup/install", "setup/machine", "setup/preflight", "setup/versions"])
def test_an_older_python_can_read_it_far_enough_to_be_told_so(name):
    ast.parse((course_root() / "problama_utils" / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 9))


def run(*arguments, **environment):
    command = [sys.executable, "-m", "problama_utils.setup", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_the_command_gives_its_verdict_by_exit_status_without_importing_torch():
    done = run("--profile", "slides", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", HF_TOKEN=TOKEN)
    assert done.returncode == 1 and "problem" in done.stdout and "cannot run" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert run(PROBLAMA_PROFILE="laptop").returncode == 1
    program = ("import sys; import problama_utils.setup.preflight; "
               "sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))")
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_command_answers_within_five_seconds_even_where_nothing_else_answers(tmp_path, monkeypatch):
    """The hub's address leads nowhere and nvidia-smi hangs; counted is what waits, not what a busy machine adds."""
    fake_nvidia_smi(tmp_path, "exec sleep 30", monkeypatch)
    started = time.perf_counter()
    done = run("--profile", "colab-t4", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://10.255.255.1:9",
               NO_PROXY="*", no_proxy="*")
    seconds = time.perf_counter() - started
    assert done.returncode == 1 and "no answer within 2.5 s" in done.stdout and "unreachable" in done.stdout
    baseline = time.perf_counter()
    run("--help")
    assert seconds - (time.perf_counter() - baseline) < machine_module.NVIDIA_SECONDS + machine_module.HUB_SECONDS + 0.5


def test_a_broken_record_of_the_course_does_not_stop_it(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "course_root", lambda: tmp_path)
    assert measured_course() is None
    (tmp_path / "assets/results").mkdir(parents=True)
    (tmp_path / preflight.MEASURED).write_text("{")
    assert measured_course() is None
    (tmp_path / preflight.MEASURED).write_text(json.dumps({"notebooks": []}))
    assert measured_course() == {"notebooks": []}


def test_the_page_on_cards_holds_the_tables_that_are_counted_and_says_that_no_card_was_used(monkeypatch, capsys):
    from problama_utils.config import course_root
    from problama_utils.setup import preflight

    page = (course_root() / "assets" / "gpu.md").read_text(encoding="utf-8")
    assert preflight.card_tables() in page, "write into assets/gpu.md what `preflight --cards` prints"
    assert "Nothing on this page has run on a GPU" in page and len(page.splitlines()) <= 120
    for name in ("PROBLAMA_PROFILE", "PROBLAMA_UNGATED", "PROBLAMA_MODEL"):  # the tables are nobody's environment
        monkeypatch.setenv(name, "1")
    assert preflight.main(["--cards"]) == 0 and capsys.readouterr().out.strip() in page


def test_each_card_gets_the_profile_that_its_table_says():
    from problama_utils.model.memory import LLAMA_3_1_8B, training_bytes
    from problama_utils.setup import preflight

    cards, profiles = (part.splitlines()[2:] for part in preflight.card_tables().split("\n\n"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in cards]
    assert [(row[0], row[1], row[3], row[4]) for row in rows] == [
        ("T4", "16", "`colab-t4`", "fp16"), ("L4", "24", "`colab-t4`", "bf16"),
        ("RTX 4090", "24", "`colab-t4`", "bf16"),
        ("A100", "40", "`slides`", "bf16"), ("A100", "80", "`slides`", "bf16"), ("H100", "80", "`slides`", "bf16")]
    assert all(float(row[7]) == pytest.approx(float(row[1]) - float(row[6]), abs=0.051) for row in rows)
    for line in profiles:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rank, (weights, adapter, gradients, adam, counted) = int(cells[1]), map(float, cells[5:10])
        parts = training_bytes(LLAMA_3_1_8B, "grpo", "qlora", rank)
        assert weights + adapter == pytest.approx(parts["policy"] / 1e9, abs=0.011)
        assert gradients == pytest.approx(parts["gradients"] / 1e9, abs=0.006)
        assert weights + adapter + gradients + adam == pytest.approx(counted, abs=0.021)
