"""Windows and macOS, as far as a Linux machine can play them; and every Python that pyproject.toml promises."""

import ast
import os
import re
import signal
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import psutil
import pytest

from problama_utils.setup import install, machine

ROOT = Path(install.__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "problama_utils").rglob("*.py"))
POSIX_MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"}
POSIX_FUNCTIONS = {"fork", "getuid", "geteuid", "getloadavg", "killpg", "setsid", "mkfifo", "getpgid", "uname", "chown"}

# A Python without the modules that Windows lacks, as far as the course's own code asks for them.
WINDOWS = """
import builtins, importlib, pkgutil, sys
real = builtins.__import__
def without(name, globals=None, *rest, **named):
    if name in {gone} and (globals or {{}}).get("__name__", "").startswith("problama_utils"):
        raise ModuleNotFoundError(f"No module named {{name!r}}")
    return real(name, globals, *rest, **named)
builtins.__import__ = without
import problama_utils
for module in pkgutil.walk_packages(problama_utils.__path__, "problama_utils."):
    importlib.import_module(module.name)
from problama_utils.setup.machine import peak_memory_gb
import psutil, types
psutil.Process = lambda: types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(peak_wset=3_250_000_000))
print("PEAK", peak_memory_gb())
"""


def test_every_module_can_be_imported_without_what_windows_lacks():
    done = subprocess.run([sys.executable, "-c", WINDOWS.format(gone=sorted(POSIX_MODULES))], capture_output=True,
                          text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "PEAK 3.25"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.name)
def test_nothing_asks_for_what_only_posix_has(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert path.name == "machine.py" or not POSIX_MODULES & set(names), f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in POSIX_FUNCTIONS, f"{path.name}:{node.lineno}: os.{node.attr}"


@pytest.mark.parametrize("path", [*PACKAGE, *sorted((ROOT / "benchmarks").glob("*.py"))], ids=lambda path: path.name)
def test_text_files_are_read_and_written_as_utf_8_whatever_the_system_prefers(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        called = getattr(node.func, "attr", "")
        builtin = isinstance(node.func, ast.Name) and node.func.id == "open"
        text = " ".join(map(ast.unparse, node.args))
        assert called not in ("read_text", "write_text") or isinstance(node.func.value, ast.Name) and \
            node.func.value.id in ("distribution",), f"{path.name}:{node.lineno}"
        assert not builtin or "b'" in text or "devnull" in text, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize(("platform", "raw", "gigabytes"), [
    ("linux", 3_173_828, 3.25), ("darwin", 3_250_000_000, 3.25), ("freebsd14", 3_173_828, 3.25),
    ("linux", 0, 0.0), ("darwin", 3_100_000_000_000, 3100.0),
])  # fmt: skip
def test_peak_memory_is_in_gigabytes_on_every_posix_system(platform, raw, gigabytes, monkeypatch):
    fake = types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: types.SimpleNamespace(ru_maxrss=raw))
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(machine.sys, "platform", platform)
    assert machine.peak_memory_gb() == pytest.approx(gigabytes, rel=1e-4)


def test_peak_memory_of_this_process_is_at_least_what_it_holds():
    held = psutil.Process().memory_info().rss / 1e9
    assert held * 0.8 < machine.peak_memory_gb() < held + 20


@pytest.mark.parametrize("missing", ["no sysconf", "no such name", "refused"])
def test_memory_is_seen_without_sysconf(missing, monkeypatch):
    def sysconf(name):
        raise ValueError("unrecognized configuration name") if missing == "no such name" else OSError(22, name)

    if missing == "no sysconf":
        monkeypatch.delattr(os, "sysconf")
    else:
        monkeypatch.setattr(os, "sysconf", sysconf)
    total, free = machine._memory()
    assert total == pytest.approx(psutil.virtual_memory().total / 1e9) and 0 < free < total
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert machine._memory() == (None, None)  # nothing is installed yet


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "cp850", "cp932", "ascii", "latin-1", "utf-8"])
def test_a_console_that_lacks_a_sign_does_not_end_the_program(encoding):
    program = "import problama_utils; print('\\u2713 \\u2717 \\u2013 \\u00d7 \\u2192 \\u03b5'); raise SystemExit(7)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT,
                          env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 7, done.stderr
    assert done.stdout.decode(encoding).strip()


@pytest.mark.parametrize(("platform", "place"), [("win32", "Scripts/python.exe"), ("linux", "bin/python"),
                                                 ("darwin", "bin/python")])  # fmt: skip
def test_the_environments_python_is_found(platform, place, monkeypatch, tmp_path):
    monkeypatch.setattr(install.sys, "platform", platform)
    assert install.python_of(tmp_path) == tmp_path / place


def test_steps_run_in_order_in_utf_8_until_one_fails(tmp_path):
    said = tmp_path / "said"
    step = "import os, sys; open(sys.argv[1], 'a', encoding='utf-8').write(os.getcwd() + sys.argv[2] + str(" \
           "sys.flags.utf8_mode)); sys.exit(int(sys.argv[2]))"
    before = signal.getsignal(signal.SIGINT)
    status = install.run_steps(Path(sys.executable), [("-c", step, str(said), number) for number in "034"])
    assert status == 3 and said.read_text(encoding="utf-8") == f"{ROOT}01{ROOT}31"
    assert signal.getsignal(signal.SIGINT) is before
    assert install.run_steps(Path(sys.executable), [("-c", "")]) == 0


@pytest.mark.parametrize("name", install.STEPS)
def test_an_installation_goes_on_with_what_was_asked_for(name, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(install, "make_environment", lambda folder: ran.append(folder))
    monkeypatch.setattr(install, "run_steps", lambda python, steps: ran.append(steps) or 5)
    monkeypatch.setattr(sys, "argv", ["install.py", "--venv", ".venv", "--then", name])
    with pytest.raises(SystemExit) as ended:
        install.main()
    assert ended.value.code == 5 and ran == [ROOT / ".venv", install.STEPS[name]]
    monkeypatch.setattr(sys, "argv", ["install.py", "--then", name])
    with pytest.raises(SystemExit):
        install.main()
    assert f"--venv .venv --then {name}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_windows_two_commands_stand_in_the_readme_and_can_be_parsed():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^py -3\.(\d+) (\S+) --venv \.venv --then (\S+)$", readme, re.MULTILINE)
    assert {path for _, path, _ in lines} == {"problama_utils\\setup\\install.py"}
    assert [then for *_, then in lines] == ["course", "test"] and {then for *_, then in lines} <= set(install.STEPS)


def test_one_range_of_pythons_stands_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = [f"3.{minor}" for minor in range(install.OLDEST[1], install.NEWEST[1] + 1)]
    assert project["requires-python"] == f">={pythons[0]},<3.{install.NEWEST[1] + 1}"
    assert [text.split(" :: ")[-1] for text in project["classifiers"] if "Python :: 3." in text] == pythons
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert re.search(r"python: \[(.*)\]", workflow)[1].replace('"', "").split(", ") == pythons
    said = f"{', '.join(pythons[:-1])} or {pythons[-1]}"
    for name in ("README.md", "Makefile", "problama_utils/setup/pip_causes.py", "problama_utils/setup/preflight.py"):
        assert f"Python {said}" in (ROOT / name).read_text(encoding="utf-8"), name
