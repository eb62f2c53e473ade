"""Can this machine run the course, and what will it cost? `python -m problama_utils.setup` answers in seconds.

One line per check, each trouble with its cure; exit status 0 = can run, 1 = cannot. Nothing is installed, downloaded
or imported: `machine.look` sees, `run_checks` decides.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from problama_utils import CourseError
from problama_utils.config import PROFILE_NAMES, Profile, course_root, get_profile, profile_for_card
from problama_utils.model.memory import ADAM_BYTES, LLAMA_3_1_8B, SMOLLM2_135M, training_bytes
from problama_utils.model.weights import NEEDED_BYTES
from problama_utils.setup.gpu import GPU_LOCK, PLUGIN, vllm_for, vllm_obstacle
from problama_utils.setup.hub import SWITCH, UNGATED_COPIES, is_gated, loads_a_copy, on_hub, refusal_sentence
from problama_utils.setup.install import NEEDED_GB as INSTALLATION_GB
from problama_utils.setup.install import NEWEST, OLDEST, REFUSED, fits
from problama_utils.setup.machine import Machine, gpu_obstacle, lane_obstacle, look, profile_for
from problama_utils.setup.versions import tested_pins, wanted_packages

OK, NOTE, WARNING, PROBLEM = "ok", "note", "warning", "problem"
MEASURED = "assets/results/course.json"
GPU_RAM_GB = 12.0  # a free Colab has 12.7; not measured
LOGS_GB = 0.1


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    name: str
    grade: str  # OK, NOTE (good to know), WARNING (runs, but), PROBLEM (does not run)
    found: str
    cure: str = ""  # what to do; never empty where the grade is WARNING or PROBLEM


def run_checks(machine: Machine, profile: Profile, measured: dict[str, Any] | None = None) -> list[Check]:
    """Return all checks of a profile on a machine, in the order in which they matter.

    `measured` is the record of a measured course (`measured_course`).
    """
    python = _python(machine)
    if python.grade == PROBLEM:
        return [python]  # with another Python nothing else means anything
    checks = [python, _packages(machine, profile), *_conflicts(machine), *_fast_inference(machine, profile)]
    checks += [_gpu(machine, profile), *_gpu_memory(machine, profile), _ram(machine, profile, measured)]
    checks += [_disk(machine, profile), _model(machine, profile), _token(machine, profile)]
    return [*checks, _expect(machine, profile, measured)]


def measured_course() -> dict[str, Any] | None:
    """Return the shipped record of a measured course, or None where it is not here."""
    try:
        return json.loads((course_root() / MEASURED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _python(machine: Machine) -> Check:
    found = ".".join(map(str, machine.python))
    if OLDEST <= machine.python[:2] <= NEWEST:
        return Check("Python", OK, f"{found}, {machine.system}, {machine.cores} cores")
    return Check("Python", PROBLEM, f"{found}, which cannot run the course",
                 "install Python 3.11, 3.12 or 3.13 and run `make course PYTHON=python3.11`")


def _packages(machine: Machine, profile: Profile) -> Check:
    wanted, versions = wanted_packages(profile), machine.packages
    there = [package for package in wanted if package.name in versions]
    missing = [package.name for package in wanted if package not in there]
    wrong = [f"{p.name} {versions[p.name]} (needs {p.ranges})" for p in there if not fits(versions[p.name], p.ranges)]
    if missing or wrong:
        found = "; ".join(filter(None, [missing and f"missing: {', '.join(missing)}", wrong and ", ".join(wrong)]))
        return Check("packages", PROBLEM, found, _install_command(machine, "unsloth" in missing))
    locked = tested_pins(GPU_LOCK) if "vllm" in versions else {}  # its numpy is another
    other = [f"{p.name} {versions[p.name]} (tested: {p.tested})" for p in there
             if p.tested and versions[p.name].split("+")[0] not in (p.tested, locked.get(p.name))]
    if other:
        if machine.host:  # the set-up cell keeps the host's own torch and numpy on purpose
            return Check("packages", NOTE, f"{machine.host}'s own releases are kept: {', '.join(other)}")
        return Check("packages", WARNING, f"untested releases: {', '.join(other)}",
                     f"should they fail, {_install_command(machine)}")
    return Check("packages", OK, f"{len(there)} at the releases that were tested")


def _conflicts(machine: Machine) -> list[Check]:
    found = {name: machine.packages[name] for name in REFUSED if name in machine.packages}
    cure = ("run the set-up cell again" if machine.host else
            "run `python problama_utils/setup/install.py`, which removes it")
    return [Check(name, PROBLEM, f"{version}, beside which peft attaches no LoRA (it needs {REFUSED[name]} or none)",
                  f"{cure}, or `pip uninstall {name}`: the course does not use it")
            for name, version in found.items() if not fits(version, REFUSED[name])]  # fmt: skip


def _install_command(machine: Machine, unsloth: bool = False) -> str:
    if machine.host:
        return "run the set-up cell at the top of the notebook"
    if unsloth:
        return "run `python problama_utils/setup/install.py`: it adds unsloth where nvidia-smi is there"
    return ("run `make setup` in the checkout (delete .venv first, where there is one), or "
            "`python problama_utils/setup/install.py` in an environment of your own")


def _fast_inference(machine: Machine, profile: Profile) -> list[Check]:
    if not profile.fast_inference:
        return []
    version = machine.packages.get("vllm", "")
    why = vllm_obstacle(version, four_bits=profile.load_in_4bit, plugin=PLUGIN in machine.packages)
    if not why:
        return [Check("vLLM", OK, f"{version} samples the completions (fast_inference)")]
    found = f"{why}: unsloth's own `generate` samples the completions, more slowly"
    card = machine.gpu
    if card is None:
        return [Check("vLLM", NOTE, found)]
    release, advice = vllm_for(driver=card.driver, capability=card.capability, system=machine.system,
                               host=machine.host, torch=machine.packages.get("torch", ""),
                               torch_cuda=machine.torch_cuda)  # fmt: skip
    if release:
        return [Check("vLLM", NOTE, found, f"nothing, or {advice}")]
    return [Check("vLLM", NOTE, f"{found}; {advice}")]


def _gpu(machine: Machine, profile: Profile) -> Check:
    needed = profile.backend == "unsloth"
    if machine.gpu is None:
        found = f"none that can be used ({machine.gpu_note})" if machine.gpu_note else "none"
        if needed:
            return Check("GPU", PROBLEM, f"{found}, profile {profile.name} needs one",
                         "choose a GPU runtime, or set PROBLAMA_PROFILE=cpu")
        if machine.gpu_note:
            return Check("GPU", WARNING, found, "fix the driver to use it; the CPU does meanwhile")
        return Check("GPU", OK, "none, and none is needed")
    card = machine.gpu
    capability = "unknown" if card.capability is None else f"{card.capability[0]}.{card.capability[1]}"
    found = f"{card.name}, compute capability {capability}, driver {card.driver}"
    obstacle = gpu_obstacle(card, machine.torch_cuda)
    if obstacle:
        why, cure = obstacle.split(": ", 1)
        cure += ", or set PROBLAMA_PROFILE=cpu" if needed else "; until then the CPU trains"
        return Check("GPU", PROBLEM if needed else WARNING, f"{found}; {why}", cure)
    if needed and (card.capability or (0, 0)) < (8, 0):
        grade = WARNING if profile.name == "slides" else NOTE
        return Check("GPU", grade, f"{found}: no bf16 in hardware (from 8.0 on), so fp16 is used",
                     "set PROBLAMA_PROFILE=colab-t4" if grade == WARNING else "")
    if not needed and (why := lane_obstacle(card)):
        return Check("GPU", NOTE, f"{found}, not used: {why}")
    return Check("GPU", OK, found if needed else f"{found}, not used by profile {profile.name}")


def counted_gpu_gb(profile: Profile) -> float:
    """Return what Llama-3.1-8B's weights, adapter, gradients and Adam take on a card: counted, not measured."""
    return sum(_parts_gb(profile).values())


