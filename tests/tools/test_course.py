"""The runner: order, measurements, what is cleaned, what a failing notebook does, the README's table."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from problama_utils.config import course_root
from tools.badges import address
from tools.course import (
    LEARNED,
    PLAIN_RESULT,
    RESULT,
    clean,
    course_table,
    main,
    numbered_notebooks,
    run_course,
    stamp_table,
    title_of,
)


@pytest.fixture
def small_course(tmp_path):
    (tmp_path / "notebooks").mkdir()

    def add(name, code):
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_markdown_cell("# 01 · A title\ntext"), nbformat.v4.new_code_cell(code)]
        )
        nbformat.write(notebook, tmp_path / "notebooks" / name)

    return tmp_path, add


def test_the_course_has_its_six_notebooks_in_order():
    assert [path.stem for path in numbered_notebooks(course_root())] == [
        "01_ppo_vs_grpo", "02_qlora_setup", "03_riddle_training", "04_piqa_training", "05_reward_curves",
        "06_arc_evaluation",
    ]


@pytest.mark.slow
def test_executed_copies_measurements_and_a_report_are_left_in_build(small_course):
    root, add = small_course
    add("01_a.ipynb", "print('first')")
    add("02_b.ipynb", "print('second')")
    assert run_course(root, root / "build") == 0
    record = json.loads((root / "build" / "course.json").read_text())
    assert [row["name"] for row in record["notebooks"]] == ["01_a", "02_b"]
    assert all(row["minutes"] > 0 for row in record["notebooks"])
    report = (root / "build" / "report.html").read_text()
    assert "first" in report and "second" in report and "A title" in report


@pytest.mark.slow
def test_a_failing_notebook_stops_the_course_in_words_and_keeps_what_ran(small_course, capsys):
    root, add = small_course
    add("01_a.ipynb", "print('first')")
    add("02_b.ipynb", "1 / 0")
    assert run_course(root, root / "build") == 1
    assert "02_b.ipynb stopped: ZeroDivisionError" in capsys.readouterr().err
    assert (root / "build" / "01_a.ipynb").exists() and not (root / "build" / "report.html").exists()


def test_cleaning_removes_noise_and_numbers_the_cells():
    output = nbformat.v4.new_output("stream", name="stderr", text="12%|#")
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%"}
    bar = nbformat.v4.new_output("display_data", data=widget)
    panel = nbformat.v4.new_output("display_data", data={**widget, "image/png": "iVBORw0KGgo="})
    kept = nbformat.v4.new_output("stream", name="stdout", text="x")
    noise = {"metadata": {"execution": {"t": "now"}}, "execution_count": 7}
    cell = nbformat.v4.new_code_cell("1", outputs=[output, bar, panel, kept], **noise)
    cleaned = clean(nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})).cells[0]
    assert cleaned.execution_count == 1 and "execution" not in cleaned.metadata
    assert [out.get("text") or sorted(out.data) for out in cleaned.outputs] == [["image/png", "text/plain"], "x"]


def test_the_title_is_the_first_heading_without_its_number():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 03 · Riddle training: x\n")])
    assert title_of(notebook) == "Riddle training: x"


def test_the_readme_table_is_the_one_made_from_the_committed_measurements():
    root = course_root()
    records = [json.loads((root / path).read_text()) for path in (RESULT, PLAIN_RESULT)]
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert course_table(*records, at=address(root)) in readme
    assert stamp_table(readme, *records, at=address(root)) == readme
    assert readme.count(".ipynb)") == 2 * len(LEARNED)  # the one table of notebooks: a link and a badge each
    assert list(LEARNED) == [path.stem for path in numbered_notebooks(root)]


PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
ENDS = {  # the last cell of a notebook → words of its line
    "os._exit": ("import os; os._exit(7)", "a cell ended its kernel .exit status 7.*Take the call out"),
    "exit 0": ("import os; os._exit(0)", "exit status 0"),
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory runs out.*Close other programs"),
    "killed by a child": ("import os, subprocess; subprocess.run(['kill', '-9', str(os.getpid())])", "memory runs out"),
    "aborted": ("import os; os.abort()", "crashed .signal 6"),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", "crashed .signal 11.*one by one"),
    "terminated": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "stopped below 'Deep'"),
    "an error of several lines": ("raise ValueError('one\\ntwo')",
                                  "stopped: ValueError: one two, in a cell below 'Deep'"),
    "sys.exit": ("import sys; sys.exit(3)", "stopped: SystemExit: 3"),
    "its own interrupt": ("raise KeyboardInterrupt", "stopped: KeyboardInterrupt"),
    "endless sleep": ("import time; time.sleep(600)", "did not return within 3 seconds.*--cell-timeout 6"),
    "endless loop": ("while True: pass", "did not return within 3 seconds"),
    "an endless child": ("import subprocess; subprocess.run(['sleep', '600'])", "did not return within 3 seconds"),
    "input": ("input('name? ')", "stopped: StdinNotImplementedError"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_a_notebook_that_dies_is_told_in_one_line_and_leaves_no_process(small_course, capsys, name):
    root, _ = small_course
    code, words = ENDS[name]
    cells = [nbformat.v4.new_markdown_cell("# 02 · B"),
             nbformat.v4.new_code_cell("import subprocess, time\norphan = subprocess.Popen(['sleep', '598'])\n"
                                       "open('pids', 'w').write(str(orphan.pid))\ntime.sleep(0.6)"),
             nbformat.v4.new_markdown_cell("text\n\n## Deep\nmore"), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / "02_b.ipynb")
    assert run_course(root, root / "build", cell_timeout=3) == 1
    told = capsys.readouterr()
    assert "FAILED" in told.out and re.search(words, told.err) and "'Deep'" in told.err
    assert told.err.startswith("02_b.ipynb stopped") and told.err.count("\n") == 1
    if "stopped below" in told.err:
        memory = re.search(r"at most (\S+) GB until then, with (\S+) GB free", told.err)
        assert float(memory[1]) > 0.02 and float(memory[2]) > 0
    orphan = int((root / "notebooks" / "pids").read_text())
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == "zombie"
    assert not kernels() and not (root / "build" / "02_b.ipynb").exists()


def kernels():
    """The Jupyter kernels among this process's children that still run."""
    return [child for child in psutil.Process().children(recursive=True)
            if child.status() != "zombie" and "ipykernel_launcher" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_notebooks_before_one_that_dies_stay_in_build(small_course, capsys):
    root, add = small_course
    add("01_a.ipynb", "print('first')")
    add("02_b.ipynb", "import os; os._exit(1)")
    add("03_c.ipynb", "print('never')")
    assert run_course(root, root / "build") == 1
    assert [path.name for path in (root / "build").iterdir()] == ["01_a.ipynb"]
    assert "the notebooks before it are in build/." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 3.0], ids=["at the start", "in a cell"])
