"""Run the course: execute the numbered notebooks in order, measure each, leave copies and one report in `build/`.

`python -m problama_utils.course` is what `make course` calls. With `--publish` the executed notebooks also replace
the committed ones (outputs cleaned of noise), the measurements go to `assets/results/course.json`, and the README's
table is written from them, so that no figure in it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
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
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from problama_utils.config import course_root, detect_profile

CELL_TIMEOUT = 3600  # seconds; a hung cell must not hang a class
RESULT = Path("assets/results/course.json")


def numbered_notebooks(root: Path) -> list[Path]:
    """Return the course's notebooks in the order in which they are taught."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def title_of(notebook: NotebookNode) -> str:
    """Return the text of a notebook's first heading, without its number."""
    heading = re.search(r"^#\s+(.+)$", notebook.cells[0].source, re.MULTILINE)
    return re.sub(r"^\d+\s*[·.:]\s*", "", heading[1]) if heading else ""


class PeakMemory(threading.Thread):
    """Watch the resident memory of a process and its children, four times a second; `gb` is the highest sum seen."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.gb, self._process, self._stop_now = 0.0, psutil.Process(pid), threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.25):
            try:
                family = [self._process, *self._process.children(recursive=True)]
                self.gb = max(self.gb, sum(member.memory_info().rss for member in family) / 1e9)
            except psutil.NoSuchProcess:
                return

    def stop(self) -> None:
        self._stop_now.set()


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


def execute(path: Path, progress: Progress) -> tuple[NotebookNode, dict[str, float]]:
    """Execute one notebook in its own kernel, its folder as working directory.

    Returns:
        The executed notebook and `{"minutes", "peak_memory_gb"}`.

    Raises:
        CellExecutionError: a cell failed; the notebook keeps its outputs up to there.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(path.parent)}},
                            extra_arguments=["--log-level=ERROR"])  # the kernel's own notes are not the course's
    started, heading, watch = time.perf_counter(), "", None

    def before_cell(cell: NotebookNode, cell_index: int) -> None:
        nonlocal heading, watch
        if watch is None and client.km.provisioner.pid:
            watch = PeakMemory(client.km.provisioner.pid)
            watch.start()
        found = re.findall(r"^#{1,3}\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        heading = found[-1] if found else heading
        progress.doing(heading, started)

    client.on_cell_start = before_cell
    measured = {"minutes": 0.0, "peak_memory_gb": 0.0}
    try:
        client.execute()
    finally:
        measured["minutes"] = round((time.perf_counter() - started) / 60, 2)
        if watch:
            watch.stop()
            measured["peak_memory_gb"] = round(watch.gb, 2)
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
    target.write_text(page, encoding="utf-8")


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
        notebook.cells[0].source = stamp_cost(notebook.cells[0].source, row, record["profile"])
        nbformat.write(clean(notebook), path)
    (root / RESULT).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    readme = root / "README.md"
    readme.write_text(stamp_table(readme.read_text(encoding="utf-8"), record), encoding="utf-8")


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


def run_course(root: Path, build: Path, *, only: Sequence[str] = (), publishing: bool = False) -> int:
    """Execute the notebooks in order and write copies, `course.json` and `report.html`; return an exit status."""
    os.environ["PROBLAMA_QUIET"] = "1"  # kernels inherit it: nobody watches, so no curve that refreshes in place
    build.mkdir(parents=True, exist_ok=True)
    paths = [path for path in numbered_notebooks(root) if not only or path.stem[:2] in only]
    rows, executed = [], {}
    for number, path in enumerate(paths, 1):
        notebook = nbformat.read(path, as_version=4)
        progress = Progress(number, len(paths), path.stem, title_of(notebook))
        started = time.perf_counter()
        try:
            notebook, measured = execute(path, progress)
        except CellExecutionError as error:
            progress.done((time.perf_counter() - started) / 60, 0.0, "FAILED")
            print(f"{path.name} stopped: {error.ename}: {error.evalue}\nOpen it with `make lab` to see where; the "
                  "notebooks before it are in build/.", file=sys.stderr)
            return 1
        progress.done(measured["minutes"], measured["peak_memory_gb"])
        nbformat.write(notebook, build / path.name)
        executed[path] = notebook
        rows.append({"name": path.stem, "title": title_of(notebook), **measured})
    record = course_record(rows)
    (build / "course.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if publishing:
        publish(executed, record, root)
    write_report(list(executed.values()), record, build / "report.html")
    print(f"{sum(row['minutes'] for row in rows):.1f} minutes in all. Read build/report.html.")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `make course`; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publish", action="store_true", help="refresh the committed outputs, timings and README")
    parser.add_argument("--only", nargs="*", default=(), metavar="NN", help="only these notebooks, such as 01 05")
    options = parser.parse_args(arguments)
    root = course_root()
    if options.publish and options.only:
        parser.error("--publish measures the whole course: leave --only out")
    return run_course(root, root / "build", only=options.only, publishing=options.publish)


if __name__ == "__main__":
    raise SystemExit(main())
