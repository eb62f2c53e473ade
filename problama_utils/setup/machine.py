"""What this machine has: Python, packages, GPU, memory, disk, hub. Standard library only, and nothing is imported.

`look()` fills a `Machine` within about two seconds; `setup.preflight` checks it. Sizes are in GB (10⁹ bytes).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from problama_utils import hides_card
from problama_utils.config import Profile, cache_dir, get_profile, path_variable, profile_for_card
from problama_utils.setup import gpu as lane
from problama_utils.setup.hub import ask_hub, chosen_name, hub_home, on_hub, token_place
from problama_utils.setup.install import REFUSED, installed_version, release
from problama_utils.setup.versions import wanted_packages

NVIDIA_FIELDS = ("name", "compute_cap", "memory.total", "memory.free", "driver_version")
NVIDIA_SECONDS = 2.5  # a driver that does not answer by then is broken
HUB_SECONDS = 2.0
MIB = 1024**2


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA card; None where its driver does not tell."""

    name: str
    capability: tuple[int, int] | None  # bf16 in hardware from (8, 0)
    memory_gb: float | None
    free_gb: float | None
    driver: str


@dataclass(frozen=True)
class Machine:
    """What was seen; written by hand, it simulates a machine."""

    python: tuple[int, int, int]
    system: str  # such as "Linux x86_64"
    cores: int
    fast_bf16: bool | None  # the CPU multiplies bf16 natively; None = not known
    ram_gb: float | None
    ram_free_gb: float | None
    disk_free_gb: float | None  # on the disk that holds the model cache
    packages: dict[str, str] = field(default_factory=dict)  # of what is imported, refused or of use: name → version
    torch_cuda: str | None = None  # CUDA release that torch was built for; "" = a CPU build, None = no torch
    gpu: Gpu | None = None
    gpu_note: str = ""  # why there is no GPU, where nvidia-smi reports it
    host: str = ""  # "Colab", "Kaggle" or ""
    model: str = "embedded"  # chosen_name(profile)
    model_here: bool = False  # its weights are in the cache, or in the folder it names
    hub: str = ""  # answer of ask_hub; "" = not asked
    token: str = ""  # where a token lies, never the token


def look(profile: Profile | None = None) -> Machine:
    """Look at this machine for a profile (None: the one that it gets). The hub is asked only where it has the model."""
    gpu, gpu_note = _gpu()
    torch_cuda = _torch_cuda()
    profile = profile or profile_for(gpu, torch_cuda)
    ram, ram_free = _memory()
    names = [*(package.name for package in wanted_packages(profile)), *REFUSED, "vllm", lane.PLUGIN]
    versions = {name: installed_version(name) for name in names}
    model = chosen_name(profile)
    asks = on_hub(model) and os.environ.get("HF_HUB_OFFLINE", "").lower() not in ("1", "true", "yes", "on")
    return Machine(
        python=tuple(sys.version_info[:3]),
        system=_system(),
        cores=cores(),
        fast_bf16=_fast_bf16(),
        ram_gb=ram,
        ram_free_gb=ram_free,
        disk_free_gb=_disk_free(hub_home() if on_hub(model) else cache_dir()),
        packages={name: version for name, version in versions.items() if version},
        torch_cuda=torch_cuda,
        gpu=gpu,
        gpu_note=gpu_note,
        host=_host(),
        model=model,
        model_here=model_here(model),
        hub=_within(HUB_SECONDS, model) if asks else "",
        token=token_place(),
    )


def profile_for(gpu: Gpu | None, torch_cuda: str | None) -> Profile:
    """Return the profile that `config.detect_profile` will pick once torch is imported, without importing it."""
    wanted = os.environ.get("PROBLAMA_PROFILE", "").strip()
    if wanted:
        return get_profile(wanted)
    if gpu is None or gpu_obstacle(gpu, torch_cuda) or lane_obstacle(gpu):
        return get_profile("cpu")
    return profile_for_card(gpu.memory_gb or 0.0, gpu.capability or (0, 0))


def lane_obstacle(gpu: Gpu) -> str:
    """Return `setup.gpu.card_obstacle`; what the driver does not tell is not held against the card: torch will know."""
    return lane.card_obstacle(gpu.memory_gb or lane.SMALLEST_CARD_GB, gpu.capability or lane.OLDEST_CARD)


def gpu_obstacle(gpu: Gpu, torch_cuda: str | None) -> str:
    """Return why torch cannot use a card (then everything runs on the CPU) and the cure, or "".

    Sources: NVIDIA's tables of minor-version compatibility (drivers) and CUDA 13's release notes (Turing and later).
    """
    if not torch_cuda:  # None: not installed yet, pip will choose a build
        return "" if torch_cuda is None else "torch is a build for CPUs: install one for CUDA from PyTorch's own index"
    major = int(torch_cuda.split(".")[0])
    needed = lane.OLDEST_DRIVERS.get(major, 0)
    if gpu.driver[:1].isdigit() and release(gpu.driver)[0] < needed:
        return (f"driver {gpu.driver} is too old for torch's CUDA {torch_cuda}: update it to {needed} or newer, or "
                "install a torch built for an older CUDA")
    oldest = lane.OLDEST_CARDS.get(major, lane.OLDEST_CARD)
    if gpu.capability and gpu.capability < oldest:
        return (f"compute capability {gpu.capability[0]}.{gpu.capability[1]} is below {oldest[0]}.{oldest[1]}, the "
                f"lowest that torch's CUDA {torch_cuda} knows: choose another card (on Kaggle \"GPU T4 x2\")")
    return ""