def _parts_gb(profile: Profile) -> dict[str, float]:
    regime = "qlora" if profile.load_in_4bit else "lora"
    parts = training_bytes(LLAMA_3_1_8B, "grpo", regime, profile.lora.r, adam_bytes=ADAM_BYTES[profile.optim])
    return {name: size / 1e9 for name, size in parts.items()}


def runs_gb(profile: Profile) -> float:
    """Return what the two trainings leave on disk at most: three checkpoints of one while it runs, both adapters.

    A checkpoint holds the adapter in fp32, Adam's moments, and with TRL's own trainer where β > 0 the adapter's start.
    """
    model = SMOLLM2_135M if profile.model_name == "embedded" else LLAMA_3_1_8B
    copies = 2 if profile.backend == "transformers" and (profile.riddles.beta or profile.piqa.beta) else 1
    bytes_each = 3 * (4 * copies + ADAM_BYTES[profile.optim]) + 2 * 4
    return LOGS_GB + bytes_each * model.lora_parameters(profile.lora.r) / 1e9


def _gpu_memory(machine: Machine, profile: Profile) -> list[Check]:
    card = machine.gpu
    if profile.backend != "unsloth" or card is None or card.free_gb is None:
        return []
    need = counted_gpu_gb(profile)
    found = f"{card.free_gb:.1f} of {card.memory_gb or card.free_gb:.1f} GB free; weights, adapter and Adam: {need:.1f}"
    if card.free_gb < need:
        return [Check("GPU memory", PROBLEM, found, "end what else runs on it (`nvidia-smi` lists it), take a larger "
                      "card, or set PROBLAMA_PROFILE=cpu")]
    return [Check("GPU memory", OK, f"{found}, before activations (counted, not measured)")]


