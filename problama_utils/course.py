"""Run the course: execute the numbered notebooks in order, measure each, leave copies and one report in `build/`.

`python -m problama_utils.course` is what `make course` calls. With `--publish` the executed notebooks also replace
the committed ones (outputs cleaned of noise), the measurements go to `assets/results/course.json`, and the README's
table is written from them, so that no figure in it is typed by hand.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import logging
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from problama_utils.config import course_root, detect_profile
from problama_utils.errors import CourseError
from problama_utils.machine import _memory

CELL_TIMEOUT = 3600  # seconds; a hung cell must not hang a class
RESULT = Path("assets/results/course.json")
_QUIET = logging.getLogger(f"{__name__}.quiet")  # nbclient tells a death three times; the runner tells it once
_QUIET.disabled = True


def numbered_notebooks(root: Path) -> list[Path]:
    """Return the course's notebooks in the order in which they are taught."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def title_of(notebook: NotebookNode) -> str:
    """Return the text of a notebook's first heading, without its number; nothing where it has none."""
    opening = notebook.cells[0].source if notebook.cells else ""
    heading = re.search(r"^#\s+(.+)$", opening, re.MULTILINE)
    return re.sub(r"^\d+\s*[·.:]\s*", "", heading[1]) if heading else ""


def read_notebook(path: Path) -> NotebookNode:
    """Return a notebook that can be executed here.

    Raises:
        CourseError: the file cannot be read, is no notebook, or asks for a kernel that is not installed.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        whole = all(isinstance(cell.source, str) and cell.cell_type for cell in notebook.cells)
        kernel = notebook.metadata.get("kernelspec", {}).get("name", "python3")
    except OSError as error:
        raise CourseError(f"{path.name} cannot be read ({error.strerror}): check the file.") from None
    except Exception as error:  # nbformat meets a file of another kind with many kinds of exception
        whole, kernel = False, type(error).__name__
    if not whole or not isinstance(kernel, str):
        raise CourseError(f"{path.name} is no notebook ({kernel}): a JSON file with cells was expected; restore it, as "
                          f"with `git checkout -- notebooks/{path.name}`.") from None
    try:
        KernelSpecManager().get_kernel_spec(kernel)
    except NoSuchKernel:
        raise CourseError(f"{path.name} asks for the kernel {kernel!r}, which is not installed here: open it with "
                          "`make lab`, choose a Python kernel and save it.") from None
    return notebook


class PeakMemory(threading.Thread):
    """Watch the resident memory of a process and its children, four times a second.

    `gb` is the highest sum seen, `free_gb` what the machine had left when the process was last seen.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.gb, self.free_gb, self.family = 0.0, available_gb(), {psutil.Process(pid)}
        self._process, self._stop_now = psutil.Process(pid), threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.25):
            try:
                family = [self._process, *self._process.children(recursive=True)]
                if self._process.status() == psutil.STATUS_ZOMBIE:  # what is free now was not free when it died
                    return
            except psutil.Error:
                return
            held = 0.0
            for member in family:
                with contextlib.suppress(psutil.Error):  # ended between two lines of this loop
                    held += member.memory_info().rss / 1e9
            self.gb, self.free_gb, self.family = max(self.gb, held), available_gb(), self.family | set(family)

    def stop(self) -> None:
        self._stop_now.set()


def available_gb() -> float:
    """Return the memory that is free on this machine, or below its container's limit."""
    free = psutil.virtual_memory().available / 1e9
    return max(0.0, min(free, _memory()[1] or free))


class Progress:
    """One line per notebook: what it is doing while it runs (in a terminal), minutes and memory when it is done."""

    def __init__(self, number: int, of: int, name: str, title: str) -> None:
        self._head, self._live = f"[{number}/{of}] {name:<22}", sys.stdout.isatty()
        if not self._live:
            print(f"{self._head} {title} ...", flush=True)

    def doing(self, what: str, started: float) -> None:
        if self._live:
            minutes = (time.perf_counter() - started) / 60
            print(f"\r\033[K{self._head} {minutes:4.1f} min  {what[:70]}", end="", flush=True)

    def done(self, minutes: float, gb: float, word: str = "done") -> None:
        start = "\r\033[K" if self._live else ""
        print(f"{start}{self._head} {minutes:4.1f} min  {gb:3.1f} GB  {word}", flush=True)


class NotebookStopped(CourseError):
    """A notebook did not come to its end; `measured` holds the minutes and the memory until then."""

    word, status = "FAILED", 1

    def __init__(self, message: str, measured: dict[str, float]) -> None:
        super().__init__(message)
        self.measured = measured


