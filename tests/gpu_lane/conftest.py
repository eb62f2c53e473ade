"""The lane's own environment: unsloth beside the packages that run these tests, made once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from problama_utils.config import cache_dir, course_root
from problama_utils.setup import install

TRITON = "triton"  # torch's CPU builds come without it; unsloth's kernels need it to be importable
HERE = Path(__file__).resolve().parent


def lane_packages() -> str:
    """Return a fingerprint of what decides the environment's contents."""
    parts = [*install.UNSLOTH, *install.UNSLOTH_NEEDS, TRITON, sys.version, sys.prefix]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def make_lane(folder: Path) -> Path:
    """Return the Python of the environment in `folder`, made first where it is not whole.

    It sees this test run's packages through a .pth file, and adds unsloth, what unsloth imports, and triton.

    Raises:
        SystemExit: pip failed; `setup.install.pip` has said why in one sentence.
    """
    python = folder / "bin" / "python"
    stamp = folder / install.STAMP
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        ours = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        (ours / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
        install.pip(python, "--no-deps", *install.UNSLOTH)
        install.pip(python, *install.UNSLOTH_NEEDS, TRITON)
        stamp.write_text("whole\n", encoding="utf-8")
    return python


@pytest.fixture(scope="session")
def lane_python() -> Path:
    """The Python in which unsloth's GPU code can be imported. Without a package index this fails, it never skips."""
    folder = cache_dir() / f"gpu-lane-{lane_packages()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        try:
            return make_lane(folder)
        except (SystemExit, subprocess.CalledProcessError) as error:
            pytest.fail(f"The GPU lane's environment cannot be made ({error}): what was printed above says why. It "
                        f"needs {', '.join(install.UNSLOTH)} and triton from a package index.", pytrace=False)


@pytest.fixture(scope="session")
def run_lane(lane_python, tmp_path_factory):
    """A function that runs one scenario of `lane.py` in the lane's Python and returns what it measured."""
    home = tmp_path_factory.mktemp("gpu-lane")

    def run(name: str, *arguments: str, **environment: str) -> dict[str, Any]:
        result = home / f"{name}.json"
        command = [str(lane_python), str(HERE / "lane.py"), name, str(home), str(result), *arguments]
        variables = {**os.environ, "PYTHONPATH": str(course_root()), "PROBLAMA_QUIET": "1", "HF_HUB_OFFLINE": "1",
                     "PROBLAMA_RUNS": str(home / "runs"), **environment}  # fmt: skip
        variables.pop("PROBLAMA_MODEL", None)
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=home)
        assert done.returncode == 0, f"{name} stopped:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return {**json.loads(result.read_text(encoding="utf-8")), "stderr": done.stderr, "stdout": done.stdout}

    return run
