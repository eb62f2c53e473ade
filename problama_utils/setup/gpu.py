"""What the GPU lane finds here: a card that will do, unsloth, vLLM.

Standard library only; torch and unsloth are not imported, what is installed is read from the packages' own metadata.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from problama_utils import tell
from problama_utils.setup.install import installed_version, release

if TYPE_CHECKING:
    from problama_utils.config import Profile

SMALLEST_CARD_GB = 14.0  # Llama-3.1-8B in 4 bits, its adapter and a group of completions; a T4 has 15.8
OLDEST_CARD = (7, 0)  # compute capability; unsloth's own limit
TRLS_VLLM = ((0, 20), (0, 30, 0))  # releases that TRL 1.14.2 works with (trl/import_utils.py)
GPU_LOCK, LOCKED_VLLM = "requirements-gpu.txt", "0.27.1"  # torch 2.13 from the index: CUDA 13
VLLMS_OF_TORCH = {(2, 11): "0.26.0", (2, 13): LOCKED_VLLM}  # the newest for a torch, by its metadata; all for CUDA 13
# CUDA's major release → the first driver that runs it, and the lowest compute capability that it knows
OLDEST_DRIVERS = {12: 525, 13: 580}
OLDEST_CARDS = {13: (7, 5)}
PLUGIN, NEEDS_PLUGIN = "vllm-bnb-plugin", (0, 28)  # from there on vLLM reads 4-bit weights through a package of its own


def card_obstacle(memory_gb: float, capability: tuple[int, int]) -> str:
    """Return why the GPU profiles cannot train on a card here, with the cure, or "" where they can.

    >>> card_obstacle(8.0, (7, 5)).split(":")[0]
    'the card has 8.0 GB, the GPU profiles need 14'
    """
    if memory_gb < SMALLEST_CARD_GB:
        return (f"the card has {memory_gb:.1f} GB, the GPU profiles need {SMALLEST_CARD_GB:.0f}: take a larger card, "
                "such as Colab's T4")
    if capability < OLDEST_CARD:
        return (f"the card has compute capability {capability[0]}.{capability[1]}, unsloth needs {OLDEST_CARD[0]}."
                f"{OLDEST_CARD[1]}: choose another card (on Kaggle \"GPU T4 x2\")")
    if not installed_version("unsloth"):
        return "unsloth is not installed: run `python problama_utils/setup/install.py` in this environment"
    return ""


def vllm_obstacle(version: str, *, four_bits: bool, plugin: bool) -> str:
    """Return why an installed vLLM cannot sample for TRL, or "" where it can.

    Args:
        version: the installed release, "" = none.
        four_bits: the base model's weights are in 4 bits.
        plugin: the package that reads them for newer releases is installed.
    """
    if not version:
        return "vLLM is not installed"
    found = release(version)
    if not TRLS_VLLM[0] <= found <= TRLS_VLLM[1]:
        low, high = (".".join(map(str, bound)) for bound in TRLS_VLLM)
        return f"vLLM {version} is installed, TRL works with {low} to {high}"
    if four_bits and found >= NEEDS_PLUGIN and not plugin:
        return f"vLLM {version} reads 4-bit weights only with {PLUGIN}, which is not installed"
    return ""


def vllm_for(*, driver: str, capability: tuple[int, int] | None, system: str, host: str, torch: str,
             torch_cuda: str | None) -> tuple[str, str]:  # fmt: skip
    """Return `(release, sentence)`: the vLLM to install for a card, "" = none, and how, or why not.

    A notebook host keeps its own torch, so that torch decides there; elsewhere the lock goes into a fresh environment,
    and its torch is built for CUDA 13.

    Args: as in `machine.Machine` and `machine.Gpu`; `torch` is the installed release, "" = none.
    """
    needed = OLDEST_DRIVERS[13]
    if system != "Linux x86_64":
        return "", f"there is no vLLM for {system} here: its lock is for Linux on x86_64"
    if capability and capability < OLDEST_CARDS[13]:
        return "", (f"there is no vLLM for this card: its releases come for CUDA 13, which knows none below compute "
                    f"capability {OLDEST_CARDS[13][0]}.{OLDEST_CARDS[13][1]}")
    newest = VLLMS_OF_TORCH.get(release(torch)[:2], "")
    if host and torch and not (newest and (torch_cuda or "").startswith("13")):
        built = f"built for CUDA {torch_cuda}" if torch_cuda else "a build for CPUs"
        torches = " or ".join(f"{major}.{minor}" for major, minor in VLLMS_OF_TORCH)
        return "", f"{host}'s torch {torch} is {built}, and vLLM releases that TRL takes need {torches} for CUDA 13"
    if driver[:1].isdigit() and release(driver)[0] < needed:
        return "", f"vLLM comes for CUDA 13, which needs a driver of {needed} or newer, and this one is {driver}"
    if host and torch:
        return newest, f"`pip install vllm=={newest}` goes with {host}'s torch {torch}; restart the kernel after it"
    return LOCKED_VLLM, (f"vLLM {LOCKED_VLLM} comes with `pip install -r {GPU_LOCK}` in a fresh environment, and "
                         f"`python problama_utils/setup/install.py` there after it (driver {needed} or newer)")


def samples_with_vllm(profile: Profile) -> bool:
    """Tell whether a profile's completions are sampled by vLLM here; loading and GRPOConfig both ask this.

    Where the profile wants it and it is not available, transformers' `generate` samples, and a line is printed once.
    """
    if not profile.fast_inference:
        return False
    plugin = bool(installed_version(PLUGIN))
    why = vllm_obstacle(installed_version("vllm"), four_bits=profile.load_in_4bit, plugin=plugin)
    if why:
        _tell_once(f"profile {profile.name} wants vLLM to sample the completions, but {why}: unsloth's own `generate` "
                   "samples instead, which is slower and draws from the same distribution.")
    return not why


_tell_once = cache(tell)