class NotebookInterrupted(NotebookStopped):
    """Ctrl-C while a notebook ran; its kernel has been ended."""

    word, status = "INTERRUPTED", 130


class Kernel:
    """What is known of the kernel in which a notebook runs: its process, its memory, the heading it has reached."""

    def __init__(self, client: NotebookClient, progress: Progress) -> None:
        self.client, self.progress, self.started = client, progress, time.perf_counter()
        self.heading, self.watch, self.process = "", None, None
        client.on_cell_start = self.before_cell

    def before_cell(self, cell: NotebookNode, cell_index: int) -> None:
        if self.watch is None and self.client.km.provisioner.pid:
            with contextlib.suppress(psutil.Error):  # gone already: the next message to it will tell
                self.process = self.client.km.provisioner.process
                self.watch = PeakMemory(self.process.pid)
                self.watch.start()
        found = re.findall(r"^#{1,3}\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        self.heading = found[-1] if found else self.heading
        self.progress.doing(self.heading, self.started)

    def measured(self) -> dict[str, float]:
        return {"minutes": round((time.perf_counter() - self.started) / 60, 2),
                "peak_memory_gb": round(self.watch.gb, 2) if self.watch else 0.0}

    def place(self) -> str:
        return f" below {self.heading!r}" if self.heading else ""

    def end(self) -> None:
        """End the kernel's process and all that it has started, whatever state they are in."""
        if self.watch:
            self.watch.stop()
        pid = self.process.pid if self.process else getattr(getattr(self.client.km, "provisioner", None), "pid", None)
        if pid and hasattr(os, "killpg"):  # a kernel leads a process group of its own, its orphans included
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        family = self.watch.family if self.watch else set()
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(family, timeout=0.5)

    def why_stopped(self, name: str, error: Exception) -> str:
        """Return the sentences on a notebook that stopped: where, what happened, with how much memory, what to do."""
        look = "open it with `make lab` to see where"
        if isinstance(error, CellExecutionError):
            told = " ".join(f"{error.ename}: {error.evalue}".split())[:400]
            return f"{name} stopped: {told}, in a cell{self.place()}. {look.capitalize()}"
        if isinstance(error, CellTimeoutError):
            what = f"a cell did not return within {self.client.timeout} seconds"
            cure = (f"If it only needs longer, run `python -m problama_utils.course --cell-timeout "
                    f"{2 * self.client.timeout}`; otherwise {look}")
        elif isinstance(error, DeadKernelError):
            what, cure = self._death()
        else:  # a kernel that does not come up: jupyter_client has no error of its own for that
            what = f"its kernel cannot be reached ({' '.join(str(error).split())[:200]})"
            cure = "Close other programs and try again; `python -m problama_utils.preflight` looks for what is missing"
        memory = (f" Memory: at most {self.watch.gb:.1f} GB until then, with {self.watch.free_gb:.1f} GB free on the "
                  "machine." if self.watch else "")
        return f"{name} stopped{self.place()}: {what}.{memory} {cure}"

    def _death(self) -> tuple[str, str]:
        """Return what ended the kernel, by its exit status, and the cure."""
        status = self.process.poll() if self.process else None
        if status in (-9, 137):
            return ("its kernel was killed, as the system does when memory runs out",
                    "Close other programs or take a machine with more memory, then run `make course` again")
        if status is not None and status >= 0:
            return (f"a cell ended its kernel (exit status {status})",
                    "Take the call out that does so, such as os._exit or quit; `make lab` opens the notebook")
        crashed = f"its kernel crashed (signal {-status})" if status else "its kernel crashed"
        return crashed, "Run `make course` again; if it crashes there again, run its cells one by one with `make lab`"


def execute(path: Path, progress: Progress, cell_timeout: int = CELL_TIMEOUT) -> tuple[NotebookNode, dict[str, float]]:
    """Execute one notebook in its own kernel, its folder as working directory; each cell has `cell_timeout` seconds.

    Returns:
        The executed notebook and `{"minutes", "peak_memory_gb"}`.

    Raises:
        NotebookStopped: a cell failed, ended its kernel, took too long, or no kernel came up. Nothing of it runs on.
        CourseError: the file is no notebook.
    """
    notebook = read_notebook(path)
    client = NotebookClient(notebook, timeout=cell_timeout, resources={"metadata": {"path": str(path.parent)}},
                            extra_arguments=["--log-level=ERROR"], log=_QUIET)  # the kernel's own notes are not ours
    kernel, failures = Kernel(client, progress), []

    def work() -> None:
        try:
            client.execute()
        except BaseException as error:  # it belongs to the main thread
            failures.append(error)

    # Not in the main thread: there nbclient takes Ctrl-C for itself and leaves a half-closed kernel behind.
    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
        while worker.is_alive():
            worker.join(0.2)  # without a limit, Windows does not hear Ctrl-C
    except KeyboardInterrupt:
        patience = time.monotonic() + 10
        while worker.is_alive() and time.monotonic() < patience:  # the kernel may just be starting
            kernel.end()
            worker.join(0.2)
        raise NotebookInterrupted(f"Interrupted in {path.name}{kernel.place()}: its kernel has been ended",
                                  kernel.measured()) from None
    finally:
        measured = kernel.measured()
        kernel.end()
        atexit.unregister(client._cleanup_kernel)  # nbclient leaves it there for a kernel that did not come up
    for error in failures:
        if isinstance(error, CellExecutionError | CellTimeoutError | RuntimeError | OSError):
            raise NotebookStopped(kernel.why_stopped(path.name, error), measured) from error
        raise error
    return notebook, measured


def clean(notebook: NotebookNode) -> NotebookNode:
    """Remove what differs between two equal runs: stderr, timestamps, widget state; number the code cells from 1."""
    counter = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        counter += 1
        cell.execution_count = counter
        cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = counter
            if "data" in output:  # a panel keeps the picture it sends along for pages on which widgets do not run
                output.data = {kind: value for kind, value in output.data.items() if "widget" not in kind}
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _is_noise(output: NotebookNode) -> bool:
    """Progress bars, as text on stderr or as a widget that no saved page can show."""
    data = output.get("data", {})
    return output.get("name") == "stderr" or (any("widget" in kind for kind in data) and "image/png" not in data)


def write_report(notebooks: Sequence[NotebookNode], record: dict[str, Any], target: Path) -> None:
    """Write all executed notebooks into one HTML page, the table of measurements first."""
    from nbconvert import HTMLExporter

    cells = [nbformat.v4.new_markdown_cell(f"# No Problama: the course as it ran\n\n{course_table(record)}")]
    for notebook in notebooks:
        cells += notebook.cells
    for number, cell in enumerate(cells):
        cell["id"] = f"r{number:04d}"
    whole = nbformat.v4.new_notebook(cells=cells, metadata=notebooks[0].metadata)
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(whole, resources={"metadata": {"name": "No Problama"}})
    write(target, page)


def course_table(record: dict[str, Any]) -> str:
    """Return the measurements as a Markdown table, with the run they come from below it."""
    lines = ["| notebook | what it does | minutes | peak memory |", "|---|---|---|---|"]
    for row in record["notebooks"]:
        link = f"[{row['name']}](notebooks/{row['name']}.ipynb)"
        lines.append(f"| {link} | {row['title']} | {row['minutes']:.1f} | {row['peak_memory_gb']:.1f} GB |")
    total = sum(row["minutes"] for row in record["notebooks"])
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return "\n".join([*lines, "", f"In all {total:.1f} minutes. Measured by `make course` on {record['date']}, profile "
                      f"`{record['profile']}`, {record['machine']}, {versions}."])


def course_record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a run of the course measured, and where."""
    packages = ("torch", "transformers", "trl", "peft")
    return {
        "date": date.today().isoformat(),
        "profile": detect_profile().name,
        "machine": f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores, "
                   f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in packages}},
        "notebooks": rows,
    }


def publish(executed: dict[Path, NotebookNode], record: dict[str, Any], root: Path) -> None:
    """Replace the committed notebooks, measurements and README table by those of this run."""
    for (path, notebook), row in zip(executed.items(), record["notebooks"], strict=True):
        for opening in notebook.cells[:1]:
            opening.source = stamp_cost(opening.source, row, record["profile"])
        write(path, nbformat.writes(clean(notebook)) + "\n")
    write(root / RESULT, json.dumps(record, indent=1) + "\n")
    readme = root / "README.md"
    write(readme, stamp_table(readme.read_text(encoding="utf-8"), record))


def stamp_cost(opening: str, row: dict[str, Any], profile: str) -> str:
    """Return a notebook's first cell with its measured minutes and memory between the two markers."""
    cost = (f"**Time and memory.** Profile `{profile}`: {row['minutes']:.1f} minutes, {row['peak_memory_gb']:.1f} GB, "
            "measured by `make course` (the README says when, where and with what). Profiles `colab-t4` and `slides` "
            "have not been measured yet.")
    block = f"<!-- measured -->{cost}<!-- /measured -->"
    return re.sub(r"<!-- measured -->.*?<!-- /measured -->", lambda _: block, opening, flags=re.DOTALL)


def stamp_table(readme: str, record: dict[str, Any]) -> str:
    """Return the README with the table between its two markers replaced."""
    block = f"<!-- course-table -->\n{course_table(record)}\n<!-- /course-table -->"
    return re.sub(r"<!-- course-table -->.*?<!-- /course-table -->", lambda _: block, readme, flags=re.DOTALL)


def write(path: Path, text: str) -> None:
    """Write a file in one step, so that a full disk leaves the old one whole and is told in a `CourseError`."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise CourseError(f"{path.parent.name}/{path.name} cannot be written ({error.strerror}): free some disk space "
                          f"or correct the rights of {path.parent.name}/, then run it again.") from None


def run_course(
    root: Path, build: Path, *, only: Sequence[str] = (), publishing: bool = False, cell_timeout: int = CELL_TIMEOUT
) -> int:
    """Execute the notebooks in order and write copies, `course.json` and `report.html`.

    Args:
        root: the folder that holds `notebooks/`.
        build: where the copies and the report go.
        only: the numbers of those to run, such as "01"; empty = all.
        publishing: also replace the committed notebooks, measurements and README table.
        cell_timeout: seconds after which a cell is given up.

    Returns:
        An exit status: 0, 1 where something is wrong (it has been told on stderr), 130 after Ctrl-C.
    """
    try:
        _run(root, build, only, publishing, cell_timeout)
    except CourseError as error:
        print(error, file=sys.stderr)
        return getattr(error, "status", 1)
    except KeyboardInterrupt:
        print(f"Interrupted; the notebooks that came to their end are in {build.name}/.", file=sys.stderr)
        return 130
    return 0


def _run(root: Path, build: Path, only: Sequence[str], publishing: bool, cell_timeout: int) -> None:
    os.environ["PROBLAMA_QUIET"] = "1"  # kernels inherit it: nobody watches, so no curve that refreshes in place
    there = numbered_notebooks(root)
    unknown = sorted(set(only) - {path.stem[:2] for path in there})
    if unknown or not there:
        raise CourseError(f"No notebook {', '.join(unknown) or 'at all'} in notebooks/: there are "
                          f"{', '.join(path.stem for path in there) or 'none'}; give their two digits.")
    paths = [path for path in there if not only or path.stem[:2] in only]
    titles = [title_of(read_notebook(path)) for path in paths]  # all of them, before an hour of work is begun
    try:
        build.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"The folder {build.name!r} for the executed copies cannot be made ({error.strerror}): "
                          "remove what stands in its way, or free some disk space.") from None
    rows, executed = [], {}
    for number, (path, title) in enumerate(zip(paths, titles, strict=True), 1):
        progress = Progress(number, len(paths), path.stem, title)
        kept = f"; the notebooks before it are in {build.name}/." if executed else "."
        try:
            notebook, measured = execute(path, progress, cell_timeout)
        except NotebookStopped as stop:
            progress.done(*stop.measured.values(), stop.word)
            raise type(stop)(f"{stop}{kept}", stop.measured) from stop
        progress.done(measured["minutes"], measured["peak_memory_gb"])
        write(build / path.name, nbformat.writes(notebook) + "\n")
        executed[path] = notebook
        rows.append({"name": path.stem, "title": title_of(notebook), **measured})
    record = course_record(rows)
    write(build / "course.json", json.dumps(record, indent=1) + "\n")
    if publishing:
        publish(executed, record, root)
    write_report(list(executed.values()), record, build / "report.html")
    print(f"{sum(row['minutes'] for row in rows):.1f} minutes in all. Read build/report.html.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `make course`; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publish", action="store_true", help="refresh the committed outputs, timings and README")
    parser.add_argument("--only", nargs="*", default=(), metavar="NN", help="only these notebooks, such as 01 05")
    parser.add_argument("--cell-timeout", type=int, default=CELL_TIMEOUT, metavar="SECONDS",
                        help=f"give a cell up that has not returned by then (default {CELL_TIMEOUT})")
    options = parser.parse_args(arguments)
    root = course_root()
    if options.cell_timeout < 1:
        parser.error("--cell-timeout is a number of seconds, at least 1")
    if options.publish and options.only:
        parser.error("--publish measures the whole course: leave --only out")
    return run_course(root, root / "build", only=options.only, publishing=options.publish,
                      cell_timeout=options.cell_timeout)


if __name__ == "__main__":
    raise SystemExit(main())