def _ram(machine: Machine, profile: Profile, measured: dict[str, Any] | None) -> Check:
    if machine.ram_gb is None or machine.ram_free_gb is None:
        return Check("memory", NOTE, "this system does not tell how much memory it has")
    on_card = profile.backend == "unsloth"
    found = f"{machine.ram_free_gb:.1f} of {machine.ram_gb:.1f} GB free"
    need = GPU_RAM_GB if on_card else _peak_gb(measured)
    why = f"{found}, {'loading 8B weights was planned for' if on_card else 'the largest notebook took'} {need:.1f}"
    if machine.ram_gb < need:
        return Check("memory", WARNING if on_card else PROBLEM, why,
                     "use a machine, a runtime or a container limit with more, or a free Colab")
    if machine.ram_free_gb < need and not on_card:
        return Check("memory", WARNING, why, "close other programs first")
    return Check("memory", OK, found)


def _peak_gb(measured: dict[str, Any] | None) -> float:
    return max(row["peak_memory_gb"] for row in measured["notebooks"]) if measured else 5.0


def download_gb(profile: Profile, model: str) -> float:
    """Return how much a profile's model takes on disk once fetched: Llama's in 4 bits or in bf16, ours, or a folder."""
    if not on_hub(model):
        return NEEDED_BYTES / 1e9 if model == "embedded" else 0.0
    if loads_a_copy(profile) or model in UNGATED_COPIES.values():
        return training_bytes(LLAMA_3_1_8B, "grpo", "qlora", profile.lora.r)["policy"] / 1e9
    return 2 * LLAMA_3_1_8B.parameters / 1e9


def _disk(machine: Machine, profile: Profile) -> Check:
    if machine.disk_free_gb is None:
        return Check("disk", NOTE, "this system does not tell how much disk is free")
    parts = {"runs": runs_gb(profile)}
    if not machine.model_here:
        parts["model"] = download_gb(profile, machine.model)
    if any(package.name not in machine.packages for package in wanted_packages(profile)):
        parts["packages"] = INSTALLATION_GB
    need = sum(parts.values())
    found = f"{machine.disk_free_gb:.1f} GB free, {need:.1f} needed ({', '.join(parts)})"
    if machine.disk_free_gb >= need:
        return Check("disk", OK, found)
    variable = "HF_HOME" if on_hub(machine.model) else "PROBLAMA_HOME"
    return Check("disk", PROBLEM, found, f"free some space, or move the model cache with {variable}")


def _model(machine: Machine, profile: Profile) -> Check:
    name, here, hub = machine.model, machine.model_here, machine.hub
    if name == "embedded":
        found = "is in the cache" if here else "is fetched once, from the package index"
        return Check("model", OK, f"the embedded model {found}; no hub is needed")
    if not on_hub(name):
        if here:
            return Check("model", OK, f"folder {name}")
        return Check("model", PROBLEM, f"there is no folder {name}", "correct PROBLAMA_MODEL or unset it")
    if hub == "open":
        return Check("model", OK, f"the hub gives {name}")
    if here:
        return Check("model", OK, f"{name} is in the cache (hub: {hub or 'not asked'})")
    if hub.startswith("refused"):
        found, cure = refusal_sentence(name, int(hub.split("(")[1][:3])).split(": ", 1)
        if loads_a_copy(profile):
            return Check("model", WARNING, f"{found}; unsloth loads its own ungated copy in 4 bits instead",
                         f"nothing, or set {SWITCH}=1 to ask for a copy yourself")
        return Check("model", PROBLEM, found, cure)
    if hub.startswith("missing"):
        return Check("model", PROBLEM, f"the hub knows no {name}", "correct PROBLAMA_MODEL or unset it")
    why = f"the hub is {hub}" if hub else "HF_HUB_OFFLINE is set"
    return Check("model", PROBLEM, f"{name} is not in the cache, and {why}",
                 "connect to the hub (HF_ENDPOINT names a mirror), or set PROBLAMA_PROFILE=cpu")


def _token(machine: Machine, profile: Profile) -> Check:
    if not on_hub(machine.model) or not is_gated(machine.model):
        return Check("token", OK, "not needed: the model is not gated")
    found = f"{f'in {machine.token}' if machine.token else 'none'}; {machine.model} is gated"
    if machine.token or machine.model_here:
        return Check("token", OK, found)
    where = "add the Colab secret HF_TOKEN" if machine.host == "Colab" else "put your token into HF_TOKEN"
    return Check("token", WARNING if loads_a_copy(profile) else PROBLEM, found,
                 f"accept its licence on the hub and {where}, or set {SWITCH}=1 for an ungated copy")


