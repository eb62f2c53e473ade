"""Install the course, before anything of it can be imported: standard library only, run as a script.

    python3 problama_utils/install.py --venv .venv    a checkout: make the environment (what `make course` does)
    python  problama_utils/install.py                 Colab, Kaggle: into the running interpreter, keeping its torch

Both are safe to run twice: a finished installation is recognised and left alone. A failed one ends in one sentence
and removes what it began. The notebooks' set-up cell calls `into_notebook_host`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
STAMP = "problama-installed.txt"
OLDEST, NEWEST = (3, 11), (3, 14)
NEEDED_GB = 4.0  # the environment takes 2.4 GB with a CPU build of torch
# A notebook host keeps its own release of these where pyproject.toml's range allows it: they are large, other
# packages of the host are built against them, and its kernel may have loaded them already.
KEPT_ON_NOTEBOOK_HOSTS = ("torch", "numpy", "pandas", "matplotlib", "safetensors", "filelock", "tqdm")
ALSO_LOADED_EARLY = ("pyarrow", "huggingface_hub", "tokenizers", "fsspec")  # by a host's own start-up
UNSLOTH = ("unsloth==2026.10.9", "unsloth_zoo==2026.10.9")
UNSLOTH_NEEDS = ("tyro", "msgspec", "hf_transfer", "sentencepiece", "protobuf", "einops", "structlog", "nest-asyncio",
                 "json5")


def fail(sentence: str) -> None:
    """End with one sentence on stderr and exit status 1."""
    print(f"No Problama: {sentence}", file=sys.stderr)
    raise SystemExit(1)


def wanted_state() -> str:
    """Return a fingerprint of everything that decides what an installation contains."""
    parts = [(ROOT / name).read_bytes() for name in ("requirements.txt", "pyproject.toml")]
    return hashlib.sha256(b"\0".join([*parts, sys.version.encode()])).hexdigest()


def check_machine(target: Path) -> None:
    """Fail early, before anything is written, where the installation cannot succeed."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        found = ".".join(map(str, sys.version_info[:3]))
        fail(f"this Python is {found}, the course needs {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}: "
             "install one and run `make course PYTHON=python3.11`.")
    free = shutil.disk_usage(target.parent).free / 1e9
    if free < NEEDED_GB:
        fail(f"{free:.1f} GB are free here, the environment needs {NEEDED_GB:.0f} GB: free some space or move.")


def pip(python: Path | str, *arguments: str, log: Path | None = None) -> None:
    """Run pip quietly; where it fails, say why in one sentence."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "2"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT)
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        fail(explain(done.stderr))


def explain(stderr: str) -> str:
    """Turn pip's complaint into what happened and what to do."""
    text = stderr.lower()
    if "no space left" in text:
        return "the disk filled up while installing: free some space (about 4 GB) and run the command again."
    unreachable = ("connection", "name resolution", "network is unreachable", "timed out", "proxy", "ssl")
    if any(sign in text for sign in unreachable):
        return "the package index cannot be reached: check the network or PIP_INDEX_URL and run the command again."
    missing = re.search(r"no matching distribution found for (\S+)", text)
    if missing:
        return (f"the package index has no {missing[1]} for this Python or platform: "
                "check PIP_INDEX_URL, or use Python 3.11 or 3.12.")
    lines = stderr.strip().splitlines() or ["no reason given"]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])  # warnings may follow it
    return f"pip failed ({last}): mend that and run the command again."


def make_environment(folder: Path) -> None:
    """Make (or bring up to date) the virtual environment in `folder`; do nothing where it is current."""
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == wanted_state():
        return
    check_machine(folder)
    fresh = not folder.exists()
    stamp.unlink(missing_ok=True)
    print(f"Setting up {folder.name} (once; a few minutes, about 2.5 GB)", flush=True)
    try:
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True)
        if made.returncode:
            fail("Python's venv module is missing or broken: install it (Debian: python3-venv), then try again.")
        python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        pip(python, "--requirement", "requirements.txt", log=ROOT / "build" / "install.log")
        pip(python, "--no-deps", "--editable", ".")
    except BaseException:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    stamp.write_text(wanted_state())


