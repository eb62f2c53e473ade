"""The notebooks' set-up cell, run unchanged by real Pythons: Colab, Kaggle, a checkout, an installed package.

A runtime is a fresh virtual environment in which this environment's packages count as preinstalled (through a `.pth`
file), so that a case costs seconds; one case installs for real. The repository is a bare clone of the working tree,
which git reaches by a `file://` address in place of GitHub's.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import time
from pathlib import Path

import pytest

from problama_utils.setup import install

ROOT = Path(install.__file__).resolve().parents[2]
CELL = next("".join(cell["source"]) for cell in json.loads(
    (ROOT / "notebooks/01_ppo_vs_grpo.ipynb").read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code")
PACKAGES = sysconfig.get_paths()["purelib"]
REPORT = """
import importlib.metadata as metadata, json, sys
import problama_utils
loaded = [name for name in ("torch", "numpy", "transformers") if name in sys.modules]
from problama_utils.tasks.datasets import load_few_shot
from problama_utils.tasks.sources import assets_folder
print("REPORT", json.dumps({"package": problama_utils.__file__, "loaded": loaded, "assets": str(assets_folder()),
      "numpy": metadata.version("numpy"), "torch": metadata.version("torch"), "trl": metadata.version("trl")}))
"""
# What Jupyter's kernel gives to IPython.get_ipython(), reduced to the one method that is used.
KERNEL = """
import sys, types
class Kernel:
    def do_shutdown(self, restart):
        print("RESTART", restart, flush=True)
shell = types.SimpleNamespace(kernel=Kernel())
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
"""
pytestmark = pytest.mark.slow


def git(*arguments, cwd):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=cwd, check=True,
                   capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """`(checkout, settings)`: a copy of the working tree, and the environment under which GitHub is its bare clone."""
    place = tmp_path_factory.mktemp("repository")
    checkout, bare = place / "checkout", place / "github" / "no-problama" / "no-problama"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True,
                            check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    git("init", "--quiet", "-b", "main", cwd=checkout)
    git("add", "--all", cwd=checkout)
    git("commit", "--quiet", "-m", "working tree", cwd=checkout)
    git("clone", "--quiet", "--bare", str(checkout), str(bare), cwd=place)
    return checkout, {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{place}/github/.insteadOf",
                      "GIT_CONFIG_VALUE_0": "https://github.com/"}


class Runtime:
    """A fresh environment with stand-ins for what a host preinstalls, and an empty folder to work in."""

    def __init__(self, place, repository, *, preinstalled=PACKAGES):
        self.place, self.env, self.work = place, place / "env", place / "work"
        self.work.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.env)], check=True)
        self.python = self.env / "bin" / "python"
        self.packages = next((self.env / "lib").glob("python*")) / "site-packages"
        (self.packages / "preinstalled.pth").write_text(f"{preinstalled}\n")
        (self.packages / "google" / "colab").mkdir(parents=True)
        (self.packages / "google" / "colab" / "__init__.py").write_text("")
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.settings = {**kept, **repository[1], "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(place)}

    def preinstall(self, *requirements):
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet", "--no-deps"]
        subprocess.run([*command, *requirements], check=True)

    def cell(self, before="", after=REPORT, text=CELL, **settings):
        """Run the cell's own text between two programs; return (status, output, seconds, report)."""
        program = self.place / "program.py"
        program.write_text("\n".join([before, text, after]))
        started = time.perf_counter()
        done = subprocess.run([str(self.python), str(program)], cwd=self.work, env={**self.settings, **settings},
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
        lines = done.stdout.splitlines()
        report = next((json.loads(line[7:]) for line in lines if line.startswith("REPORT ")), None)
        shown = [line for line in lines if not line.startswith("REPORT ")]
        return done.returncode, shown, time.perf_counter() - started, report


@pytest.fixture
def runtime(tmp_path, repository):
    return Runtime(tmp_path, repository)


HOSTS = {"colab": {"COLAB_RELEASE_TAG": "release", "COLAB_GPU": ""},
         "kaggle": {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}}


@pytest.mark.parametrize("host", HOSTS)
def test_a_fresh_host_gets_the_course_once_and_a_second_run_is_quick_and_silent(runtime, host):
    status, shown, _, report = runtime.cell("import google.colab", **HOSTS[host])
    assert status == 0 and [line.split(":")[0] for line in shown] == ["No Problama", "No Problama is installed."], shown
    assert report["loaded"] == []  # neither torch nor numpy was imported on the way
    assert Path(report["package"]).is_relative_to(runtime.work / "no-problama")
    assert Path(report["assets"]).is_relative_to(runtime.work / "no-problama")
    status, shown, seconds, report = runtime.cell(**HOSTS[host], PATH="")  # no git, nothing to fetch with
    assert (status, shown) == (0, []) and report["loaded"] == [] and seconds < 10


def test_a_hosts_own_numpy_stays_where_the_range_allows_it_even_if_loaded(runtime):
    runtime.preinstall("numpy==2.3.5")
    status, shown, _, report = runtime.cell(f"{KERNEL}\nimport numpy")
    assert status == 0 and report["numpy"] == "2.3.5", shown
    assert report["torch"] == importlib.metadata.version("torch")
    assert not any("RESTART" in line for line in shown)


def test_a_numpy_that_is_too_old_is_replaced_and_the_kernel_restarts_at_once(runtime):
    runtime.preinstall("numpy==1.26.4")
    status, shown, _, report = runtime.cell(f"{KERNEL}\nimport numpy", after="print('THE NEXT CELL')")
    assert status == 0 and shown[-1] == "RESTART True" and "numpy 1.26.4" in shown[-2], shown
    status, shown, _, report = runtime.cell(f"{KERNEL}\nimport numpy")  # after the restart
    assert (status, shown) == (0, []) and f"numpy=={report['numpy']}" == install.requirements()["numpy"]


def test_without_a_kernel_a_stale_package_ends_in_one_sentence(runtime):
    runtime.preinstall("numpy==1.26.4")
    status, shown, _, _ = runtime.cell("import numpy")
    assert status == 1 and "had loaded numpy 1.26.4" in shown[-1] and not any("Traceback" in line for line in shown)


OLD_TORCHAO = """
from peft.import_utils import is_torchao_available
print("TORCHAO", is_torchao_available())
"""


def test_a_torchao_that_peft_refuses_is_taken_away(runtime):
    runtime.preinstall("torchao==0.10.0")
    status, shown, _, _ = runtime.cell(after=OLD_TORCHAO, **HOSTS["colab"])
    assert status == 0 and shown[-1] == "TORCHAO False", shown
    assert not (runtime.packages / "torchao").exists()
    again = runtime.cell(after=OLD_TORCHAO)[1]
    assert again[-1] == "TORCHAO False" and not any("No Problama" in line for line in again)


def test_a_torchao_that_pip_cannot_remove_gets_a_newer_one_before_it(runtime):
    other = runtime.place / "of-another-environment"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(other)]
    subprocess.run([*command, "torchao==0.10.0"], check=True)
    (runtime.packages / "z.pth").write_text(f"{other}\n")
    status, shown, _, _ = runtime.cell(after=OLD_TORCHAO)
    assert status == 0 and shown[-1] == "TORCHAO True" and (other / "torchao").exists(), shown
    assert any("torchao 0.10.0 gave way to" in line for line in shown)


