"""Try the newest releases of our dependencies in a throw-away environment, and report what broke.

    python tools/newest.py            every package of pyproject.toml, unpinned
    python tools/newest.py trl peft   only these unpinned, the rest as in requirements.txt

Needs a package index and up to 8 GB of disk (on Linux torch brings its CUDA libraries), which are given back. It runs
the drift guard, which binds every call of ours to the new signatures, and the unit tests that exercise those libraries
for real. Exit status 1 = something broke.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout that is not installed

from problama_utils.setup import install  # noqa: E402

TOOLS = ("pytest", "hypothesis", "scipy", "statsmodels", "scikit-learn", "rapidfuzz", "psutil", "nbformat", "nbclient",
         "ipykernel", "ipywidgets")
TESTS = ("test_drift", "test_models", "test_quantisation", "test_losses_against_trl", "test_trainer", "test_batching")
ONLY_OF_THE_PINS = "test_the_versions_that_were_bound_are_the_pinned_ones"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help="packages to unpin (default: all)")
    chosen = parser.parse_args().packages
    wanted = requirements_for(chosen)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the environment goes even if we are stopped
    with tempfile.TemporaryDirectory(prefix="newest-") as place:
        python = install.python_of(Path(place) / "env")
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        print(f"Installing {len(wanted)} packages into a throw-away environment (a few minutes).", flush=True)
        install.pip(python, *wanted, log=Path(place) / "pip.log")
        print(versions_table(installed(python)), flush=True)
        broken = run_tests(python, Path(place)) + unsloth_changes(python, Path(place))
    print("\n".join(["Broke:", *broken]) if broken else "Nothing broke.")
    return 1 if broken else 0


def requirements_for(chosen: list[str]) -> list[str]:
    """Return what to install: the names of pyproject.toml without their bounds, or the pins but for the chosen ones."""
    names, pins = [*install.ranges()], install.requirements()
    unknown = set(chosen) - set(names)
    if unknown:
        raise SystemExit(f"No Problama: {', '.join(sorted(unknown))} is no dependency; choose from {', '.join(names)}.")
    return [name if not chosen or name in chosen else pins[name] for name in names] + list(TOOLS)


def installed(python: Path) -> dict[str, str]:
    """Return `name → release` of what the environment holds."""
    listed = subprocess.run([str(python), "-m", "pip", "list", "--format", "json"], capture_output=True, text=True,
                            check=True)
    return {entry["name"].lower().replace("_", "-"): entry["version"] for entry in json.loads(listed.stdout)}


def versions_table(found: dict[str, str]) -> str:
    """Return the course's dependencies as lines `name  tested  newest`, the changed ones marked."""
    pins = {name: pin.split("==")[1] for name, pin in install.requirements().items()}
    rows = [(name, pins.get(name, "-"), found.get(name, "missing")) for name in install.ranges()]
    return "\n".join(f"{'*' if tested != newest.split('+')[0] else ' '} {name:<14}{tested:>10} -> {newest}"
                     for name, tested, newest in rows)


def run_tests(python: Path, place: Path) -> list[str]:
    """Run the drift guard and the tests near the libraries; return the lines that name what failed."""
    files = [str(path) for name in TESTS for path in (ROOT / "tests").rglob(f"{name}.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
                   "HYPOTHESIS_STORAGE_DIRECTORY": str(place / "hypothesis")}
    command = [str(python), "-m", "pytest", "-q", "--tb=line", "-m", "not slow", "-p", "no:cacheprovider",
               "--deselect", f"tests/test_drift.py::{ONLY_OF_THE_PINS}", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    print(lines[-1] if lines else done.stderr.strip(), flush=True)
    named = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    problems = [line for line in lines if re.match(r"E? *\S+\.(py|ipynb):\d+ \S+: ", line)]  # the drift guard's list
    return named + problems or ([lines[-1] if lines else done.stderr[-500:]] if done.returncode else [])


def unsloth_changes(python: Path, place: Path) -> list[str]:
    """Compare the newest unsloth's parameters with the recorded ones: return those that are gone."""
    done = subprocess.run([str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place),
                           "unsloth", "unsloth_zoo"], capture_output=True, text=True)
    if done.returncode:
        return [f"unsloth: {install.explain(done.stderr)}"]
    sys.path.insert(0, str(ROOT / "tests"))
    from signatures import UNSLOTH_RECORD, unsloth_parameters

    wheel, zoo = next(place.glob("unsloth-*.whl")), next(place.glob("unsloth_zoo-*.whl"))
    print(f"  {wheel.name} (tested: {json.loads(UNSLOTH_RECORD.read_text(encoding='utf-8'))['wheel']})", flush=True)
    try:
        now = unsloth_parameters(wheel, zoo)
    except KeyError as error:
        return [f"{wheel.name}: {error} is not where it was"]
    then = json.loads(UNSLOTH_RECORD.read_text(encoding="utf-8"))["parameters"]
    gone = [(name, parameter) for name in then for parameter in then[name] if parameter not in now[name]]
    return [f"{wheel.name}: {name} no longer takes {parameter}" for name, parameter in gone]


if __name__ == "__main__":
    sys.exit(main())
