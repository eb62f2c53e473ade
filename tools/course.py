"""Run the course: execute the numbered notebooks in order, measure each, leave copies and one report in `build/`.

`python -m tools.course` is what `make course` calls; it runs on the CPU unless PROBLAMA_PROFILE names another
profile. With `--publish` the executed notebooks also replace the committed ones (outputs cleaned of noise), the
measurements go to `assets/results/course.json`, and the README's table of notebooks is written from them, so that no
figure in it is typed by hand. `--plain-processor` measures the same course as a processor without bf16 and AVX-512
would run it, for the table's fp32 columns; it changes no notebook.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbformat import NotebookNode

from problama_utils import CourseError, hides_card
from problama_utils.config import course_root, detect_profile
from problama_utils.monitoring.run_folder import write_whole
from tools.badges import address, badge
from tools.notebook_run import CELL_TIMEOUT, NotebookStopped, Progress, execute, read_notebook

RESULT, PLAIN_RESULT = Path("assets/results/course.json"), Path("assets/results/course_fp32.json")
# Most laptops multiply no bf16 and know AVX2 only: torch's number format and the kernels of its three libraries.
PLAIN_PROCESSOR = {"PROBLAMA_DTYPE": "float32", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
                   "ATEN_CPU_CAPABILITY": "avx2"}

LEARNED = {  # what the table of notebooks says of each; a notebook that is not here is shown with its title
    "01_ppo_vs_grpo": "clipped objective, GAE, group-relative advantages, KL: every equation executed",
    "02_qlora_setup": "NF4 from the normal distribution, LoRA counted, real 4-bit loading",
    "03_riddle_training": "rewards and how to fool them, a step by hand equal to TRL's, a real training",
    "04_piqa_training": "the second training; what a rising reward did *not* teach",
    "05_reward_curves": "the slides' curves from your logs, bands over four seeds, why a reward is flat",
    "06_arc_evaluation": "base and tuned policies with intervals; the slides' table read closely",
}


def numbered_notebooks(root: Path) -> list[Path]:
    """Return the course's notebooks in the order in which they are taught."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def title_of(notebook: NotebookNode) -> str:
    """Return the text of a notebook's first heading, without its number; nothing where it has none."""
    opening = notebook.cells[0].source if notebook.cells else ""
    heading = re.search(r"^#\s+(.+)$", opening, re.MULTILINE)
    return re.sub(r"^\d+\s*[·.:]\s*", "", heading[1]) if heading else ""


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


def course_table(record: dict[str, Any], plain: dict[str, Any] | None = None, at: tuple[str, str] | None = None) -> str:
    """Return the notebooks as a Markdown table: what each teaches and costs, with the run that measured it below.

    Args:
        record: from `course_record`.
        plain: the same of a run with `--plain-processor`, for two more columns.
        at: repository and ref, for a column of Colab badges.
    """
    slower = {row["name"]: row for row in plain["notebooks"]} if plain else {}
    titles = ["notebook", "what you learn", "minutes", "memory"]
    titles += ["fp32: minutes", "fp32: memory"] if plain else []
    titles += ["Colab"] if at else []
    lines = [_line(titles), f"|{'---|' * len(titles)}"]
    for row in record["notebooks"]:
        name = row["name"]
        cells = [f"[{name.replace('_', ' ')}](notebooks/{name}.ipynb)", LEARNED.get(name, row["title"]), *_cost(row)]
        cells += _cost(slower.get(name)) if plain else []
        cells += [badge(*at, f"{name}.ipynb")] if at else []
        lines.append(_line(cells))
    total = sum(row["minutes"] for row in record["notebooks"])
    versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
    text = (f"In all {total:.1f} minutes; memory is the peak. Measured by `make course` on {record['date']}, profile "
            f"`{record['profile']}`, {record['machine']}, {versions}.")
    if plain:
        in_all = sum(row["minutes"] for row in plain["notebooks"])
        text += (f" The fp32 columns, {in_all:.1f} minutes in all, are the same course as a processor without bf16 "
                 f"and AVX-512 computes it (`python -m tools.course --plain-processor`, {plain['date']}, "
                 f"{plain['machine']}).")
    return "\n".join([*lines, "", text])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cost(row: dict[str, Any] | None) -> tuple[str, str]:
    return (f"{row['minutes']:.1f}", f"{row['peak_memory_gb']:.1f} GB") if row else ("–", "–")


def course_record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a run of the course measured, and where."""
    from problama_utils.model.loading import compute_dtype

    profile, packages = detect_profile(), ("torch", "transformers", "trl", "peft")
    return {
        "date": date.today().isoformat(),
        "profile": profile.name,
        "machine": f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores, "
                   f"{psutil.virtual_memory().total / 1e9:.0f} GB, {str(compute_dtype(profile))[6:]}",
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
    stamp_readme(root)


def stamp_readme(root: Path) -> None:
    """Write the README's table of notebooks from the records of both measurements."""
    records = [json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
               for path in (root / RESULT, root / PLAIN_RESULT)]
    readme = root / "README.md"
    write(readme, stamp_table(readme.read_text(encoding="utf-8"), *records, at=address(root)))