def requirements() -> dict[str, str]:
    """Return the pinned requirements, `name → pin`, in the file's order."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {re.split(r"[=<>]", line)[0]: line for line in lines if line}


def ranges() -> dict[str, str]:
    """Return the releases that may run the course, `name → range`, such as `{"numpy": ">=2.0"}`."""
    # not tomllib: Python 3.10 has none, and must get as far as the sentence that refuses it
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    return dict(name_and_range(line) for line in re.findall(r'"([^"]+)"', block))


def name_and_range(requirement: str) -> tuple[str, str]:
    """Split a requirement: `"numpy >=2.0"` is ("numpy", ">=2.0")."""
    return re.fullmatch(r"([\w.-]+)(.*)", requirement.replace(" ", "")).groups()


def satisfied(name: str, bounds: str) -> str | None:
    """Return the installed release of `name` where it lies within `bounds`, else None."""
    from pip._vendor.packaging.specifiers import SpecifierSet  # pip is what installs, so it is there

    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if SpecifierSet(bounds).contains(found, prereleases=True) else None


def notebook_host_requirements() -> tuple[list[str], list[str]]:
    """Return what a notebook host gets: `(kept or replaced under a running kernel, added)`, each as `name==release`.

    Only what the course imports: Jupyter and the tests' tools are not for a rented kernel.
    """
    pins, allowed = requirements(), ranges()
    kept = []
    for name in KEPT_ON_NOTEBOOK_HOSTS:
        own = satisfied(name, allowed[name])
        kept.append(f"{name}=={own}" if own else pins[name])
    if not satisfied("torch", allowed["torch"]) and satisfied("torchvision", ""):
        kept.append("torchvision")  # built for one torch release: the old one would fail to import beside the new
    return kept, [pins[name] for name in allowed if name not in KEPT_ON_NOTEBOOK_HOSTS]


def host_stamp() -> Path:
    """Return where a finished installation into this Python is noted: beside the packages, so it goes with them."""
    return Path(sysconfig.get_paths()["purelib"]) / STAMP


def install_into_this_python() -> None:
    """Colab and Kaggle: add what is missing and keep the runtime's own torch and numpy where they will do."""
    kept, added = notebook_host_requirements()
    state = wanted_state() + ("+gpu" if shutil.which("nvidia-smi") else "")
    done = all(satisfied(*re.split("(?===)", pin, maxsplit=1)) for pin in [*kept, *added] if "==" in pin)
    if done and host_stamp().exists() and host_stamp().read_text() == state:
        return
    print("No Problama: installing what this runtime lacks (one to three minutes, once).", flush=True)
    pip(sys.executable, *kept, *added)
    if shutil.which("nvidia-smi"):
        pip(sys.executable, "--no-deps", *UNSLOTH)
        pip(sys.executable, *kept, *added, *UNSLOTH_NEEDS)
    host_stamp().write_text(state)
    print("No Problama is installed.", flush=True)


def stale(modules: Mapping[str, ModuleType], names: Iterable[str]) -> list[str]:
    """Return what this process loaded in another release than the one now on disk, such as `numpy 1.26.4`."""
    importlib.invalidate_caches()
    found = []
    for name in names:
        loaded = str(getattr(modules.get(name), "__version__", "")).split("+")[0]
        if loaded and (satisfied(name, "") or loaded).split("+")[0] != loaded:
            found.append(f"{name} {loaded}")
    return found


def take_colab_secret() -> None:
    """Put Colab's secret HF_TOKEN where the hub's library looks: into this process's environment, nowhere else."""
    if os.environ.get("HF_TOKEN"):
        return
    try:
        from google.colab import userdata

        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
    except Exception:  # not Colab, no such secret, or no access to it: the ungated profiles need none
        return


def into_notebook_host() -> None:
    """What the set-up cell does outside a checkout: install, and restart a kernel that holds a replaced package."""
    install_into_this_python()
    take_colab_secret()
    old = stale(sys.modules, [*ranges(), *ALSO_LOADED_EARLY])
    if not old:
        return
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None:
        fail(f"this Python had loaded {', '.join(old)} before a newer release was installed: start it again.")
    print(f"No Problama: this kernel had loaded {', '.join(old)} before a newer release came; it restarts now. "
          "Run the notebook again from its first cell.", flush=True)
    shell.kernel.do_shutdown(True)
    raise SystemExit(0)  # so that the cells queued behind this one do not run in the old kernel


def main() -> None:
    """Parse the one option and install."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, help="make a virtual environment here instead of using this Python")
    options = parser.parse_args()
    if options.venv:
        make_environment(ROOT / options.venv)
    else:
        install_into_this_python()


if __name__ == "__main__":
    main()