def test_a_card_gets_its_line_on_vllm(runtime):
    tools = runtime.place / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'Tesla T4, 7.5, 15360, 15101, 580.82.07'\n")
    (tools / "nvidia-smi").chmod(0o755)
    settings = {**HOSTS["colab"], "PATH": f"{tools}:{os.environ['PATH']}", "PIP_DRY_RUN": "1"}
    status, shown, _, _ = runtime.cell(after="", **settings)
    assert status == 0 and shown[-1] == "No Problama is installed." and "vLLM" in shown[-2], shown
    assert "completions are sampled without it" in shown[-2]  # this machine's torch is a build for CPUs


def test_the_cell_is_short_and_the_same_in_every_notebook():
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code") == CELL, path.name
    assert len(CELL.splitlines()) <= 30 and "KEEP_ON_DRIVE = False" in CELL


DRIVE = """
from pathlib import Path
def mount(place):
    (Path(place) / "MyDrive").mkdir(parents=True, exist_ok=True)
"""
WHERE = "from problama_utils.config import runs_dir; print('RUNS', runs_dir())"


@pytest.mark.parametrize("host", ["Colab", "Colab, refused", "elsewhere"])
def test_the_switch_keeps_the_runs_on_drive_where_there_is_one(runtime, repository, host):
    if host != "elsewhere":
        refused = "    raise ValueError('mount failed')\n" if "refused" in host else ""
        (runtime.packages / "google/colab/drive.py").write_text(DRIVE + refused)
    else:
        shutil.rmtree(runtime.packages / "google")
    before = ("import problama_utils.setup.install as i, pathlib; "
              f"i.DRIVE = pathlib.Path({str(runtime.place / 'drive')!r})")
    text = CELL.replace("KEEP_ON_DRIVE = False", "KEEP_ON_DRIVE = True")
    status, shown, _, _ = runtime.cell(before, WHERE, text=text, PYTHONPATH=str(repository[0]), PROBLAMA_RUNS="")
    local, drive = repository[0] / "runs", runtime.place / "drive/MyDrive/no-problama/runs"
    place = drive if host == "Colab" else local
    assert status == 0 and len(shown) == 2 and str(place) in shown[0] and shown[1] == f"RUNS {place}", shown
    status, shown, _, _ = runtime.cell(before, WHERE, PYTHONPATH=str(repository[0]), PROBLAMA_RUNS="")
    assert shown == [f"RUNS {local}"]  # not asked for


def test_in_a_checkout_it_uses_the_checkout_and_fetches_nothing(runtime, repository):
    runtime.work = repository[0] / "notebooks"
    status, shown, _, report = runtime.cell(GIT_CONFIG_COUNT="0", GIT_ALLOW_PROTOCOL="none")
    assert status == 0, shown
    assert Path(report["package"]) == repository[0] / "problama_utils" / "__init__.py"
    assert not (runtime.work / "no-problama").exists()


