"""Packages that are half removed: their metadata lie first on the path, and the package counts as missing."""

import sys

import pytest

from problama_utils.config import get_profile
from problama_utils.setup import install, machine
from problama_utils.setup.preflight import PROBLEM, run_checks

SOUND = "Metadata-Version: 2.1\nName: trl\nVersion: 1.14.2\n"


def metadata(folder, text, *, kind="trl-1.14.2.dist-info", file="METADATA", record=None):
    place = folder / kind
    place.mkdir()
    if text is not None:
        (place / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    if record is not None:
        (place / "RECORD").write_text(record, encoding="utf-8")


def as_folder(folder):
    (folder / "trl-1.14.2.dist-info" / "METADATA").mkdir(parents=True)


def as_loop(folder):
    (folder / "trl-1.14.2.dist-info").mkdir()
    (folder / "trl-1.14.2.dist-info" / "METADATA").symlink_to("METADATA")


HALF = {
    "empty dist-info": lambda f: metadata(f, None),
    "only a RECORD": lambda f: metadata(f, None, record="trl/__init__.py,,\n"),
    "empty METADATA": lambda f: metadata(f, ""),
    "METADATA without Version": lambda f: metadata(f, "Metadata-Version: 2.1\nName: trl\n"),
    "METADATA without Name": lambda f: metadata(f, "Metadata-Version: 2.1\nVersion: 1.14.2\n"),
    "an empty Version": lambda f: metadata(f, "Metadata-Version: 2.1\nName: trl\nVersion:\n"),
    "a Version that is none": lambda f: metadata(f, "Metadata-Version: 2.1\nName: trl\nVersion: unknown\n"),
    "bytes that are no text": lambda f: metadata(f, b"Name: trl\nVersion: \xff\xfe\x00\n"),
    "METADATA is a folder": as_folder,
    "METADATA is a link to itself": as_loop,
    "dist-info without a version": lambda f: metadata(f, None, kind="trl.dist-info"),
    "another release's rest": lambda f: metadata(f, None, kind="trl-0.9.dist-info"),
    "empty egg-info": lambda f: metadata(f, None, kind="trl-1.14.2-py3.11.egg-info"),
    "egg-info without Version": lambda f: metadata(f, "Name: trl\n", kind="trl.egg-info", file="PKG-INFO"),
    "the package's folder is gone": lambda f: metadata(f, SOUND, record="trl/__init__.py,,\ntrl/trainer/x.py,,\n"),
    "the package's one module is gone": lambda f: metadata(f, SOUND, record="trl.py,,\nx.dist-info/RECORD,,\n"),
}


@pytest.fixture(params=HALF)
def half_removed(request, tmp_path, monkeypatch):
    HALF[request.param](tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    install.importlib.invalidate_caches()
    return tmp_path


def test_it_counts_as_missing_wherever_versions_are_read(half_removed):
    assert install.installed_version("trl") == ""
    assert install.satisfied("trl", "") == install.satisfied("trl", ">=1.14.2,<1.15") == ""
    loaded = type(sys)("trl")
    loaded.__version__ = "1.14.2"
    assert install.stale({"trl": loaded}, ["trl"]) == []
    assert "trl" not in machine.look(get_profile("cpu")).packages
    assert install.remains("trl").startswith(str(half_removed))


def test_preflight_names_it_with_a_cure(half_removed):
    checks = run_checks(machine.look(get_profile("cpu")), get_profile("cpu"))
    check = {check.name: check for check in checks}["packages"]
    assert check.grade == PROBLEM and "missing: trl" in check.found and "delete .venv" in check.cure


def test_a_notebook_host_asks_for_it_again_and_ends_in_a_sentence_where_that_did_not_help(
        half_removed, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(install, "pip", lambda python, *arguments, **k: asked.extend(arguments))
    monkeypatch.setattr(install.shutil, "which", lambda _: None)
    monkeypatch.setattr(install, "host_stamp", lambda: tmp_path / install.STAMP)
    with pytest.raises(SystemExit):
        install.install_into_this_python()
    assert install.requirements()["trl"] in asked and not (tmp_path / install.STAMP).exists()
    assert f"trl is half removed: delete what is left of it, {half_removed}" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "file", "record", "files"), [
    ("trl-1.14.2.dist-info", "METADATA", "trl/__init__.py,sha256=x,1\n", ["trl/__init__.py"]),
    ("trl-1.14.2.dist-info", "METADATA", "trl/part/x.py,,\n", []),  # no module of its own to look for
    ("trl-1.14.2.dist-info", "METADATA", "__editable__.trl-1.14.2.pth,,\n", []),
    ("trl-1.14.2.dist-info", "METADATA", None, []),
    ("trl.egg-info", "PKG-INFO", None, ["trl/__init__.py"]),
])
def test_sound_packages_of_every_kind_are_found(kind, file, record, files, tmp_path, monkeypatch):
    metadata(tmp_path, SOUND, kind=kind, file=file, record=record)
    for name in files:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert install.installed_version("trl") == "1.14.2" and install.remains("trl") == ""


@pytest.mark.parametrize(("version", "found"), [
    ("2.13.0+cpu", "2.13.0+cpu"), ("1.0rc1", "1.0rc1"), ("2026.10.9", "2026.10.9"),
    ("1!2.0.post1.dev3", "1!2.0.post1.dev3"),
    ("0.0.0", "0.0.0"), ("unknown", ""), ("", ""), ("None", ""), ("%VERSION%", ""),
])  # fmt: skip
def test_a_version_is_what_begins_with_a_number(version, found, tmp_path, monkeypatch):
    metadata(tmp_path, f"Name: trl\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert install.installed_version("trl") == found


@pytest.mark.parametrize(("version", "bounds", "answer"), [
    ("2.13.0+cpu", "==2.13.0", True), ("2.13", "==2.13.0", True), ("2.13.0rc1", "==2.13.0", False),
    ("2.11rc1", ">=2.11", False), ("2.11rc1", ">=2.10", True), ("2.15.0rc1", "<2.15", False),
    ("2.13.0.post1", ">=2.13", True), ("2.12.1+cu126", "==2.12.1+cu126", True), ("unknown", ">=1", False),
])  # fmt: skip
def test_bounds_are_kept_as_pip_keeps_them(version, bounds, answer):
    assert install.fits(version, bounds) is answer
