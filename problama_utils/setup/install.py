"""Install the course, before anything of it can be imported: standard library only, run as a script.

    python3 problama_utils/setup/install.py --venv .venv  a checkout: make the environment (what `make course` does)
    … --venv .venv --then course                          and then run the course in it; or `test`, or `test-fast`
    python  problama_utils/setup/install.py               Colab, Kaggle: into the running interpreter, keeping its torch

All are safe to run twice: a finished installation is recognised and left alone. A failed one ends in one sentence
and removes what it began. The notebooks' set-up cell calls `into_notebook_host`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder, whose modules have plain names

from problama_utils.setup.pip_causes import explain  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
STAMP = "problama-installed.txt"
OLDEST, NEWEST = (3, 11), (3, 13)  # as in pyproject.toml's requires-python
NEEDED_GB = 7.0 if sys.platform == "linux" else 4.0  # 5.9 GB with the CUDA libraries that torch brings there, else 2.4
# What `make` runs once the environment is ready, as arguments of its Python; here, since Windows has no make.
FAST_TESTS = (("-m", "ruff", "check"), ("-m", "pytest", "-n", "2", "--dist", "loadfile", "-m", "not slow"))
SLOW_TESTS = (("-m", "pytest", "-m", "slow"), ("-m", "pytest", "--nbmake", "--nbmake-timeout=1800", "notebooks"))
STEPS = {"course": (("-m", "tools.course"),), "test-fast": FAST_TESTS, "test": (*FAST_TESTS, *SLOW_TESTS)}
# A notebook host keeps its own release of these where pyproject.toml's range allows it: they are large, other
# packages of the host are built against them, and its kernel may have loaded them already.
KEPT_ON_NOTEBOOK_HOSTS = ("torch", "numpy", "pandas", "matplotlib", "safetensors", "filelock", "tqdm")
ALSO_LOADED_EARLY = ("pyarrow", "huggingface_hub", "tokenizers", "fsspec")  # by a host's own start-up
UNSLOTH = ("unsloth==2026.10.9", "unsloth_zoo==2026.10.9")
# A library of the course refuses to work beside older releases of these; nothing of the course uses them.
REFUSED = {"torchao": ">=0.16"}  # peft attaches no LoRA beside one (peft/import_utils.py); Colab's image has 0.10.0
DRIVE = Path("/content/drive")  # where Colab shows a mounted Google Drive
UNSLOTH_NEEDS = ("tyro", "msgspec", "hf_transfer", "sentencepiece", "protobuf", "einops", "structlog", "nest-asyncio",
                 "json5")


def fail(sentence: str) -> None:
    """End with one sentence on stderr and exit status 1."""
    print(f"No Problama: {sentence}", file=sys.stderr)
    raise SystemExit(1)


def wanted_state() -> str:
    """Return a fingerprint of what decides what an installation contains."""
    parts = [(ROOT / name).read_bytes() for name in ("requirements.txt", "pyproject.toml")]
    return hashlib.sha256(b"\0".join([*parts, sys.version.encode()])).hexdigest()


def check_machine(target: Path) -> None:
    """Fail early, before anything is written, where the installation cannot succeed."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        found = ".".join(map(str, sys.version_info[:3]))
        fail(f"this Python is {found}, the course needs {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}: "
             "install one and run this with it (`make course PYTHON=python3.11`, Windows: `py -3.11 ...`).")
    free = shutil.disk_usage(target.parent).free / 1e9
    if free < NEEDED_GB:
        fail(f"{free:.1f} GB are free here, the environment needs {NEEDED_GB:.0f} GB: free some space or move.")