def _expect(machine: Machine, profile: Profile, measured: dict[str, Any] | None) -> Check:
    if profile.name != "cpu" or not measured or measured.get("profile") != "cpu":
        return Check("expect", NOTE, f"minutes and GB of profile {profile.name} are unmeasured")
    minutes = sum(row["minutes"] for row in measured["notebooks"])
    found = (f"{minutes:.1f} minutes and {_peak_gb(measured):.1f} GB for the whole course, as measured on "
             f"{measured['machine']} ({measured['date']})")
    if machine.fast_bf16 is False:
        found += "; this processor has no AVX512-BF16: fp32 takes longer and more memory"
    return Check("expect", NOTE, found)


# Cards of assets/gpu.md: name, GB as sold, compute capability.
CARDS = (("T4", 16, (7, 5)), ("L4", 24, (8, 9)), ("RTX 4090", 24, (8, 9)), ("A100", 40, (8, 0)), ("A100", 80, (8, 0)),
         ("H100", 80, (9, 0)))  # fmt: skip


def card_tables() -> str:
    """Return the two tables of assets/gpu.md, from the profiles and `model.memory`: what each card and profile gets."""
    cards, profiles = [], {}
    for name, memory_gb, capability in CARDS:
        profile = profile_for_card(memory_gb, capability)
        sampler = (f"vLLM, up to {profile.gpu_memory_utilization * memory_gb:.0f} GB with the weights"
                   if profile.fast_inference else "unsloth's `generate`")
        counted, (major, minor) = counted_gpu_gb(profile), capability
        cards.append([name, f"{memory_gb}", f"{major}.{minor}", f"`{profile.name}`", "bf16" if major >= 8 else "fp16",
                      sampler, f"{counted:.1f}", f"{memory_gb - counted:.1f}"])
        task, rank, parts = profile.riddles, profile.lora.r, _parts_gb(profile)
        adapter = 4 * LLAMA_3_1_8B.lora_parameters(rank) / 1e9
        sizes = [parts["policy"] - adapter, adapter, parts["gradients"], parts["Adam"], counted]
        profiles[profile.name] = [
            f"`{profile.name}`", f"{rank}", f"{LLAMA_3_1_8B.lora_parameters(rank):,}",
            f"{task.completions_per_step} × {task.max_completion_length}",
            f"{task.max_steps:,} / {profile.piqa.max_steps:,}", *(f"{size:.2f}" for size in sizes),
            f"{2 * LLAMA_3_1_8B.parameters / 1e9:.1f}"]
    return "\n".join([
        *_table("card | GB as sold | compute capability | profile | products in | completions | counted GB | GB left",
                cards), "",
        *_table("profile | rank | trainable | group × tokens | steps, riddles / PIQA | weights, 4 bits | adapter | "
                "gradients | Adam | counted | merged model, 16 bits", profiles.values())])  # fmt: skip


def _table(columns: str, rows: Iterable[list[str]]) -> list[str]:
    dashes = "|---" * len(columns.split(" | ")) + "|"
    return [f"| {columns} |", dashes, *(f"| {' | '.join(row)} |" for row in rows)]


def report(checks: Sequence[Check], profile: Profile, model: str, chosen: str = "by hardware") -> str:
    """Return the verdict as text, the decision in its last line; `chosen` says who chose the profile."""
    lines = [f"No Problama: profile {profile.name} ({chosen}), model {model}"]
    for check in checks:
        lines.append(f"  {check.grade:<8} {check.name:<11} {check.found}")
        if check.cure:
            lines.append(f"  {'':<8} {'':<11} -> {check.cure}")
    problems = [check.name for check in checks if check.grade == PROBLEM]
    warnings = sum(check.grade == WARNING for check in checks)
    yes = f"This machine can run it{f', with {warnings} warning(s)' if warnings else ''}."
    return "\n".join([*lines, f"This machine cannot run it yet: fix {', '.join(problems)}." if problems else yes])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILE_NAMES, help="check this profile (default: the one that would run)")
    parser.add_argument("--cards", action="store_true", help="print the tables of assets/gpu.md and look at nothing")
    options = parser.parse_args(arguments)
    if options.cards:
        print(card_tables())
        return 0
    try:
        profile = get_profile(options.profile) if options.profile else None
        machine = look(profile)
        profile = profile or profile_for(machine.gpu, machine.torch_cuda)
    except CourseError as error:  # PROBLAMA_PROFILE names no profile
        print(f"No Problama: {error}")
        return 1
    checks = run_checks(machine, profile, measured_course())
    by_variable = "chosen by PROBLAMA_PROFILE" if os.environ.get("PROBLAMA_PROFILE", "").strip() else "by hardware"
    print(report(checks, profile, machine.model, "chosen by --profile" if options.profile else by_variable))
    return int(any(check.grade == PROBLEM for check in checks))