def test_ctrl_c_ends_the_kernel_with_one_line_and_130(small_course, wait):
    root, add = small_course
    add("01_a.ipynb", "import time; open('started', 'w').close(); time.sleep(600)")
    program = ("import sys, pathlib; from tools.course import run_course; root = pathlib.Path(sys.argv[1]); "
               "print('ready', flush=True); sys.exit(run_course(root, root / 'build'))")
    runner = subprocess.Popen([sys.executable, "-c", program, str(root)], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    assert runner.stdout.readline() == "ready\n" and runner.stdout.readline().startswith("[1/1] 01_a")
    patience = time.monotonic() + 60
    while wait and not (root / "notebooks" / "started").exists() and time.monotonic() < patience:
        time.sleep(0.1)
    runner.send_signal(signal.SIGINT)
    _, err = runner.communicate(timeout=60)
    assert runner.returncode == 130 and err.count("\n") == 1
    assert err.startswith("Interrupted in 01_a.ipynb" if wait else "Interrupted")
    assert not [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(root / "notebooks")
                and one.status() != "zombie"]


NO_NOTEBOOKS = {
    "no JSON": b"# a script\nprint(1)\n", "nothing": b"", "cut": b'{"cells": [{"cell_type": "co', "a list": b"[1]",
    "bytes": b"\x89PNG\x00\xff", "null": b"null", "no cells": b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
    "another object": b'{"task": "piqa"}',
    "cells of words": b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": ["x"]}',
    "a later format": b'{"nbformat": 99, "nbformat_minor": 0, "metadata": {}, "cells": []}',
    "UTF-16": '{"cells": []}'.encode("utf-16"),
    "a kernel that is not here": json.dumps({"nbformat": 4, "nbformat_minor": 5, "cells": [], "metadata": {
        "kernelspec": {"name": "apl-2", "display_name": "APL", "language": "apl"}}}).encode(),
    "a kernel of another type": json.dumps({"nbformat": 4, "nbformat_minor": 5, "cells": [], "metadata": {
        "kernelspec": {"name": 7}}}).encode(),
    "a kernel with an odd name": json.dumps({"nbformat": 4, "nbformat_minor": 5, "cells": [], "metadata": {
        "kernelspec": {"name": "../x y"}}}).encode(),
}


@pytest.mark.parametrize("name", NO_NOTEBOOKS)
def test_a_file_that_is_no_notebook_is_told_before_any_other_is_run(small_course, capsys, name):
    root, add = small_course
    add("01_a.ipynb", "print('never')")
    (root / "notebooks" / "02_b.ipynb").write_bytes(NO_NOTEBOOKS[name])
    assert run_course(root, root / "build") == 1
    told = capsys.readouterr()
    assert told.err.startswith("02_b.ipynb ") and told.err.count("\n") == 1 and not (root / "build").exists()


def test_a_folder_named_like_a_notebook_and_numbers_without_one_are_told_in_a_line(small_course, capsys):
    root, add = small_course
    assert run_course(root, root / "build") == 1 and "No notebook at all" in capsys.readouterr().err
    (root / "notebooks" / "01_a.ipynb").mkdir()
    assert run_course(root, root / "build") == 1 and "01_a.ipynb cannot be read" in capsys.readouterr().err
    for only in (["99"], ["1"], ["01", "x"]):
        assert run_course(root, root / "build", only=only) == 1 and "No notebook" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("metadata", [{}, PYTHON], ids=["no kernelspec", "python3"])
def test_a_notebook_without_cells_or_kernelspec_runs(small_course, metadata):
    root, _ = small_course
    nbformat.write(nbformat.v4.new_notebook(metadata=metadata), root / "notebooks" / "01_a.ipynb")
    assert run_course(root, root / "build") == 0 and (root / "build" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("refused", ["01_a.ipynb", "course.json", "report.html"])
def test_a_full_disk_is_told_in_a_line_and_leaves_what_was_there(small_course, capsys, monkeypatch, refused):
    root, add = small_course
    add("01_a.ipynb", "print('first')")
    (root / "build").mkdir()
    (root / "build" / refused).write_text("old")
    replace = os.replace

    def full(source, target):
        if pathlib.Path(target).name == refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert run_course(root, root / "build") == 1
    err = capsys.readouterr().err
    assert f"build/{refused} cannot be written (No space left on device)" in err and err.count("\n") == 1
    assert (root / "build" / refused).read_text() == "old" and not list((root / "build").glob("*.part"))


def test_a_build_folder_that_cannot_be_made_is_told_before_the_work(small_course, capsys):
    root, add = small_course
    add("01_a.ipynb", "print('never')")
    (root / "build").write_text("a file")
    assert run_course(root, root / "build") == 1
    assert "'build' for the executed copies cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5"])