def test_in_an_installed_checkout_it_does_nothing_at_all(runtime, repository):
    done = runtime.cell(after="print('problama_utils' in sys.modules)", PYTHONPATH=str(repository[0]), PATH="")
    assert done[:2] == (0, ["False"]) and list(runtime.work.iterdir()) == []


def test_a_package_installed_without_its_data_gets_the_checkout_that_holds_them(runtime, repository):
    runtime.preinstall("--no-build-isolation", str(repository[0]))
    assert (runtime.packages / "problama_utils/setup/install.py").exists()
    assert not (runtime.packages / "assets").exists()
    status, shown, _, report = runtime.cell()
    assert status == 0 and Path(report["assets"]).is_relative_to(runtime.work / "no-problama"), shown
    assert Path(report["package"]).is_relative_to(runtime.work / "no-problama")


def test_a_repository_that_cannot_be_reached_ends_in_one_sentence_and_leaves_nothing(runtime):
    status, shown, _, _ = runtime.cell(GIT_CONFIG_KEY_0="url.file:///nowhere/.insteadOf")
    assert status == 1 and "could not be fetched" in shown[-1] and not any("Traceback" in line for line in shown)
    assert list(runtime.work.iterdir()) == []


def test_an_index_that_cannot_be_reached_ends_in_one_sentence_and_is_not_taken_for_installed(runtime):
    runtime.preinstall("trl==1.14.0")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "",
               "PIP_NO_CACHE_DIR": "1"}
    status, shown, _, _ = runtime.cell(**nowhere)
    assert status == 1 and shown[-1].startswith("No Problama:") and not any("Traceback" in line for line in shown)
    assert not (runtime.packages / install.STAMP).exists()


def test_with_a_gpu_unsloth_goes_in_without_dependencies_plus_the_few_it_needs(runtime):
    tools = runtime.place / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\n")
    (tools / "nvidia-smi").chmod(0o755)
    log = runtime.place / "pip.log"
    status, shown, _, _ = runtime.cell(PATH=f"{tools}:{os.environ['PATH']}", PIP_DRY_RUN="1", PIP_LOG=str(log))
    assert status == 0, shown
    would = [line.split("Would install ")[1].split() for line in log.read_text().splitlines()
             if "Would install" in line]
    assert would[0] == [pin.replace("==", "-") for pin in install.UNSLOTH]
    names = {item.rpartition("-")[0].lower().replace("_", "-") for item in would[1]}
    assert {"tyro", "msgspec", "sentencepiece", "einops", "structlog"} <= names
    assert not names & {"torch", "numpy", "torchvision", "xformers", "diffusers", "transformers", "trl", "datasets"}


def test_a_real_kernel_goes_down_at_once_and_runs_nothing_that_was_queued(tmp_path):
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import KernelSpec

    class Manager(KernelManager):
        kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    manager = Manager(connection_file=str(tmp_path / "kernel.json"))
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        client.execute(textwrap.dedent(f"""
            import sys, types
            sys.path.insert(0, {str(ROOT)!r})
            sys.modules["numpy"] = types.ModuleType("numpy")
            sys.modules["numpy"].__version__ = "1.0"
            from problama_utils.setup import install
            install.install_into_this_python = lambda: None
            install.into_notebook_host()
        """))
        client.execute(f"open({str(tmp_path / 'next')!r}, 'w')")
        deadline = time.monotonic() + 60
        while manager.is_alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not manager.is_alive() and not (tmp_path / "next").exists()
    finally:
        client.stop_channels()
        if manager.is_alive():
            manager.shutdown_kernel(now=True)


def link_closure(names, folder):
    """Make `folder` look like site-packages with these distributions and all that they require, as symbolic links."""
    from packaging.requirements import Requirement

    folder.mkdir()
    wanted, done = list(names), set()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in done:
            continue
        done.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # only needed elsewhere
        for part in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / part).exists():
                (folder / part).symlink_to(Path(PACKAGES) / part)
        wanted += [r.name for r in map(Requirement, distribution.requires or [])
                   if not r.marker or r.marker.evaluate({"extra": ""})]
    return folder


def test_a_runtime_with_only_torch_and_the_usual_science_packages_is_ready_in_three_minutes(tmp_path, repository):
    usual = link_closure(["torch", "numpy", "pandas", "matplotlib", "tqdm", "filelock", "pip"], tmp_path / "usual")
    runtime = Runtime(tmp_path, repository, preinstalled=usual)
    status, shown, seconds, report = runtime.cell(f"{KERNEL}\nimport numpy, google.colab")
    assert status == 0 and "No Problama is installed." in shown and not any("RESTART" in line for line in shown), shown
    assert {"trl": report["trl"], "torch": report["torch"]} == {name: importlib.metadata.version(name)
                                                               for name in ("trl", "torch")}
    assert (runtime.packages / "transformers").is_dir() and not (runtime.packages / "torch").exists()
    print(f"{seconds:.0f} s")
    assert seconds < 180
    assert runtime.cell()[2] < 10