def stamp_cost(opening: str, row: dict[str, Any], profile: str) -> str:
    """Return a notebook's first cell with its measured minutes and memory between the two markers."""
    cost = (f"**Time and memory.** Profile `{profile}`: {row['minutes']:.1f} minutes, {row['peak_memory_gb']:.1f} GB, "
            "measured by `make course` (the README says when, where and with what). Profiles `colab-t4` and `slides` "
            "have not been measured yet.")
    block = f"<!-- measured -->\n{cost}\n<!-- /measured -->"  # a marker before text would show the line as raw HTML
    return re.sub(r"<!-- measured -->.*?<!-- /measured -->", lambda _: block, opening, flags=re.DOTALL)


def stamp_table(
    readme: str, record: dict[str, Any], plain: dict[str, Any] | None = None, at: tuple[str, str] | None = None
) -> str:
    """Return the README with the table between its two markers replaced."""
    block = f"<!-- course-table -->\n{course_table(record, plain, at)}\n<!-- /course-table -->"
    return re.sub(r"<!-- course-table -->.*?<!-- /course-table -->", lambda _: block, readme, flags=re.DOTALL)


def write(path: Path, text: str) -> None:
    """Write a file in one step; a full disk is told in a `CourseError`."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise CourseError(f"{path.parent.name}/{path.name} cannot be written ({error.strerror}): free some disk space "
                          f"or correct the rights of {path.parent.name}/, then run it again.") from None


def run_course(
    root: Path, build: Path, *, only: Sequence[str] = (), publishing: bool = False, cell_timeout: int = CELL_TIMEOUT,
    plain: bool = False,
) -> int:
    """Execute the notebooks in order and write copies, `course.json` and `report.html`.

    Args:
        root: the folder that holds `notebooks/`.
        build: where the copies and the report go.
        only: the numbers of those to run, such as "01"; empty = all.
        publishing: also replace the committed notebooks, measurements and README table.
        cell_timeout: seconds after which a cell is given up.
        plain: write the measurements to `PLAIN_RESULT` and the README's table; `main` has set `PLAIN_PROCESSOR`.

    Returns:
        An exit status: 0, 1 where something is wrong (it has been told on stderr), 130 after Ctrl-C.
    """
    try:
        record = _run(root, build, only, publishing, cell_timeout)
        if plain:
            write(root / PLAIN_RESULT, json.dumps(record, indent=1) + "\n")
            stamp_readme(root)
    except CourseError as error:
        print(error, file=sys.stderr)
        return getattr(error, "status", 1)
    except KeyboardInterrupt:
        print(f"Interrupted; the notebooks that came to their end are in {build.name}/.", file=sys.stderr)
        return 130
    return 0


def _run(root: Path, build: Path, only: Sequence[str], publishing: bool, cell_timeout: int) -> dict[str, Any]:
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
                          "remove what is in its way, or free some disk space.") from None
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
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `make course`; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publish", action="store_true", help="refresh the committed outputs, timings and README")
    parser.add_argument("--only", nargs="*", default=(), metavar="NN", help="only these notebooks, such as 01 05")
    parser.add_argument("--cell-timeout", type=int, default=CELL_TIMEOUT, metavar="SECONDS",
                        help=f"give a cell up that has not returned by then (default {CELL_TIMEOUT})")
    parser.add_argument("--plain-processor", action="store_true", help="measure in fp32 with AVX2 only")
    options = parser.parse_args(arguments)
    root = course_root()
    if options.cell_timeout < 1:
        parser.error("--cell-timeout is a number of seconds, at least 1")
    if options.publish and options.only:
        parser.error("--publish measures the whole course: leave --only out")
    if options.plain_processor and (options.publish or options.only):
        parser.error("--plain-processor measures the whole course and publishes no notebook: give it alone")
    if options.plain_processor:
        os.environ.update(PLAIN_PROCESSOR)  # kernels inherit it
    os.environ.setdefault("PROBLAMA_PROFILE", "cpu")  # kernels inherit it; an empty one lets the hardware choose
    if hides_card() and shutil.which("nvidia-smi"):
        print("Profile cpu: the GPU is not used. PROBLAMA_PROFILE=colab-t4 or slides before the command trains on it.")
    return run_course(root, root / "build", only=options.only, publishing=options.publish,
                      cell_timeout=options.cell_timeout, plain=options.plain_processor)


if __name__ == "__main__":
    raise SystemExit(main())