def test_the_limit_of_a_cell_is_a_number_of_seconds(value, capsys):
    with pytest.raises(SystemExit) as left:
        main(["--cell-timeout", value])
    assert left.value.code == 2 and "--cell-timeout" in capsys.readouterr().err


@pytest.mark.parametrize(("cells", "title"), [
    ([], ""), ([nbformat.v4.new_code_cell("")], ""), ([nbformat.v4.new_markdown_cell("")], ""),
    ([nbformat.v4.new_markdown_cell("no heading")], ""), ([nbformat.v4.new_markdown_cell("# ")], ""),
    ([nbformat.v4.new_markdown_cell("# Only a title")], "Only a title"),
    ([nbformat.v4.new_markdown_cell("text\n\n# 3: After text")], "After text"),
])  # fmt: skip
def test_a_title_is_found_or_empty_and_never_an_error(cells, title):
    assert title_of(nbformat.v4.new_notebook(cells=cells)) == title


def test_the_runner_imports_where_there_is_no_resource_module():
    program = "import psutil, sys; sys.modules['resource'] = None; import tools.course"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.slow
def test_a_kernel_that_does_not_come_up_is_told_in_a_line(small_course, capsys, monkeypatch):
    root, add = small_course
    spec = root / "kernels" / "broken"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": [sys.executable, "-c", "raise SystemExit(4)"],
                                                  "display_name": "Broken", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(root))
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "broken", "display_name": "Broken"}})
    nbformat.write(notebook, root / "notebooks" / "01_a.ipynb")
    assert run_course(root, root / "build") == 1
    err = capsys.readouterr().err
    assert err.startswith("01_a.ipynb stopped: its kernel cannot be reached") and err.count("\n") == 1


@pytest.mark.slow
def test_the_memory_told_is_that_before_the_death_not_after(small_course, capsys):
    root, add = small_course
    add("01_a.ipynb", "import os, signal, time; held = bytearray(700_000_000); time.sleep(1)\n"
                      "os.kill(os.getpid(), signal.SIGKILL)")
    assert run_course(root, root / "build") == 1
    assert float(re.search(r"at most (\S+) GB", capsys.readouterr().err)[1]) > 0.6


def test_the_table_shows_both_processors_where_both_were_measured():
    rows = [{"name": "01_a", "title": "A", "minutes": 1.04, "peak_memory_gb": 2.06},
            {"name": "02_b", "title": "B", "minutes": 3.0, "peak_memory_gb": 1.0}]
    record = {"date": "2026-11-25", "profile": "cpu", "machine": "m, bfloat16", "versions": {"torch": "2"},
              "notebooks": rows}
    plain = {**record, "machine": "m, float32", "notebooks": [{**rows[0], "minutes": 5.0}]}
    assert course_table(record).count("|") == 4 * 5
    table = course_table(record, plain)
    assert "| A | 1.0 | 2.1 GB | 5.0 | 2.1 GB |" in table and "| B | 3.0 | 1.0 GB | – | – |" in table
    assert "In all 4.0 minutes" in table and "5.0 minutes in all" in table and "m, float32" in table
    for line in course_table(record, plain, at=("ada/course", "v2")).splitlines()[:4]:
        assert line.count("|") == 8
    assert "colab.research.google.com/github/ada/course/blob/v2/notebooks/01_a.ipynb" in course_table(
        record, at=("ada/course", "v2"))


@pytest.mark.parametrize("more", [["--publish"], ["--only", "01"]])
def test_the_plain_processor_measures_the_whole_course_and_publishes_nothing(more):
    with pytest.raises(SystemExit):
        main(["--plain-processor", *more])
