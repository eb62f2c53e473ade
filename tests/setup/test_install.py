"""Set-up before anything is installed: early refusals, one sentence each, nothing half made."""

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest

from problama_utils.setup import install

SCRIPT = Path(install.__file__)


def test_the_script_needs_nothing_but_the_standard_library():
    done = subprocess.run([sys.executable, "-S", "-E", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--venv" in done.stdout


def test_the_script_starts_on_pythons_that_are_too_old_to_run_the_course():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))
    early = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert "tomllib" not in early  # new in 3.11


@pytest.mark.parametrize(
    ("complaint", "word"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk filled up"),
        ("WARNING: Retrying after connection broken by Name resolution failure", "cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "torch==2.13.0"),
        ("ERROR: something else entirely", "something else entirely"),
        ("ERROR: packages conflict\nWARNING: a link is ignored", "packages conflict"),
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
    lines = (SCRIPT.parents[2] / "requirements.txt").read_text().splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            assert "==" in line and "#" in line and len(line.split("#")[1].split()) >= 3, line


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A notebook host whose pip only writes down what it is asked for: `(releases, calls)`, the first to change."""
    calls = []
    releases = {pin.split("==")[0]: pin.split("==")[1] for pin in install.requirements().values()}

    monkeypatch.setattr(install, "installed_version", lambda name: releases.get(name, ""))
    monkeypatch.setattr(install, "remains", lambda name: "")
    monkeypatch.setattr(install, "pip", lambda python, *arguments, **k: calls.append(arguments))
    monkeypatch.setattr(install.shutil, "which", lambda _: None)
    monkeypatch.setattr(install, "host_stamp", lambda: tmp_path / install.STAMP)
    return releases, calls


def test_a_notebook_host_keeps_its_torch_and_numpy_and_jupyter_is_not_touched(host):
    host[0].update(torch="2.12.1+cu126", numpy="2.0.2")
    install.install_into_this_python()
    assert {"torch==2.12.1+cu126", "numpy==2.0.2"} <= set(host[1][0])
    assert not any(argument.startswith(("jupyterlab", "ipykernel", "pytest")) for argument in host[1][0])


@pytest.mark.parametrize(("name", "own"), [("torch", "2.9.0+cu126"), ("torch", "2.15.0"), ("numpy", "1.26.4")])
def test_what_lies_outside_pyprojects_range_is_replaced_by_the_tested_release(host, name, own):
    host[0].update({name: own, "torchvision": "0.24.0"})
    install.install_into_this_python()
    assert install.requirements()[name] in host[1][0]
    assert ("torchvision" in host[1][0]) == (name == "torch")  # built for one torch, so the two go together


def test_the_libraries_that_drift_are_pinned_on_a_notebook_host_too(host):
    host[0].update(trl="1.14.9", peft="0.99.0")
    install.install_into_this_python()
    pins = install.requirements()
    assert {pins["trl"], pins["peft"], pins["transformers"], pins["datasets"]} <= set(host[1][0])


def test_a_second_installation_asks_pip_for_nothing_until_something_is_replaced(host):
    install.install_into_this_python()
    install.install_into_this_python()
    assert len(host[1]) == 1
    del host[0]["trl"]
    install.install_into_this_python()
    assert len(host[1]) == 2


def test_a_loaded_package_is_stale_only_if_another_release_is_on_disk(host):
    def loaded(version):
        return types.SimpleNamespace(__version__=version)

    host[0].update(torch="2.13.0+cpu", numpy="2.4.6")
    modules = {"numpy": loaded("1.26.4"), "torch": loaded("2.13.0"), "tqdm": types.SimpleNamespace(),
               "gone": loaded("1")}
    assert install.stale(modules, ["numpy", "torch", "tqdm", "pandas", "gone"]) == ["numpy 1.26.4"]


@pytest.mark.parametrize("command", ["course", "test"])
def test_without_python_make_says_so_in_one_line(command):
    done = subprocess.run(["make", "--no-print-directory", command, "PYTHON=no-such-python"], capture_output=True,
                          text=True, cwd=SCRIPT.parents[2])
    assert done.returncode != 0 and "there is no 'no-such-python' here" in done.stderr


@pytest.mark.parametrize("secret", ["hf_stand-in", None])
def test_colabs_secret_reaches_the_environment_and_is_never_shown(secret, monkeypatch, capsys):
    from types import ModuleType

    def get(name):
        if secret is None:
            raise KeyError(name)
        return secret

    colab, userdata = ModuleType("google.colab"), ModuleType("google.colab.userdata")
    userdata.get, colab.userdata = get, userdata
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setenv("HF_TOKEN", "")
    install.take_colab_secret()
    assert install.os.environ["HF_TOKEN"] == (secret or "")
    assert capsys.readouterr() == ("", "")


# What a host may carry of torchao, and whether peft attaches a LoRA beside it
TORCHAOS = [
    ("0.0.3", False), ("0.1", False), ("0.7.0", False), ("0.10.0", False), ("0.10.0+cu128", False), ("0.14.1", False),
    ("0.15.0", False), ("0.15.9", False), ("0.15.0.post1", False), ("0.16.0.dev20260101", False), ("0.16.0rc1", False),
    ("0.16.0", True), ("0.16.0+cu128", True), ("0.16", True), ("0.16.0.post1", True), ("0.17.0", True),
    ("0.18.0.dev20260401", True), ("0.18.0", True), ("1.0.0", True),
]  # fmt: skip


@pytest.mark.parametrize(("version", "works"), TORCHAOS)
def test_a_torchao_that_peft_refuses_is_removed_and_any_other_stays(version, works, host, monkeypatch, capsys):
    releases, calls = host
    releases["torchao"] = version

    def pip(python, *arguments, action="install", **_):
        calls.append((action, arguments))
        if action == "uninstall":
            releases.pop(arguments[-1])

    monkeypatch.setattr(install, "pip", pip)
    install.install_into_this_python()
    assert ([arguments for action, arguments in calls if action == "uninstall"] == []) is works
    assert releases.get("torchao") == (version if works else None)
    assert (f"torchao {version} is removed" in capsys.readouterr().out) is not works
    told = len(calls)
    install.install_into_this_python()
    assert len(calls) == told  # the second time there is nothing to do


def test_the_bounds_are_pefts_own():
    from importlib.util import find_spec

    from packaging.version import Version

    source = (Path(find_spec("peft").origin).parent / "import_utils.py").read_text(encoding="utf-8")
    least = install.re.search(r'TORCHAO_MINIMUM_VERSION = packaging.version.parse\("([^"]+)"\)', source)[1]
    assert Version(least) == Version(install.REFUSED["torchao"].removeprefix(">="))
    for version, works in TORCHAOS:
        assert install.fits(version, install.REFUSED["torchao"]) is works is (Version(version) >= Version(least))


def test_an_installation_that_is_done_still_removes_a_torchao_that_came_later(host, monkeypatch):
    install.install_into_this_python()
    host[0]["torchao"] = "0.10.0"
    removed = []
    monkeypatch.setattr(install, "pip", lambda python, *arguments, action="install", **_: (
        removed.append(host[0].pop("torchao")) if action == "uninstall" else None))
    install.install_into_this_python()
    assert removed == ["0.10.0"]


def test_where_pip_removes_nothing_a_newer_torchao_comes_before_the_old_one(host, monkeypatch, capsys):
    """As in an environment that sees another one's packages: pip leaves those alone and ends well."""
    host[0]["torchao"] = "0.10.0"
    calls = []

    def pip(python, *arguments, action="install", **_):
        calls.append((action, arguments))
        if arguments == ("torchao>=0.16",):
            host[0]["torchao"] = "0.18.0"

    monkeypatch.setattr(install, "pip", pip)
    install.install_into_this_python()
    assert [action for action, _ in calls] == ["install", "uninstall", "install"]
    assert "torchao 0.10.0 gave way to 0.18.0" in capsys.readouterr().out


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A function that makes this Python look like Colab, its Drive mounted by the function that is given."""
    from types import ModuleType

    monkeypatch.setattr(install, "DRIVE", tmp_path / "drive")
    monkeypatch.setenv("PROBLAMA_RUNS", "")

    def pretend(mount):
        google, package = ModuleType("google"), ModuleType("google.colab")
        google.colab, google.__path__, package.__path__ = package, [], []
        if mount:
            package.drive = ModuleType("google.colab.drive")
            package.drive.mount = lambda place: mount(Path(place))
        for module in (google, package):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return tmp_path / "drive" / "MyDrive" / "no-problama" / "runs"

    return pretend


def raising(error):
    def mount(place):
        raise error

    return mount


def mounted(place, *, blocked=None):
    (place / "MyDrive").mkdir(parents=True, exist_ok=True)
    if blocked:
        (place / "MyDrive" / blocked).parent.mkdir(parents=True, exist_ok=True)
        (place / "MyDrive" / blocked).write_text("a file in the way")


def as_a_file(place):
    place.mkdir()
    (place / "MyDrive").write_text("")


HINDRANCES = {  # what mounting does → a word of the sentence
    "not Colab": (None, "KEEP_ON_DRIVE is for Colab"),
    "refused": (raising(ValueError("mount failed")), "mount failed"),
    "window closed": (raising(RuntimeError("Error: credential propagation was unsuccessful")), "credential"),
    "several lines": (raising(RuntimeError("Timed out\nTraceback: much more")), "(Timed out)"),
    "no words": (raising(TimeoutError()), "TimeoutError"),
    "a very long reason": (raising(OSError("x" * 9000)), "xxx"),
    "something mounted there": (raising(ValueError("Mountpoint must not already contain files")), "Mountpoint"),
    "nothing happens": (lambda place: None, "was not mounted"),
    "an empty mount point": (lambda place: place.mkdir(), "was not mounted"),
    "MyDrive is a file": (as_a_file, "was not mounted"),
    "our folder is a file": (lambda place: mounted(place, blocked="no-problama"), "no-problama"),
    "our runs are a file": (lambda place: mounted(place, blocked="no-problama/runs"), "runs"),
    "not writable": (lambda place: (mounted(place), (place / "MyDrive/no-problama/runs/.writable").mkdir(parents=True)),
                     "writable"),
}  # fmt: skip


@pytest.mark.parametrize("case", HINDRANCES)
@pytest.mark.parametrize("before", ["", "mounted a moment ago"])
def test_without_drive_the_runs_stay_on_this_disk_and_one_sentence_says_so(case, before, colab, monkeypatch, capsys):
    from problama_utils.config import runs_dir

    mount, word = HINDRANCES[case]
    folder = colab(mount)
    monkeypatch.setenv("PROBLAMA_RUNS", str(folder) if before else "")
    install.keep_runs_on_drive()
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1 and shown.startswith("No Problama: ") and word in shown and len(shown) < 600
    assert runs_dir() == install.ROOT / "runs" and str(runs_dir()) in shown


def test_a_mounted_drive_takes_the_runs_of_every_notebook_that_asks(colab, capsys):
    from problama_utils.config import runs_dir

    folder = colab(mounted)
    for _ in range(2):  # the cell may run again, in this notebook or the next
        install.keep_runs_on_drive()
        shown = capsys.readouterr().out
        assert shown.count("\n") == 1 and str(folder) in shown and "Google Drive" in shown
        assert runs_dir() == folder and folder.is_dir() and not any(folder.iterdir())


def test_runs_made_before_the_switch_are_named(colab, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(install, "ROOT", tmp_path / "checkout")
    (tmp_path / "checkout/runs/riddles").mkdir(parents=True)
    colab(mounted)
    install.keep_runs_on_drive()
    assert f"Earlier runs stay in {tmp_path / 'checkout/runs'}." in capsys.readouterr().out


def test_a_place_named_by_hand_wins_over_drive(colab, monkeypatch, tmp_path, capsys):
    from problama_utils.config import runs_dir

    colab(raising(AssertionError("Drive was asked for")))
    monkeypatch.setenv("PROBLAMA_RUNS", str(tmp_path / "mine"))
    install.keep_runs_on_drive()
    assert runs_dir() == tmp_path / "mine" and str(tmp_path / "mine") in capsys.readouterr().out