def vllm_sentence() -> str:
    """Return the line on vLLM that the set-up shows on a machine with a card, "" without one or where one is there."""
    card, _ = _gpu()
    if card is None or installed_version("vllm"):
        return ""
    version, sentence = lane.vllm_for(driver=card.driver, capability=card.capability, system=_system(), host=_host(),
                                      torch=installed_version("torch"), torch_cuda=_torch_cuda())  # fmt: skip
    rest = "only profile slides samples with it" if version else "completions are sampled without it, more slowly"
    return f"No Problama: {sentence}; {rest}.\n"


def _system() -> str:
    return f"{platform.system()} {platform.machine()}"


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Read the lines of `nvidia-smi --query-gpu=<NVIDIA_FIELDS> --format=csv,noheader,nounits`, one card each.

    Memory is in MiB; a value the driver does not know is in brackets, such as [N/A].

    >>> parse_nvidia_smi("Tesla T4, 7.5, 15360, 15101, 550.54.15")[0].capability
    (7, 5)
    """
    cards = []
    for line in text.strip().splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(NVIDIA_FIELDS):
            name, capability, total, free, driver = values
            known = re.fullmatch(r"(\d+)\.(\d+)", capability)
            total_gb, free_gb = (int(mib) * MIB / 1e9 if mib.isdigit() else None for mib in (total, free))
            cards.append(Gpu(name, (int(known[1]), int(known[2])) if known else None, total_gb, free_gb, driver))
    return cards


def _gpu() -> tuple[Gpu | None, str]:
    """Return the card that torch would call cuda:0, or None and the reason."""
    if not shutil.which("nvidia-smi"):
        return None, ""
    visible = None if hides_card() else os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None, f"CUDA_VISIBLE_DEVICES={visible!r} hides the GPU"
    command = ["nvidia-smi", f"--query-gpu={','.join(NVIDIA_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None, f"nvidia-smi gave no answer within {NVIDIA_SECONDS:g} s"
    cards = parse_nvidia_smi(done.stdout) if done.returncode == 0 else []
    if not cards:
        return None, complaint_of(done.stdout + done.stderr)
    first = (visible or "0").split(",")[0].strip()
    return cards[int(first) if first.isdigit() and int(first) < len(cards) else 0], ""


def complaint_of(output: str) -> str:
    """Return the first sentence of what nvidia-smi says when it shows no card."""
    if "not a valid field" in output:  # compute_cap came with 510, and torch's CUDA needs a newer one
        return f"its driver is too old: update it to {max(lane.OLDEST_DRIVERS.values())} or newer"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return re.split(r"(?<=\w)\. ", lines[0])[0].rstrip(".") if lines else "nvidia-smi shows no GPU"


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fast_bf16() -> bool | None:
    text = _read("/proc/cpuinfo")
    return "avx512_bf16" in text if "flags" in text else None


def _memory() -> tuple[float | None, float | None]:
    """Return (in all, available) RAM in GB; a container's limit counts where it is lower."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page / 1e9, os.sysconf("SC_AVPHYS_PAGES") * page / 1e9
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, a Mac's knows no free pages
        try:
            import psutil
        except ImportError:  # nothing is installed yet
            return None, None
        seen = psutil.virtual_memory()
        return seen.total / 1e9, seen.available / 1e9
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    free = int(found[1]) * 1024 / 1e9 if found else free
    for limit, used in (("memory.max", "memory.current"),
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        cap, held = _read(f"/sys/fs/cgroup/{limit}").strip(), _read(f"/sys/fs/cgroup/{used}").strip()
        if cap.isdigit() and int(cap) / 1e9 < total:
            total = int(cap) / 1e9
            free = min(free, total - int(held or 0) / 1e9)
    return total, free


def peak_memory_gb() -> float:
    """Return the most resident memory that this process has ever held, in GB."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # a Mac counts bytes, the others kibibytes


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _disk_free(folder: Path) -> float | None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free / 1e9
    except OSError:
        return None


def _torch_cuda() -> str | None:
    """Read the CUDA release that torch was built for out of its version file: importing torch takes seconds."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    text = _read(str(Path(spec.origin).with_name("version.py"))) if spec and spec.origin else ""
    found = re.search(r"^cuda[^=]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return (found[1] if found else "") if text else None


def _host() -> str:
    if "COLAB_RELEASE_TAG" in os.environ or "COLAB_BACKEND_VERSION" in os.environ or "google.colab" in sys.modules:
        return "Colab"
    return "Kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else ""


def model_here(model: str) -> bool:
    """Tell whether a model's weights are in the cache, or in the folder that it names."""
    if model == "embedded":
        return (cache_dir() / "smollm2-135m-instruct" / "model.safetensors").exists()
    if on_hub(model):
        hub = Path(path_variable("HF_HUB_CACHE") or hub_home() / "hub")
        return any((hub / f"models--{model.replace('/', '--')}").glob("snapshots/*/*.safetensors"))
    return Path(model).exists()


def _within(seconds: float, model: str) -> str:
    """Ask the hub in a thread, since looking up a host's name knows no time limit."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(ask_hub(model, seconds)), daemon=True)
    thread.start()
    thread.join(seconds + 0.2)
    return answers[0] if answers else f"unreachable (no answer within {seconds:.0f} s)"


if __name__ == "__main__":
    print(vllm_sentence(), end="", flush=True)
