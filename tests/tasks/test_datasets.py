"""Loaders: every source in the same columns, and bad input only ever as a `DataError` that names its place."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from problama_utils.tasks import datasets
from problama_utils.tasks.datasets import fingerprint, load_few_shot
from problama_utils.tasks.piqa import TRAIN_SHARE, load_piqa, split_by_goal
from problama_utils.tasks.registry import LOADERS
from problama_utils.tasks.riddles import load_riddles
from problama_utils.tasks.rows import COLUMNS
from problama_utils.tasks.science import count_digit_keys, load_science
from problama_utils.tasks.sources import DataError

RIDDLE = {"id": "np-riddle-0001", "riddle": "It has a face and two hands.", "answer": "clock", "aliases": ["watch"],
          "choices": ["clock", "spoon", "chair", "lamp"], "difficulty": 1, "split": "train"}
PAIR = {"id": "np-phys-0001", "goal": "Dry a wet floor", "sol1": "Use a mop.", "sol2": "Use a comb.", "label": 0,
        "difficulty": 1, "split": "train"}
QUESTION = {"id": "np-sci-0001", "question": {"stem": "What melts?", "choices": [
    {"text": text, "label": label} for text, label in zip(("ice", "fog", "ash", "sun"), "ABCD", strict=True)]},
    "answerKey": "A", "topic": "matter", "difficulty": 1, "split": "test"}
OWN = {"riddles": RIDDLE, "physical": PAIR, "science": QUESTION}


@pytest.fixture(autouse=True)
def no_local_folder(monkeypatch):
    monkeypatch.delenv("PROBLAMA_DATA", raising=False)
    monkeypatch.delenv("PROBLAMA_ASSETS", raising=False)


def write(folder: Path, task: str, *rows: object, name: str | None = None) -> Path:
    """Write rows (objects, or raw text and bytes) as the lines of a task's file; return the folder."""
    lines = [row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
             for row in rows]
    path = folder / (name or f"{task}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return folder


def load(task: str, folder: Path):
    return LOADERS[task]("test" if task == "science" else "train", source=folder)


def arc_row(labels: str, key: str, name: str = "Q1") -> dict:
    choices = [{"text": f"choice {label}", "label": label} for label in labels]
    return {"id": name, "question": {"stem": "Which one?", "choices": choices}, "answerKey": key}


def piqa_files(folder: Path, goals: list[str], labels: list[str], stem: str = "valid") -> Path:
    write(folder, "", *({"goal": goal, "sol1": "yes", "sol2": "no"} for goal in goals), name=f"piqa/{stem}.jsonl")
    return write(folder, "", *labels, name=f"piqa/{stem}-labels.lst")


# --- the embedded files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "split", "rows"), [("riddles", "train", 640), ("riddles", "heldout", 160),
                                                     ("physical", "train", 2000), ("physical", "heldout", 400),
                                                     ("science", "test", 400)])
def test_embedded_splits_have_their_documented_columns_and_sizes(task, split, rows):
    dataset = LOADERS[task](split)
    assert tuple(dataset.column_names) == COLUMNS[task]
    assert len(dataset) == rows
    assert set(dataset["split"]) == {split}


def test_all_is_train_and_heldout_together():
    names = {split: set(load_riddles(split)["id"]) for split in ("train", "heldout", "all")}
    assert names["train"] | names["heldout"] == names["all"]
    assert not names["train"] & names["heldout"]


def test_difficulty_keeps_only_the_levels_named():
    assert set(load_riddles(difficulty=1)["difficulty"]) == {1}
    both = load_riddles(difficulty=[1, 3])
    assert len(both) == len(load_riddles(difficulty=1)) + len(load_riddles(difficulty=3))


def test_the_slides_examples_are_two_of_each_and_in_no_split():
    riddles, pairs = load_few_shot("riddles"), load_few_shot("physical")
    assert [row["answer"] for row in riddles] == ["A map", "A piano"]
    assert [(row["answer"], row["label"]) for row in pairs] == [("A", 0), ("B", 1)]
    assert not {row["riddle"] for row in riddles} & set(load_riddles("all")["riddle"])
    assert not {row["goal"] for row in pairs} & set(load_piqa("all")["goal"])


