"""Set-up before anything is installed: early refusals, one sentence each, nothing half made."""

import subprocess
import sys
from pathlib import Path

import pytest

from problama_utils import install

SCRIPT = Path(install.__file__)


def test_the_script_needs_nothing_but_the_standard_library():
    done = subprocess.run([sys.executable, "-S", "-E", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--venv" in done.stdout


@pytest.mark.parametrize(
    ("complaint", "word"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk filled up"),
        ("WARNING: Retrying after connection broken by Name resolution failure", "cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "torch==2.13.0"),
        ("ERROR: something else entirely", "something else entirely"),
    ],
)
def test_pips_complaints_become_a_sentence_with_a_next_step(complaint, word):
    sentence = install.explain(complaint)
    assert word in sentence and "\n" not in sentence and ":" in sentence


def test_an_old_python_is_refused_before_anything_is_made(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(install.sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit):
        install.make_environment(tmp_path / ".venv")
    assert "3.9.1" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_full_disk_is_refused_before_anything_is_made(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(install.shutil, "disk_usage", lambda _: install.shutil._ntuple_diskusage(1, 1, 10**8))
    with pytest.raises(SystemExit):
        install.make_environment(tmp_path / ".venv")
    assert "0.1 GB are free" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_failed_installation_leaves_no_environment_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(install, "pip", lambda *a, **k: install.fail("the package index cannot be reached"))
    with pytest.raises(SystemExit):
        install.make_environment(tmp_path / ".venv")
    assert not list(tmp_path.iterdir())


def test_a_finished_installation_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / install.STAMP).write_text(install.wanted_state())
    monkeypatch.setattr(install.subprocess, "run", lambda *a, **k: pytest.fail("something was installed again"))
    install.make_environment(tmp_path)


def test_every_requirement_is_pinned_and_has_its_reason():
    lines = (SCRIPT.parent.parent / "requirements.txt").read_text().splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            assert "==" in line and "#" in line and len(line.split("#")[1].split()) >= 3, line


def test_on_a_notebook_host_torch_and_numpy_stay_and_jupyter_is_not_touched(monkeypatch):
    calls = []
    monkeypatch.setattr(install, "pip", lambda python, *arguments, **k: calls.append(arguments))
    monkeypatch.setattr(install.shutil, "which", lambda _: None)
    install.install_into_this_python()
    import numpy
    import torch

    assert f"numpy=={numpy.__version__}" in calls[0] and f"torch=={torch.__version__}" in calls[0]
    assert not any(argument.startswith(("jupyterlab", "ipykernel")) for argument in calls[0])


@pytest.mark.parametrize("command", ["course", "test"])
def test_without_python_make_says_so_in_one_line(command):
    done = subprocess.run(["make", "--no-print-directory", command, "PYTHON=no-such-python"], capture_output=True,
                          text=True, cwd=SCRIPT.parent.parent)
    assert done.returncode != 0 and "there is no 'no-such-python' here" in done.stderr
