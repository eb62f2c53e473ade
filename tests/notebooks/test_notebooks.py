"""The form every notebook keeps: one set-up cell, short cells, prose before code, clean outputs of a real run."""

import statistics

import nbformat
import pytest

from problama_utils.config import course_root

ROOT = course_root()
COURSE = sorted((ROOT / "notebooks").glob("0*.ipynb"))
EVERY = COURSE + sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
MACHINE_PATHS = ("/home/", "/root/", "/work/", "/tmp/", "/Users/", "site-packages")


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_the_first_code_cell_is_the_same_set_up_everywhere(path):
    assert code_of(read(path))[0].source == code_of(read(COURSE[0]))[0].source


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_whole_run_without_errors_or_noise(path):
    cells = code_of(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"
        assert not any("widget" in kind for kind in output.get("data", {}))


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_nothing_names_a_path_of_the_machine_it_ran_on(path):
    text = path.read_text(encoding="utf-8")
    assert not [mark for mark in MACHINE_PATHS if mark in text]


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_cells_are_few_and_short_and_the_prose_is_enough_to_teach_from(path):
    notebook = read(path)
    lengths = [len(cell.source.splitlines()) for cell in code_of(notebook)]
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    assert 40 <= len(notebook.cells) <= 60
    assert statistics.median(lengths) <= 10 and max(lengths) <= 30
    assert words >= 1000


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_every_displayed_equation_is_followed_by_a_cell_that_prints_a_number(path):
    cells = read(path).cells
    for here, cell in enumerate(cells):
        if cell.cell_type == "markdown" and "$$" in cell.source:
            following = next((later for later in cells[here + 1 :] if later.cell_type == "code"), None)
            outputs = following.outputs if following else []
            printed = "".join(str(out.get("text", out.get("data", ""))) for out in outputs)
            assert any(mark.isdigit() for mark in printed), f"cell {here}: {cell.source[:60]}"


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_a_notebook_ends_in_a_recap_and_exercises_and_opens_with_what_to_expect(path):
    notebook = read(path)
    headings = [line for cell in notebook.cells if cell.cell_type == "markdown"
                for line in cell.source.splitlines() if line.startswith("#")]
    assert any("recap" in heading.lower() for heading in headings)
    assert any("exercise" in heading.lower() for heading in headings[-5:])
    assert "What you should see" in notebook.cells[0].source + notebook.cells[1].source


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_every_exercise_is_unsolved_in_the_notebook_and_solved_in_its_solutions(path):
    def verdicts(notebook):
        outputs = [out for cell in code_of(notebook) for out in cell.outputs if out.output_type == "execute_result"]
        texts = [out.data.get("text/plain", "") for out in outputs]
        return [text.split("]")[0].lstrip("[") for text in texts
                if text.startswith(("[passed]", "[failed]", "[not yet]"))]

    tasks, solved = verdicts(read(path)), verdicts(read(ROOT / "notebooks/solutions" / f"{path.stem}_solutions.ipynb"))
    assert len(tasks) >= 2 and "passed" not in tasks
    assert solved == ["passed"] * len(tasks)