def pip(python: Path | str, *arguments: str, action: str = "install") -> None:
    """Run pip quietly; where it fails, say why in one sentence."""
    command = [str(python), "-m", "pip", action, "--quiet", "--no-input", "--disable-pip-version-check",
               "--retries", "2"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, encoding="utf-8", errors="replace",
                          cwd=ROOT, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    if done.returncode:
        fail(explain(done.stderr, done.returncode))


def make_environment(folder: Path) -> None:
    """Make (or bring up to date) the virtual environment in `folder`; do nothing where it is current."""
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted_state():
        return
    check_machine(folder)
    fresh = not folder.exists()
    stamp.unlink(missing_ok=True)
    print(f"Setting up {folder.name} (once; a few minutes, 2.5 GB, on Linux up to 6)", flush=True)
    try:
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True)
        if made.returncode:
            fail("Python's venv module is missing or broken: install it (Debian: python3-venv), then try again.")
        python = python_of(folder)
        pip(python, "--requirement", "requirements.txt")
        pip(python, "--no-deps", "--editable", ".")
    except BaseException:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    stamp.write_text(wanted_state(), encoding="utf-8")


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def run_steps(python: Path, steps: Iterable[Iterable[str]]) -> int:
    """Run programs of an environment in the checkout, one after the other; return the first exit status but 0."""
    # the spin count as the package says, but a test may load torch before the package; UTF-8 under any code page
    environment = {"GOMP_SPINCOUNT": "5000", **os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    before = signal.signal(signal.SIGINT, lambda *_: None)  # the program that runs decides what Ctrl-C does
    try:
        for arguments in steps:
            threads = {"OMP_NUM_THREADS": "1"} if "-n" in arguments else {}  # each worker has one core
            status = subprocess.call([str(python), *arguments], cwd=ROOT, env={**environment, **threads})
            if status:
                return status if status > 0 else 128 - status
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def requirements(lock: str = "requirements.txt") -> dict[str, str]:
    """Return a lock as name → pin, such as `{"numpy": "numpy==2.4.6"}`."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {re.split(r"[=<>]", line)[0]: line for line in lines if line}


def ranges() -> dict[str, str]:
    """Return the releases that may run the course as name → range, such as `{"numpy": ">=2.0"}`."""
    # not tomllib: Python 3.10 has none, and must get as far as the sentence that refuses it
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    return dict(name_and_range(line) for line in re.findall(r'"([^"]+)"', block))


def name_and_range(requirement: str) -> tuple[str, str]:
    """Return `"numpy >=2.0"` as ("numpy", ">=2.0")."""
    return re.fullmatch(r"([\w.-]+)(.*)", requirement.replace(" ", "")).groups()


def release(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers without zeros at the end: "2.13.0+cpu" is (2, 13)."""
    numbers = re.match(r"v?(\d+(?:\.\d+)*)?", version)[1] or "0"
    return tuple(int(part) for part in re.sub(r"(\.0+)+$", "", numbers).split("."))


def fits(version: str, bounds: str) -> bool:
    """Tell whether a version lies within comma-separated bounds (>=, <, ==).

    >>> fits("4.8.5", ">=4.8,<5"), fits("5.0.0", ">=4.8,<5"), fits("4.8rc1", ">=4.8")
    (True, False, False)
    """
    early = bool(re.search(r"\d[-_.]?(a|b|c|rc|alpha|beta|pre|dev)", version.split("+")[0]))
    for bound in filter(None, bounds.split(",")):
        sign, limit = re.fullmatch(r"\s*(>=|==|<)\s*(\w\S*)\s*", bound).groups()
        left, right = release(version), release(limit)
        same = left == right and (not early or version == limit)
        holds = {">=": left > right or same, "==": same, "<": left < right}
        if not holds[sign]:
            return False
    return True


def installed_version(name: str) -> str:
    """Return the release of a package; "" where what Python finds first is missing or half removed.

    Libraries ask for versions in the same way, so a sound copy further along the path does not help them.
    """
    try:
        distribution = importlib.metadata.distribution(name)
        version = str(distribution.version).strip()
        whole = bool(distribution.metadata["Name"]) and _has_its_modules(distribution)
    except (ImportError, OSError, ValueError, KeyError):  # PackageNotFoundError is an ImportError
        return ""
    return version if whole and re.fullmatch(r"v?\d[\w.!+-]*", version) else ""  # not "unknown"


def _has_its_modules(distribution: importlib.metadata.Distribution) -> bool:
    listed = [line.split(",")[0] for line in (distribution.read_text("RECORD") or "").splitlines()]
    modules = [(file,) for file in listed if re.fullmatch(r"[A-Za-z_]\w*(/__init__)?\.py", file)]
    if not listed:  # an egg-info lists folders, or modules without their suffix
        tops = (distribution.read_text("top_level.txt") or "").split()
        modules = [(top, f"{top}.py", f"{top}.so", f"{top}.pyd") for top in tops]
    return all(any(Path(distribution.locate_file(file)).exists() for file in files) for files in modules)


def remains(name: str) -> str:
    """Return the metadata folder of a half-removed package, the first that Python finds, else ""."""
    first = next(iter(importlib.metadata.distributions(name=name)), None)
    return "" if first is None or installed_version(name) else str(getattr(first, "_path", name))


def satisfied(name: str, bounds: str) -> str:
    """Return the installed release of `name` where it lies within `bounds`, else ""."""
    found = installed_version(name)
    return found if found and fits(found, bounds) else ""


def notebook_host_requirements() -> list[str]:
    """Return what a notebook host gets, as `name==release`: only what the course imports, so no Jupyter, no tests."""
    pins, allowed = requirements(), ranges()
    wanted = []
    for name, bounds in allowed.items():
        own = satisfied(name, bounds) if name in KEPT_ON_NOTEBOOK_HOSTS else ""
        wanted.append(f"{name}=={own}" if own else pins[name])
    if not satisfied("torch", allowed["torch"]) and installed_version("torchvision"):
        wanted.append("torchvision")  # built for one torch release: the old one would fail to import beside the new
    return wanted


def refused() -> dict[str, str]:
    """Return what is installed here beside which the course's libraries refuse to work, `name → release`."""
    found = {name: installed_version(name) for name in REFUSED}
    return {name: version for name, version in found.items() if version and not fits(version, REFUSED[name])}


def remove_refused() -> None:
    """Uninstall what `refused` names; what lies where pip removes nothing is covered by a release that will do."""
    for name, version in refused().items():
        pip(sys.executable, "--yes", name, action="uninstall")
        importlib.invalidate_caches()
        if name in refused():  # in a folder of another environment that this one sees
            pip(sys.executable, name + REFUSED[name])
            importlib.invalidate_caches()
        now = installed_version(name)
        print(f"No Problama: {name} {version} {f'gave way to {now}' if now else 'is removed'}: peft refuses to work "
              f"beside it, and the course does not use it.", flush=True)


def host_stamp() -> Path:
    """Return where a finished installation into this Python is noted: beside the packages, so it goes with them."""
    return Path(sysconfig.get_paths()["purelib"]) / STAMP


def install_into_this_python() -> None:
    """Colab and Kaggle: add what is missing and keep the runtime's own torch and numpy where they will do."""
    wanted = notebook_host_requirements()
    state = wanted_state() + ("+gpu" if shutil.which("nvidia-smi") else "")
    pins = dict(pin.split("==") for pin in wanted if "==" in pin)
    done = not refused() and all(satisfied(name, f"=={pin}") for name, pin in pins.items())
    if done and host_stamp().exists() and host_stamp().read_text(encoding="utf-8") == state:
        return
    print("No Problama: installing what this runtime lacks (one to three minutes, once).", flush=True)
    pip(sys.executable, *wanted)
    if shutil.which("nvidia-smi"):
        pip(sys.executable, "--no-deps", *UNSLOTH)
        pip(sys.executable, *wanted, *UNSLOTH_NEEDS)
    remove_refused()
    importlib.invalidate_caches()
    for name in [*pins, *REFUSED]:
        if remains(name):  # pip looks past metadata that it cannot read, Python does not
            fail(f"{name} is half removed: delete what is left of it, {remains(name)}, and run this again.")
    host_stamp().write_text(state, encoding="utf-8")
    if "+gpu" in state:
        # A process of its own: `setup.machine` needs the profiles, and this module must import nothing else.
        subprocess.run([sys.executable, "-m", "problama_utils.setup.machine"], cwd=ROOT)
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
    with contextlib.suppress(Exception):  # not Colab, no such secret, or no access to it: ungated models need none
        from google.colab import userdata

        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")


def keep_runs_on_drive() -> None:
    """Colab: put the runs on the reader's Google Drive; where that fails, on this disk. One sentence says where."""
    named, local = os.environ.get("PROBLAMA_RUNS", "").strip(), ROOT / "runs"
    folder = DRIVE / "MyDrive" / "no-problama" / "runs"
    if named and Path(named) != folder:
        print(f"No Problama: PROBLAMA_RUNS names {named}, so the runs go there and not to Google Drive.", flush=True)
        return
    trouble = _mount_drive(folder)
    if trouble:
        os.environ.pop("PROBLAMA_RUNS", None)
        print(f"No Problama: {trouble}: the runs go to {local} on this machine's own disk.", flush=True)
        return
    os.environ["PROBLAMA_RUNS"] = str(folder)
    earlier = f" Earlier runs stay in {local}." if local.is_dir() and any(local.iterdir()) else ""
    print(f"No Problama: the runs go to {folder}, on your Google Drive; so they do in every notebook that sets "
          f"KEEP_ON_DRIVE = True.{earlier}", flush=True)


def _mount_drive(folder: Path) -> str:
    """Mount Colab's Drive and make a folder on it; return what prevented that, or ""."""
    try:
        from google.colab import drive
    except ImportError:
        return "KEEP_ON_DRIVE is for Colab, this is not"
    try:
        drive.mount(str(DRIVE))
        if not (DRIVE / "MyDrive").is_dir():  # else the folder would be made on this disk, and lost with it
            return "Google Drive was not mounted"
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except Exception as error:  # refused or closed by the reader, an account without Drive, a full one
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"Google Drive cannot be used ({reason[:200]})"
    return ""


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
    """Parse the options, install, and run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, help="make a virtual environment here instead of using this Python")
    parser.add_argument("--then", choices=STEPS, help="run this in the environment afterwards")
    options = parser.parse_args()
    if options.then and not options.venv:
        parser.error("--then runs in an environment: name it with --venv")
    if not options.venv:
        install_into_this_python()
        return
    make_environment(ROOT / options.venv)
    if options.then:
        raise SystemExit(run_steps(python_of(ROOT / options.venv), STEPS[options.then]))


if __name__ == "__main__":
    main()
