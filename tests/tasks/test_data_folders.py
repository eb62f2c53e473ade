"""Folders: every layout of PIQA and ARC is found, and none that is named is passed over silently."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from problama_utils import CourseError
from problama_utils.config import PROFILE_NAMES, get_profile
from problama_utils.tasks import datasets
from problama_utils.tasks.folders import files_below
from problama_utils.tasks.piqa import load_piqa
from problama_utils.tasks.registry import LOADERS
from problama_utils.tasks.riddles import load_riddles
from problama_utils.tasks.science import count_digit_keys, load_science
from problama_utils.tasks.sources import DataError
from problama_utils.training.checks import check_settings
from problama_utils.training.problems import heldout_problems, training_problems
from tools import check_data as report

REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB_CACHE = f"datasets--ybisk--piqa/snapshots/{REVISION}"


@pytest.fixture(autouse=True)
def no_local_folder(monkeypatch):
    for name in ("PROBLAMA_DATA", "PROBLAMA_ASSETS"):
        monkeypatch.delenv(name, raising=False)
    datasets._tell_once.cache_clear()


def pairs(count: int, **more) -> list[dict]:
    return [{"goal": f"goal {number}", "sol1": "yes", "sol2": "no"} | more for number in range(count)]


def lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict]) -> Path:
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)
    return path


def piqa_lines(path: Path, count: int) -> None:
    lines(path, pairs(count))
    lines(path.with_name(f"{path.stem}-labels.lst"), ["0", "1"] * (count // 2))


def arc(count: int, labels: str = "ABCD", name: str = "Q") -> list[dict]:
    return [{"id": f"{name}{number}", "answerKey": labels[-1], "question": {"stem": "Which?", "choices": [
        {"text": f"choice {label}", "label": label} for label in labels]}} for number in range(count)]


def arc_parquet(path: Path, count: int) -> None:
    parquet(path, [{"id": f"Q{number}", "question": "Which?", "answerKey": "B", "choices": {
        "text": ["x", "y", "z"], "label": list("ABC")}} for number in range(count)])


# Folder below the data folder, train file, validation file: lines with label lists, or parquet.
PIQA_LAYOUTS = [
    ("", "train.jsonl", "valid.jsonl"),
    ("", "train.jsonl", "dev.jsonl"),
    ("piqa", "train.jsonl", "dev.jsonl"),
    ("PIQA", "Train.jsonl", "Valid.jsonl"),
    ("piqa/data", "train.jsonl", "valid.jsonl"),
    ("physicaliqa-train-dev", "train.jsonl", "dev.jsonl"),
    ("downloads/physicaliqa-train-dev", "train.jsonl", "dev.jsonl"),
    ("physicaliqa-train-dev/physicaliqa-train-dev", "train.jsonl", "dev.jsonl"),
    ("PhysicalIQA", "train.json", "dev.json"),
    ("questions", "train.jsonl", "validation.jsonl"),
    ("", "plain_text/train/0000.parquet", "plain_text/validation/0000.parquet"),
    ("piqa", "plain_text/train/0000.parquet", "plain_text/validation/0000.parquet"),
    ("", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
    ("piqa", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
    ("", "train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
    ("piqa", "train.parquet", "validation.parquet"),
    (HUB_CACHE, "plain_text/train/0000.parquet", "plain_text/validation/0000.parquet"),
    (HUB_CACHE, "data/train-00000-of-00001-0a1b2c.parquet", "data/validation-00000-of-00001-0a1b2c.parquet"),
    (f"hub/{HUB_CACHE}", "plain_text/train/0000.parquet", "plain_text/validation/0000.parquet"),
]


@pytest.mark.parametrize(("below", "train", "validation"), PIQA_LAYOUTS)
@pytest.mark.parametrize("up", ["", "class/shared/"])
def test_piqa_is_found_in_every_layout_and_from_its_parents(tmp_path, monkeypatch, up, below, train, validation):
    for name, count in ((train, 6), (validation, 4)):
        path = tmp_path / up / below / name
        if path.suffix == ".parquet":
            parquet(path, [row | {"label": 1} for row in pairs(count)])
        else:
            piqa_lines(path, count)
    (tmp_path / "README.md").write_text("downloaded today")
    monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path))
    assert (len(load_piqa("train")), len(load_piqa("heldout"))) == (6, 4)
    about = load_piqa("heldout").info.description
    assert about.startswith(f"PIQA in folder {tmp_path.name}") and "validation held out" in about
    assert str(tmp_path) not in about


ARC_LAYOUTS = [
    ("ARC-Challenge", "ARC-Challenge-Test.jsonl"),
    ("", "ARC-Challenge-Test.jsonl"),
    ("arc-challenge", "arc-challenge-test.jsonl"),
    ("ARC-V1-Feb2018-2/ARC-Challenge", "ARC-Challenge-Test.jsonl"),
    ("ARC-V1-Feb2018/ARC-Challenge", "ARC-Challenge-Test.jsonl"),
    ("data/ARC-V1-Feb2018-2/ARC-Challenge", "ARC-Challenge-Test.json"),
    ("ARC-Challenge", "test-00000-of-00001.parquet"),
    ("ai2_arc/ARC-Challenge", "test-00000-of-00001.parquet"),
    ("ARC-Challenge", "test/0000.parquet"),
    (f"datasets--allenai--ai2_arc/snapshots/{REVISION}/ARC-Challenge", "test-00000-of-00001.parquet"),
    ("ARC-Challenge", "test.jsonl"),
]


@pytest.mark.parametrize(("below", "name"), ARC_LAYOUTS)
@pytest.mark.parametrize("up", ["", "class/shared/"])
def test_arc_is_found_in_every_layout_and_never_mixed_with_arc_easy(tmp_path, monkeypatch, up, below, name):
    path = tmp_path / up / below / name
    easy = Path(str(path).replace("Challenge", "Easy").replace("challenge", "easy"))
    for place, count in ((path, 3), (easy, 5)):
        if place.suffix == ".parquet":
            arc_parquet(place, count)
        else:
            lines(place, arc(count))
    monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path))
    found = load_science("test")
    assert len(found) == 3 and found.info.description.startswith(f"ARC-Challenge in folder {tmp_path.name}")
    assert count_digit_keys() == 0


@pytest.mark.parametrize("name", ["piqa", "ARC-Challenge"])
def test_a_folder_may_be_the_data_sets_own(tmp_path, name):
    piqa_lines(tmp_path / "piqa" / "valid.jsonl", 4)
    arc_parquet(tmp_path / "ARC-Challenge" / "test-00000-of-00001.parquet", 3)
    load, rows = (load_piqa, 4) if name == "piqa" else (load_science, 3)
    assert len(load("all" if name == "piqa" else "test", source=tmp_path / name)) == rows


def test_a_link_beside_the_folder_it_leads_to_is_no_second_copy(tmp_path):
    piqa_lines(tmp_path / "piqa-2024" / "valid.jsonl", 4)
    (tmp_path / "piqa-latest").symlink_to("piqa-2024")
    assert len(load_piqa("all", source=tmp_path)) == 4


def test_a_cache_of_links_is_followed(tmp_path):
    blob = parquet(tmp_path / "blobs" / "abc", [row | {"label": 0} for row in pairs(4)])
    link = tmp_path / "data" / HUB_CACHE / "plain_text" / "validation" / "0000.parquet"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")  # a circle ends at the depth that is searched
    (tmp_path / "data" / "datasets--ybisk--piqa" / "self").symlink_to("self")
    assert len(load_piqa("validation", source=tmp_path / "data" / "datasets--ybisk--piqa")) == 4


# What is in the folder (path -> rows), the task that is asked for, what the error names.
NOT_THERE = [
    ({}, "physical", "nothing at all"),
    ({}, "riddles", "expected riddles.jsonl"),
    ({"README.md": ["x"]}, "science", "README.md"),
    ({"piqa-train.csv": ["goal,sol1,sol2"]}, "physical", "piqa-train.csv"),
    ({"ARC-Challenge-Test.csv": ["id"]}, "science", "ARC-Challenge-Test.csv"),
    ({"socialiqa-train-dev/dev.jsonl": [{"context": "c"}]}, "physical", "socialiqa-train-dev/"),
    ({"hellaswag/valid.jsonl": [{"ctx": "c"}]}, "physical", "hellaswag/"),
    ({"ARC-Easy/ARC-Easy-Test.jsonl": arc(2)}, "science", "ARC-Easy/"),
    ({"ARC-Easy/test.jsonl": arc(2)}, "science", "ARC-Easy/"),
    ({"ARC-Challenge/ARC-Challenge-Test.jsonl": arc(2)}, "physical", "ARC-Challenge/"),
    ({"physical.csv": ["goal"]}, "physical", "physical.csv"),
    ({"riddle.jsonl": ["{}"]}, "riddles", "riddle.jsonl"),
    ({".hidden/valid.jsonl": pairs(2)}, "physical", "valid.jsonl or dev.jsonl"),
]


@pytest.mark.parametrize(("there", "task", "named"), NOT_THERE)
@pytest.mark.parametrize("by_variable", [True, False])
def test_a_named_folder_without_the_task_is_an_error_that_lists_both_sides(
    tmp_path, monkeypatch, there, task, named, by_variable
):
    for name, rows in there.items():
        lines(tmp_path / name, rows)
    if by_variable:
        monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        LOADERS[task]("test" if task == "science" else "train", source=None if by_variable else tmp_path)
    message = str(caught.value)
    assert f"found no {task} there" in message and named in message and f"{task}.jsonl" in message
    assert "embedded" in message and ("PROBLAMA_DATA unset" in message) is by_variable


def test_riddles_have_no_public_source_so_they_stay_ours_beside_real_data_and_say_so(tmp_path, monkeypatch, capsys):
    lines(tmp_path / "ARC-Challenge" / "ARC-Challenge-Test.jsonl", arc(2))
    monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path))
    assert len(load_riddles("train")) == 640
    load_riddles("heldout")
    assert capsys.readouterr().err == ("No Problama: riddles from the course's own riddles.jsonl (PROBLAMA_DATA holds "
                                       "none).\n")
    assert len(load_piqa(source="embedded")) == 2000


def test_the_default_is_quiet_and_described(capsys):
    assert load_piqa("train").info.description == "the course's own physical.jsonl"
    assert load_riddles(source="embedded").select(range(2)).info.description == "the course's own riddles.jsonl"
    assert load_riddles(source=" ").info.description == "the course's own riddles.jsonl"
    assert capsys.readouterr().err == ""


def test_the_command_names_what_the_folder_lacks_and_shows_the_rest(tmp_path, monkeypatch, capsys):
    lines(tmp_path / "ARC-Challenge" / "ARC-Challenge-Test.jsonl", arc(2))
    monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path))
    monkeypatch.setattr(report, "embedded_gates", list)
    assert report.main() == 1
    printed = capsys.readouterr().out
    assert "MISSING" in printed and "no physical there" in printed and "ARC-Challenge  test" in printed


# What is in the folder, what the error says.
UNCLEAR = [
    ({"piqa/tests.jsonl": pairs(2)}, "not public"),
    ({"physicaliqa-test/test.jsonl": pairs(2)}, "not public"),
    ({"piqa/train.jsonl": pairs(2), "piqa/train-labels.lst": ["0", "1"]}, "only train.jsonl"),
    ({"piqa/valid.jsonl": pairs(2)}, "no valid-labels.lst beside it"),
    ({"piqa/dev.jsonl": pairs(2), "piqa/valid-labels.lst": ["0", "1"]}, "no dev-labels.lst beside it"),
    ({"piqa/valid.jsonl": pairs(2), "piqa/dev.jsonl": pairs(2)}, "piqa/dev.jsonl and piqa/valid.jsonl"),
    ({"piqa/valid.jsonl": pairs(2), "piqa/valid.json": pairs(2)}, "2 times"),
    ({"a/piqa/valid.jsonl": pairs(2), "b/piqa/valid.jsonl": pairs(2)}, "a/piqa and b/piqa"),
    ({"piqa/valid.jsonl": pairs(2, label=1), "piqa/valid-labels.lst": ["0", "1"]},
     "labels in its rows and in valid-labels.lst"),
    ({"piqa/valid.jsonl": ["[1]", "{"], "piqa/valid-labels.lst": ["0", "1"]}, "line 1: found a list of 1"),
    ({"piqa/valid.jsonl": [{"question": "q"}], "piqa/valid-labels.lst": ["0"]}, "line 1, field 'goal'"),
    ({"valid.jsonl": ["{broken"], "valid-labels.lst": ["0"]}, "line 1"),
    ({"piqa/validation-00000-of-00002.parquet": ["no parquet"]}, "2, as its name says"),
    ({"piqa/validation/0000.parquet": ["no parquet"]}, "expected a parquet file"),
]


@pytest.mark.parametrize(("there", "said"), UNCLEAR)
def test_what_is_there_but_cannot_be_used_is_named(tmp_path, monkeypatch, there, said):
    for name, rows in there.items():
        lines(tmp_path / name, rows)
    monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_piqa("train")
    assert said in str(caught.value)


def test_the_test_file_beside_the_others_does_no_harm_and_its_split_is_refused(tmp_path):
    piqa_lines(tmp_path / "train.jsonl", 4)
    piqa_lines(tmp_path / "dev.jsonl", 2)
    lines(tmp_path / "tests.jsonl", pairs(9))
    assert (len(load_piqa("train", source=tmp_path)), len(load_piqa("all", source=tmp_path))) == (4, 6)
    with pytest.raises(DataError, match="not public"):
        load_piqa("test", source=tmp_path)


def test_rows_that_carry_their_labels_need_no_list(tmp_path):
    lines(tmp_path / "validation.jsonl", pairs(4, label=1))
    assert load_piqa("validation", source=tmp_path)["label"][:] == [1] * 4


def test_a_split_in_several_parquet_files_keeps_its_ids_apart(tmp_path):
    for part in range(2):
        parquet(tmp_path / f"validation-0000{part}-of-00002.parquet", [row | {"label": 0} for row in pairs(3)])
    assert load_piqa("validation", source=tmp_path)["id"][-1] == "piqa-validation-00006"


def test_a_missing_arc_split_names_those_that_are_there(tmp_path):
    lines(tmp_path / "ARC-Challenge" / "ARC-Challenge-Train.jsonl", arc(2))
    with pytest.raises(DataError, match=r"no test questions, only train; expected ARC-Challenge-Test\.jsonl"):
        load_science("test", source=tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "a_file", "x" * 300, "a_file/below", "Embedded", 5, "a\0b"])
def test_a_source_that_is_no_folder_is_one_sentence(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("x")
    with pytest.raises(DataError, match='expected an existing folder, or "embedded" or "hub"'):
        load_piqa(source=source)


@pytest.mark.parametrize("source", ["~nobody-of-that-name/data", "$NO_SUCH_THING/data", "${NO_SUCH_THING}"])
def test_a_source_with_an_unknown_user_or_variable_is_one_sentence(source):
    with pytest.raises(CourseError, match="is unknown here"):
        load_piqa(source=source)


def test_a_source_is_expanded(tmp_path, monkeypatch):
    piqa_lines(tmp_path / "course" / "valid.jsonl", 4)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_piqa("all", source="~/course")) == len(load_piqa("all", source="$HOME/course")) == 4


def test_a_large_folder_is_not_searched_for_ever(tmp_path, monkeypatch):
    from problama_utils.tasks import folders as data_folders

    for number in range(40):
        lines(tmp_path / f"d{number:02d}" / "deep" / "x.jsonl", ["{}"])
    monkeypatch.setattr(data_folders, "MOST_FOLDERS", 10)
    assert len(list(files_below(tmp_path))) == 0


# --- a level that the source does not have -------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", [1, 2, 3, 0, [1], [1, 2], {3}, (2, 3), 7, True])
@pytest.mark.parametrize("task", ["physical", "science"])
def test_a_source_without_levels_keeps_all_its_rows_and_says_so(tmp_path, capsys, task, difficulty):
    piqa_lines(tmp_path / "piqa" / "valid.jsonl", 10)
    lines(tmp_path / "ARC-Challenge" / "ARC-Challenge-Test.jsonl", arc(10))
    load = LOADERS[task]
    split = "all" if task == "physical" else "test"
    rows = load(split, source=tmp_path, difficulty=difficulty)
    assert len(rows) == 10
    said = f"it has no levels, so difficulty {difficulty} keeps all rows"
    assert said in rows.info.description and said in capsys.readouterr().err


@pytest.mark.parametrize("difficulty", [7, [], [9], 1.0, "1", ["1"], 2.5])
def test_a_level_that_a_source_with_levels_lacks_is_still_refused(difficulty):
    with pytest.raises(DataError, match="difficulty"):
        load_piqa(difficulty=difficulty, source="embedded")


@pytest.mark.parametrize("name", PROFILE_NAMES)
@pytest.mark.parametrize("count", [12, 60, 400])
def test_real_questions_give_a_training_on_every_profile(tmp_path, monkeypatch, name, count):
    piqa_lines(tmp_path / "piqa" / "valid.jsonl", count)
    monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path))
    profile = get_profile(name)
    train, held = (make("piqa", profile.piqa, **more) for make, more in (
        (training_problems, {"seed": 1}), (heldout_problems, {})))
    check_settings("piqa", profile.piqa, profile, train["prompt"])
    share = round(count * 1200 / 1838)
    assert len(train) == min(share, profile.piqa.dataset_size or share)
    assert len(held) == min(count - share, profile.piqa.heldout_size)
    assert "split by goal" in train.info.description and not set(train["id"]) & set(held["id"])


def test_a_few_long_questions_pass_the_check_and_many_do_not(tmp_path):
    profile = replace(get_profile("slides"), max_seq_length=300)
    from problama_utils.tasks.piqa import piqa_messages

    short, long = ({"goal": word, "sol1": "a", "sol2": "b"} for word in ("g", "long " * 200))
    check_settings("piqa", profile.piqa, profile, [piqa_messages(row, few_shot=False) for row in [long] + 9 * [short]])
    with pytest.raises(CourseError, match="max_seq_length = 300"):
        check_settings("piqa", profile.piqa, profile, [piqa_messages(row) for row in 2 * [long] + 8 * [short]])


@pytest.mark.parametrize("labels", ["ABC", "ABCD", "ABCDE", "123", "12345"])
def test_questions_of_three_to_five_choices_can_be_asked_and_graded(tmp_path, labels):
    from problama_utils.evaluation.scoring import lettered
    from problama_utils.tasks.science import science_messages

    lines(tmp_path / "ARC-Challenge" / "ARC-Challenge-Test.jsonl", arc(2, labels))
    row = lettered(load_science("test", source=tmp_path, difficulty=1)[0])
    assert row["answer"] == "ABCDE"[len(labels) - 1]
    assert f"{row['answer']}: choice {labels[-1]}" in science_messages(row)[-1]["content"]
