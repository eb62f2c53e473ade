"""The package without its checkout: a wheel, installed into an environment of its own, trains."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from problama_utils.config import course_root


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy: a build in the checkout would leave its products there."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(course_root() / name, source / name)
    for name in ("problama_utils", "assets"):
        shutil.copytree(course_root() / name, source / name,
                        ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)],
                   check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Return the interpreter of a new environment: the wheel's own, the dependencies of the one that runs the test."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    inside = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([sys.executable, "-m", "pip", "--python", str(inside), "install", "--quiet", "--no-deps",
                    str(wheel)], check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return inside


def run(python, folder, *arguments):
    outside = {name: value for name, value in os.environ.items()
               if name != "PYTHONPATH" and not (name.startswith("PROBLAMA_") and name != "PROBLAMA_HOME")}
    return subprocess.run([str(python), *arguments], cwd=folder, env=outside, capture_output=True, text=True)


@pytest.mark.slow
def test_a_wheel_carries_data_and_logs_and_no_adapter(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    carried = {name.removeprefix("problama_utils/assets/") for name in names if "/assets/" in name}
    assert {"data/riddles.jsonl", "data/few_shot.jsonl", "results/course.json", "runs/riddles-1/log.csv"} <= carried
    assert not [name for name in names if name.endswith(".safetensors") or name.startswith(("tests/", "tools/"))]
    assert wheel.stat().st_size < 2e6


@pytest.mark.slow
def test_a_wheel_trains_two_steps_outside_the_checkout(python, tmp_path):
    where = run(python, tmp_path, "-c", "import problama_utils; print(problama_utils.__file__)").stdout
    assert Path(where.strip()).is_relative_to(python.parent.parent)
    done = run(python, tmp_path, "-m", "problama_utils.training", "riddles", "--profile", "cpu", "--steps", "2")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "riddles"
    assert len((folder / "log.csv").read_text(encoding="utf-8").splitlines()) == 3
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["profile"]["riddles"]["max_steps"] == 2 and (folder / "adapter").is_dir()
    shown = run(python, tmp_path, "-c",
                "from problama_utils.monitoring import shipped_runs; print(len(shipped_runs('piqa')))")
    assert shown.stdout.strip() == "4", shown.stderr
    assert run(python, tmp_path, "-m", "problama_utils.setup", "--profile", "cpu").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["0", "-3"])
def test_a_number_of_steps_that_is_none_ends_with_a_sentence(python, tmp_path, steps):
    done = run(python, tmp_path, "-m", "problama_utils.training", "riddles", "--profile", "cpu", f"--steps={steps}")
    assert done.returncode == 1 and "max_steps" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