def test_fingerprint_is_stable_and_sees_a_changed_word_and_a_changed_order(tmp_path):
    other = RIDDLE | {"id": "np-riddle-0002"}
    first = fingerprint(load_riddles(source=write(tmp_path / "a", "riddles", RIDDLE, other)))
    again = fingerprint(load_riddles(source=write(tmp_path / "b", "riddles", RIDDLE, other)))
    swapped = fingerprint(load_riddles(source=write(tmp_path / "c", "riddles", other, RIDDLE)))
    reworded = RIDDLE | {"riddle": "It has a face and two hands!"}
    changed = fingerprint(load_riddles(source=write(tmp_path / "d", "riddles", reworded, other)))
    assert first == again
    assert len({first, swapped, changed}) == 3


def test_importing_and_loading_needs_no_torch():
    code = ("import sys; from problama_utils.tasks.riddles import load_riddles; load_riddles(); "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(datasets.__file__).parents[2]).returncode == 0


@pytest.mark.slow
def test_the_command_finds_800_2400_and_400_problems_and_every_gate_green():
    done = subprocess.run([sys.executable, "-m", "tools.check_data"], capture_output=True, text=True,
                          cwd=Path(datasets.__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RED" not in done.stdout
    for data, rows in (("riddles", 800), ("physical", 2400), ("science", 400)):
        assert re.search(rf"^{data} +rows +{rows} .*green$", done.stdout, re.MULTILINE)


# --- ARC and PIQA --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "key", "letter"), [("ABCD", "C", "C"), ("1234", "3", "C"), ("ABC", "B", "B"),
                                                       ("123", "1", "A"), ("ABCDE", "E", "E"), ("12345", "5", "E")])
def test_arc_letters_come_from_the_rows_own_labels(tmp_path, labels, key, letter):
    write(tmp_path, "", arc_row(labels, key), name="ARC-Challenge/ARC-Challenge-Test.jsonl")
    row = load_science("test", source=tmp_path)[0]
    assert row["answer"] == letter
    assert row["labels"] == list("ABCDE")[: len(labels)]
    assert row["choices"][row["labels"].index(letter)] == f"choice {key}"
    assert count_digit_keys("test", source=tmp_path) == int(key.isdigit())


@pytest.mark.parametrize(("labels", "key"), [("ABCD", "E"), ("ABCD", "1"), ("1234", "A"), ("ABDC", "A"), ("AACD", "A"),
                                             ("A2CD", "A"), ("AB", "A"), ("ABCDEF", "A"), ("ABCD", "")])
def test_arc_rows_with_impossible_labels_are_refused(tmp_path, labels, key):
    write(tmp_path, "", arc_row("ABCD", "A", "Q0"), arc_row(labels, key),
          name="ARC-Challenge/ARC-Challenge-Test.jsonl")
    with pytest.raises(DataError) as caught:
        load_science("test", source=tmp_path)
    assert caught.value.line == 2


def test_arc_dev_and_validation_are_the_same_split(tmp_path):
    write(tmp_path, "", arc_row("ABCD", "A"), name="ARC-Challenge/ARC-Challenge-Dev.jsonl")
    assert load_science("dev", source=tmp_path)[:] == load_science("validation", source=tmp_path)[:]


def test_arc_parquet_as_downloaded_gives_the_same_rows_as_ai2s_lines(tmp_path):
    datasets = pytest.importorskip("datasets")
    source = [arc_row("ABCD", "B", "Q1"), arc_row("123", "3", "Q2")]
    write(tmp_path / "lines", "", *source, name="ARC-Challenge/ARC-Challenge-Test.jsonl")
    hub_rows = [{"id": row["id"], "question": "Which one?", "answerKey": row["answerKey"], "choices": {
        name: [choice[name] for choice in row["question"]["choices"]] for name in ("text", "label")}} for row in source]
    target = tmp_path / "parquet" / "ARC-Challenge" / "test-00000-of-00001.parquet"
    target.parent.mkdir(parents=True)
    datasets.Dataset.from_list(hub_rows).to_parquet(target)
    assert load_science(source=tmp_path / "parquet")[:] == load_science(source=tmp_path / "lines")[:]
    assert count_digit_keys(source=tmp_path / "parquet") == 1


