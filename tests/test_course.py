"""The runner: order, measurements, what is cleaned, what a failing notebook does, the README's table."""

import json

import nbformat
import pytest

from problama_utils.config import course_root
from problama_utils.course import clean, course_table, numbered_notebooks, run_course, stamp_table, title_of


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
    record = json.loads((root / "assets" / "results" / "course.json").read_text())
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert course_table(record) in readme
    assert stamp_table(readme, record) == readme
