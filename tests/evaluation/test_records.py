"""Records: whole after a kill, refused in one sentence when damaged, one table of which every figure is a mean."""

import pandas as pd
import pytest

from problama_utils import CourseError
from problama_utils.evaluation.records import COLUMNS, RecordFile, prompt_hash, read_records


def record(number, policy="base", system=False, **changes):
    row = {"policy": policy, "system": system, "id": f"q{number}", "prompt_hash": f"hash{number}{int(system)}",
           "right": "B", "strict": "B" if number % 2 else None, "lenient": "B", "chosen": "A", "chosen_norm": "B",
           "scores": [-1.25, -2.0, -3.0], "completion": 'a "quoted", line\nand another'}
    return row | changes


@pytest.fixture
def path(tmp_path):
    file = RecordFile(tmp_path / "own_base.csv")
    file.append(record(number) for number in range(4))
    return file.path


def test_what_was_written_is_known_after_a_restart(path):
    again = RecordFile(path)
    assert all(again.has(record(number)) for number in range(4)) and not again.has(record(4))
    assert not again.has(record(1, system=True, prompt_hash="other")), "with the system prompt is another question"


def test_scores_have_three_decimals_and_a_record_is_one_line(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5 and "-1.250 -2.000 -3.000" in lines[1] and r"line\nand" in lines[1]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_kill_inside_the_last_line_costs_that_line_only(path, cut, capsys):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = RecordFile(path)
    assert [again.has(record(number)) for number in range(4)] == [True, True, True, False]
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and "cut off" in note
    again.append([record(3)])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("size", [0, 5, len(",".join(COLUMNS))])
def test_a_kill_inside_the_header_starts_the_file_again(path, size):
    path.write_bytes(path.read_bytes()[:size])
    again = RecordFile(path)
    again.append([record(0)])
    assert len(read_records(path)) == 1


@pytest.mark.parametrize(("reason", "damage", "sentence"), [
    ("another file", lambda raw: b"step,reward\n1,2\n", "not a file of records"),
    ("zeroed block", lambda raw: raw.replace(b"q1", b"\0\0"), "Line 3 of own_base.csv is damaged"),
    ("a field lost", lambda raw: raw.replace(b"q1,hash10", b"q1"), "Line 3 of own_base.csv is damaged"),
    ("not UTF-8", lambda raw: raw.replace(b"q2", b"\xff\xfe"), "Line 4 of own_base.csv is damaged"),
    ("scores no numbers", lambda raw: raw.replace(b"-1.250", b"-1.2x", 1), "Line 2 of own_base.csv is damaged"),
], ids=lambda value: value if isinstance(value, str) and " " in value else "")
def test_a_damaged_file_is_refused_in_one_sentence_and_left_alone(path, reason, damage, sentence):
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(CourseError, match=sentence) as error:
        RecordFile(path)
    assert "\n" not in str(error.value) and path.read_bytes() == before
    with pytest.raises(CourseError):
        read_records(path)


def test_a_question_whose_prompt_has_changed_is_not_taken_for_measured(path):
    with pytest.raises(CourseError, match="another prompt"):
        RecordFile(path).has(record(1, prompt_hash="new"))


def test_policies_that_read_different_prompts_are_not_compared(path):
    other = RecordFile(path.with_name("own_tuned.csv"))
    other.append([record(0, policy="tuned"), record(1, policy="tuned", prompt_hash="other")])
    with pytest.raises(CourseError, match="different prompts for question 'q1'"):
        read_records(path.parent)


def test_one_policy_measured_twice_is_refused(path):
    path.with_name("own_copy.csv").write_bytes(path.read_bytes())
    with pytest.raises(CourseError, match="two records"):
        read_records(path.parent)


def test_a_mean_over_any_subset_is_one_line(path):
    table = read_records(path.parent)
    assert isinstance(table, pd.DataFrame) and set(table.data) == {"own"}
    assert table.correct_strict.mean() == table.unparsed.mean() == 0.5
    assert table.correct_likelihood.mean() == 0 and table.correct_likelihood_norm.mean() == 1
    assert table.chance.tolist() == pytest.approx([1 / 3] * 4)


def test_a_folder_without_records_says_how_to_get_some(tmp_path):
    with pytest.raises(CourseError, match="arc_study"):
        read_records(tmp_path)


def test_the_hash_covers_every_text_and_where_it_ends():
    assert prompt_hash("a", "b") == prompt_hash("a", "b")
    assert len({prompt_hash("a", "b"), prompt_hash("ab"), prompt_hash("b", "a"), prompt_hash("a")}) == 4