def test_piqa_validation_alone_is_split_by_goal_and_repeatably(tmp_path):
    goals = [f"goal {number % 150}" for number in range(200)]
    piqa_files(tmp_path, goals, ["0", "1"] * 100)
    train, held = load_piqa("train", source=tmp_path), load_piqa("heldout", source=tmp_path)
    assert len(train) == round(200 * 1200 / 1838)
    assert len(train) + len(held) == 200
    assert not set(train["goal"]) & set(held["goal"])
    assert fingerprint(train) == fingerprint(load_piqa("train", source=tmp_path))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80))
def test_the_goal_split_never_divides_a_goal_nor_exceeds_its_share(numbers):
    goals = [f"Goal {number}" for number in numbers]
    rows = split_by_goal([{"goal": goal} for goal in [*goals, *(goal.lower() + " ?" for goal in goals)]])
    first, second = rows[: len(goals)], rows[len(goals):]
    assert [row["split"] for row in first] == [row["split"] for row in second]
    assert sum(row["split"] == "train" for row in rows) <= round(TRAIN_SHARE * len(rows))


def test_piqa_with_its_train_file_keeps_the_authors_split(tmp_path):
    piqa_files(tmp_path, ["a", "b", "c"], ["0", "1", "0"], stem="train")
    piqa_files(tmp_path, ["d", "e"], ["1", "1"])
    assert load_piqa("train", source=tmp_path)["goal"][:] == ["a", "b", "c"]
    assert load_piqa("heldout", source=tmp_path)["label"][:] == [1, 1]
    assert len(load_piqa("all", source=tmp_path)) == 5
    validation = load_piqa("validation", source=tmp_path)
    assert validation["goal"][:] == ["d", "e"] and set(validation["split"]) == {"heldout"}


def test_piqa_parquet_as_downloaded_is_found(tmp_path):
    datasets = pytest.importorskip("datasets")
    for place in ("a/piqa/plain_text/validation/0000.parquet", "b/piqa/validation-00000-of-00001.parquet",
                  "c/plain_text/validation/0000.parquet"):
        (tmp_path / place).parent.mkdir(parents=True)
        rows = [{"goal": f"goal {number}", "sol1": "x", "sol2": "y", "label": number % 2} for number in range(10)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / place)
        assert len(load_piqa("all", source=tmp_path / place[0])) == 10


def test_a_label_list_of_another_length_is_refused(tmp_path):
    piqa_files(tmp_path, ["a", "b"], ["0"])
    with pytest.raises(DataError, match=r"valid-labels\.lst: found 1 labels; expected 2"):
        load_piqa(source=tmp_path)


def test_a_label_outside_0_and_1_names_its_line(tmp_path):
    piqa_files(tmp_path, ["a", "b"], ["0", "-1"])
    with pytest.raises(DataError, match="line 2: found '-1'; expected 0 or 1"):
        load_piqa(source=tmp_path)


def test_piqas_test_split_is_refused_with_the_reason():
    with pytest.raises(DataError, match="not public"):
        load_piqa("test", source="hub")


# --- where to look -------------------------------------------------------------------------------------------------


def test_problama_data_is_used_where_it_holds_the_task_and_the_embedded_file_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBLAMA_DATA", str(write(tmp_path, "physical", PAIR)))
    assert len(load_piqa()) == 1
    assert len(load_piqa(source="embedded")) == 2000
    assert len(load_riddles()) == 640


def test_a_problama_data_that_is_no_folder_is_an_error_not_a_silent_fallback(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path / "typo"))
    with pytest.raises(DataError, match="PROBLAMA_DATA"):
        load_riddles()


@pytest.mark.parametrize("task", OWN)
def test_a_named_folder_without_the_task_is_refused(tmp_path, task):
    with pytest.raises(DataError, match=f"no {task} there"):
        load(task, tmp_path)


