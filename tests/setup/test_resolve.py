"""What the GPU lane would install can be had: `pip install --dry-run`, for Linux on x86_64 and Python 3.11 to 3.13.

Verified: that every requirement of environment.yml's pip part exists for that platform and that they agree with each
other, the same for the lock with vLLM (requirements-gpu.txt) on each Python, and for the `gpu` extra, with and without
the package's own dependencies. Not verified: conda's own
part (python, pip, git), that unsloth runs (it imports only with a GPU), and unsloth's declared dependencies, which
`setup/install.py` leaves out on purpose.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from problama_utils.setup import install

ROOT = Path(install.__file__).resolve().parents[2]
GLIBC = [f"manylinux_2_{minor}_x86_64" for minor in range(5, 36)]  # Debian 12 and Ubuntu 22.04 have 2.35 or newer
PLATFORMS = [*GLIBC, "manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", "linux_x86_64", "any"]
TARGET = ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp",
          *(word for platform in PLATFORMS for word in ("--platform", platform))]


def pip_part() -> list[str]:
    """Return the requirements in environment.yml's pip section, in order, as pip would read them."""
    lines = (ROOT / "environment.yml").read_text(encoding="utf-8").split("- pip:\n")[1].splitlines()
    return [re.sub(r"\s*#.*", "", line).strip().removeprefix("- ") for line in lines if line.strip()]


@pytest.fixture(scope="module")
def newest_pip(tmp_path_factory):
    """The newest pip, beside the one that is installed: it resolves from metadata, the older downloads gigabytes."""
    folder = tmp_path_factory.mktemp("pip")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "pip"], check=True)
    return {**os.environ, "PYTHONPATH": str(folder)}


def resolve(tmp_path, environment, *requirements) -> dict[str, str]:
    """Return `name → release` of what pip would install into an empty place; fail with what does not resolve."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
               "--ignore-installed", "--target", str(tmp_path / "nowhere"), "--report", str(report), *TARGET]
    done = subprocess.run([*command, *requirements], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {re.sub(r"[-_.]+", "-", item["name"]).lower(): item["version"] for item in found}


@pytest.mark.slow
def test_environment_yml_resolves_to_its_own_pins(tmp_path, newest_pip):
    part = pip_part()
    assert part[0] == "-r requirements.txt" and set(install.UNSLOTH_NEEDS) == set(part[1:])
    found = resolve(tmp_path, newest_pip, "-r", "requirements.txt", *part[1:])
    pins = dict(pin.split("==") for pin in install.requirements().values())
    assert {name: found[name].split("+")[0] for name in pins} == pins


def gpu_lock() -> dict[str, str]:
    """Return the GPU lock as name → pin ("" where it names none)."""
    lines = (ROOT / "requirements-gpu.txt").read_text(encoding="utf-8").splitlines()
    listed = [re.sub(r"\s*#.*", "", line).strip() for line in lines]
    return dict((line + "==").split("==")[:2] for line in listed if line)


def test_the_gpu_lock_is_the_cpu_lock_but_for_numpy_and_what_vllm_and_unsloth_add():
    cpu = dict(pin.split("==") for pin in install.requirements().values())
    lock = gpu_lock()
    assert {name: pin for name, pin in lock.items() if cpu.get(name) != pin} == {
        "numpy": "2.3.5", "vllm": "0.27.1", **dict.fromkeys(install.UNSLOTH_NEEDS, "")}
    assert set(cpu) <= set(lock)


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """uv, which resolves vLLM's hundred dependencies in seconds where pip takes minutes."""
    folder = tmp_path_factory.mktemp("uv")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "uv"], check=True)
    return folder / "bin" / "uv"


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_gpu_lock_and_its_vllm_resolve(uv, python):
    command = [str(uv), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", python,
               "--python-platform", "x86_64-manylinux_2_35", "requirements-gpu.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(line.split(" ;")[0].strip().split("==") for line in done.stdout.splitlines() if "==" in line)
    pins = {name: pin for name, pin in gpu_lock().items() if pin}
    assert {name: found[name].split("+")[0] for name in pins} == pins


@pytest.mark.slow
def test_the_gpu_extra_resolves_without_dependencies_as_install_py_takes_it(tmp_path, newest_pip):
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    assert tuple(extra) == install.UNSLOTH
    assert resolve(tmp_path, newest_pip, "--no-deps", *extra) == dict(
        re.sub("_", "-", pin).split("==") for pin in install.UNSLOTH)


@pytest.mark.slow
def test_the_packages_ranges_resolve_to_releases_that_were_tested_where_they_matter(tmp_path, newest_pip):
    bounds = [name + allowed for name, allowed in install.ranges().items()]
    found = resolve(tmp_path, newest_pip, *bounds)
    assert {"transformers", "trl"} <= set(found)
    assert found["transformers"].startswith("5.17.") and found["trl"].startswith("1.14.")


def test_environment_yml_and_install_py_name_the_same_unsloth():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert f"pip install --no-deps {' '.join(install.UNSLOTH)}" in text