def test_missing_assets_say_how_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBLAMA_ASSETS", str(tmp_path))
    with pytest.raises(DataError, match=r"pip install -e \."):
        load_riddles()


def test_problama_assets_names_another_folder(tmp_path, monkeypatch):
    write(tmp_path / "data", "riddles", RIDDLE)
    monkeypatch.setenv("PROBLAMA_ASSETS", str(tmp_path))
    assert len(load_riddles()) == 1


@pytest.mark.parametrize(("load_split", "named"), [(lambda: load_riddles("test"), "train, heldout, all"),
                                                   (lambda: load_science("train"), "expected test"),
                                                   (lambda: load_riddles(difficulty=7), r"difficulty \[1, 2, 3\]"),
                                                   (lambda: load_riddles(source="hub"), "embedded"),
                                                   (lambda: load_few_shot("science"), "riddles or physical")])
def test_an_unknown_split_level_or_task_lists_the_known_ones(load_split, named):
    with pytest.raises(DataError, match=named):
        load_split()


class RecordingHub:
    """Stands in for `datasets.load_dataset`: keeps its arguments, then answers or fails."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def __call__(self, **arguments):
        self.calls.append(arguments)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_hub_is_asked_for_pinned_revisions_and_without_scripts(monkeypatch):
    import datasets

    arc = RecordingHub([{"id": "Q", "question": "Which?", "answerKey": "2",
                         "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}}])
    monkeypatch.setattr(datasets, "load_dataset", arc)
    assert load_science("dev", source="hub")["answer"][:] == ["B"]
    assert arc.calls == [{"path": "allenai/ai2_arc", "name": "ARC-Challenge", "split": "validation",
                          "revision": "210d026faf9955653af8916fad021475a3f00453"}]
    piqa = RecordingHub([{"goal": "g", "sol1": "s", "sol2": "t", "label": 1}])
    monkeypatch.setattr(datasets, "load_dataset", piqa)
    assert load_piqa("heldout", source="hub")["label"][:] == [1]
    assert load_piqa("validation", source="hub")["split"][:] == ["heldout"]
    [path] = {call["data_files"]["validation"] for call in piqa.calls}
    assert path.startswith("hf://datasets/ybisk/piqa@142c51238b3ca2bc61e9a075913871b8b600e8e1/plain_text/validation/")
    assert {call["path"] for call in piqa.calls} == {"parquet"}


@pytest.mark.parametrize("failure", [ConnectionError("no route to host"), OSError("offline"), RuntimeError("closed")])
def test_an_unreachable_hub_is_named_with_the_way_out(monkeypatch, failure):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", RecordingHub(failure))
    for call in (lambda: load_science(source="hub"), lambda: load_piqa(source="hub")):
        with pytest.raises(DataError, match='source="embedded"') as caught:
            call()
        assert caught.value.__cause__ is failure


# --- bad input -----------------------------------------------------------------------------------------------------


def without(row: dict, field: str) -> dict:
    return {name: value for name, value in row.items() if name != field}


BAD = [  # task, second line, field that the error names
    ("riddles", "{broken", None),
    ("riddles", "[1, 2]", None),
    ("riddles", "", None),
    ("riddles", "[" * 100_000, None),
    ("riddles", json.dumps(RIDDLE | {"id": "np-riddle-0002", "difficulty": float("nan")}), "difficulty"),
    ("riddles", '{"id": "a", "id": "b"}', None),
    ("riddles", b'{"id": "caf\xe9"}', None),
    ("riddles", without(RIDDLE, "answer"), "answer"),
    ("riddles", RIDDLE, "id"),
    ("riddles", RIDDLE | {"id": "riddle-2"}, "id"),
    ("riddles", RIDDLE | {"hint": "tick"}, "hint"),
    ("riddles", RIDDLE | {"id": "np-riddle-0002", "answer": "watch"}, "choices"),
    ("riddles", RIDDLE | {"id": "np-riddle-0002", "choices": ["clock", "spoon", "chair"]}, "choices"),
    ("riddles", RIDDLE | {"id": "np-riddle-0002", "aliases": "watch"}, "aliases"),
    ("riddles", RIDDLE | {"id": "np-riddle-0002", "aliases": [" "]}, "aliases"),
    ("riddles", RIDDLE | {"id": "np-riddle-0002", "difficulty": True}, "difficulty"),
    ("riddles", RIDDLE | {"id": "np-riddle-0002", "difficulty": "1"}, "difficulty"),
    ("riddles", RIDDLE | {"id": "np-riddle-0002", "riddle": "\ud800"}, "riddle"),
    ("riddles", RIDDLE | {"id": "np-riddle-0002", "split": "test"}, "split"),
    ("physical", PAIR | {"id": "np-phys-0002", "label": 2}, "label"),
    ("physical", PAIR | {"id": "np-phys-0002", "sol2": ""}, "sol2"),
    ("science", QUESTION | {"id": "np-sci-0002", "answerKey": "E"}, "answerKey"),
    ("science", QUESTION | {"id": "np-sci-0002", "question": "What?"}, "question"),
    ("science", QUESTION | {"id": "np-sci-0002", "split": "train"}, "split"),
    ("science", QUESTION | {"id": "np-sci-0002", "topic": None}, "topic"),
]


@pytest.mark.parametrize(("task", "line", "field"), BAD)
def test_a_bad_line_is_named_by_file_line_and_field(tmp_path, task, line, field):
    with pytest.raises(DataError) as caught:
        load(task, write(tmp_path, task, OWN[task], line))
    error = caught.value
    assert (Path(error.file).name, error.line, error.field) == (f"{task}.jsonl", 2, field)
    assert "; expected " in str(error)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "riddles.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="empty file"):
        load_riddles(source=tmp_path)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    write(tmp_path, "", "not parquet", name="piqa/validation/0000.parquet")
    with pytest.raises(DataError, match=r"0000\.parquet"):
        load_piqa(source=tmp_path)


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path):
    (tmp_path / "riddles.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(RIDDLE).encode() + b"\r\n")
    assert load_riddles(source=tmp_path)["answer"][:] == ["clock"]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
                    max_leaves=8)


@st.composite
def mutated_lines(draw) -> tuple[str, bytes]:
    """A valid line with fields replaced, removed or added, or its bytes cut, overwritten or repeated."""
    task = draw(st.sampled_from(sorted(OWN)))
    row = json.loads(json.dumps(OWN[task]))
    for _ in range(draw(st.integers(0, 2))):
        target = draw(st.sampled_from([row] + ([row["question"]] if isinstance(row.get("question"), dict) else [])))
        name = draw(st.sampled_from([*sorted(target), "extra"]))
        if draw(st.booleans()):
            target[name] = draw(JSON)
        else:
            target.pop(name, None)
    line = json.dumps(row).encode()
    for _ in range(draw(st.integers(0, 2))):
        start, stop = sorted(draw(st.tuples(st.integers(0, len(line)), st.integers(0, len(line)))))
        line = line[:start] + draw(st.binary(max_size=6)) + line[stop:]
    return task, line


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated_lines())
def test_only_data_errors_ever_come_out_of_mutated_lines(tmp_path, case):
    task, line = case
    path = tmp_path / f"{task}.jsonl"
    path.write_bytes(line)
    try:
        dataset = load(task, tmp_path)
    except DataError as error:
        assert str(path) in str(error) or error.file == task
    else:
        assert tuple(dataset.column_names) == COLUMNS[task]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.binary(max_size=60), labels=st.binary(max_size=6))
def test_only_data_errors_ever_come_out_of_piqas_two_files(tmp_path, rows, labels):
    good = json.dumps({"goal": "g", "sol1": "s", "sol2": "t"}).encode()
    (tmp_path / "piqa").mkdir(exist_ok=True)
    (tmp_path / "piqa" / "valid.jsonl").write_bytes(good + b"\n" + rows)
    (tmp_path / "piqa" / "valid-labels.lst").write_bytes(b"0\n" + labels)
    try:
        assert len(load_piqa("validation", source=tmp_path)) >= 1
    except DataError as error:
        assert "piqa" in str(error)
