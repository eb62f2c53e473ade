"""The study: goes on after a kill as if nothing had happened, keeps no text of ARC, prints what the records say."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import arc_study
from benchmarks.arc_study import Policy, find_policies, measure, regrade, shareable, update_summary
from problama_utils import CourseError
from problama_utils.evaluation import tables as arc_table
from problama_utils.evaluation.records import RecordFile, read_records
from problama_utils.tasks.science import load_science

ROWS = list(load_science("test", source="embedded"))[:5]


@pytest.fixture(autouse=True)
def tiny(tiny_model_dir, monkeypatch):
    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    monkeypatch.setenv("PROBLAMA_PROFILE", "cpu")


def contents(folder):
    return {path.name: sorted(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.csv")}


def test_a_killed_study_goes_on_and_ends_with_the_same_records(tmp_path, monkeypatch):
    whole = measure(Policy("base"), {"own": ROWS}, tmp_path / "whole", questions_at_once=2)
    real, calls = arc_study.score_questions, []

    def killed(*arguments, **how):
        calls.append(len(arguments[3]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **how)

    monkeypatch.setattr(arc_study, "score_questions", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(Policy("base"), {"own": ROWS}, tmp_path / "cut", questions_at_once=2)
    again = measure(Policy("base"), {"own": ROWS}, tmp_path / "cut", questions_at_once=2)
    assert (whole["asked"], again["asked"]) == (10, 6)
    ids = [[line.split(",")[:5] for line in lines] for lines in
           (contents(tmp_path / name)["own_base.csv"] for name in ("whole", "cut"))]
    assert ids[0] == ids[1] and len(ids[0]) == 11
    assert measure(Policy("base"), {"own": ROWS}, tmp_path / "cut") is None, "nothing is asked twice"


def test_no_text_of_others_questions_is_kept(tmp_path):
    secret = [{**row, "id": f"q{n}", "question": f"xylophone {row['question']}",
               "choices": [f"zebra {choice}" for choice in row["choices"]]} for n, row in enumerate(ROWS)]
    measure(Policy("base"), {"arc": secret}, tmp_path)
    text = (tmp_path / "arc_base.csv").read_text(encoding="utf-8")
    assert "xylophone" not in text and "zebra" not in text
    assert not re.search(r"[A-Za-z]{9,}", "\n".join(line.split(",", 5)[-1] for line in text.splitlines()[1:]))


@given(st.text())
def test_what_is_kept_of_an_answer_to_others_questions_has_no_word(text):
    kept = shareable(text, own=False)
    assert kept in (text, "…")
    assert not re.search(r"[A-Za-z]{2,}|\d", kept.lower().replace("answer", ""))


def test_a_tagged_letter_is_kept_and_an_empty_answer_stays_empty():
    assert shareable("<answer>B</answer>", own=False) == "<answer>B</answer>"
    assert shareable("", own=False) == "" and shareable("B: gas", own=False) == "…"
    assert shareable("x" * 99, own=True) == "x" * arc_study.KEPT_CHARACTERS


def test_the_cost_of_a_policy_adds_up_over_interrupted_runs(tmp_path):
    for seconds in (10.0, 5.0):
        update_summary(tmp_path, {"base": {"asked": 4, "of": 8, "seconds": seconds, "peak_memory_gb": seconds / 10}},
                       {"dtype": "float32"})
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["policies"]["base"] == {"asked": 8, "of": 8, "seconds": 15.0, "peak_memory_gb": 1.0}


def test_folders_without_adapters_and_equal_labels_are_refused(tmp_path):
    with pytest.raises(CourseError, match="no adapter in or below"):
        find_policies([tmp_path])
    for name in ("a", "b"):
        (tmp_path / name / "adapter" / "reference").mkdir(parents=True)
        (tmp_path / name / "adapter" / "adapter_config.json").write_text("{}")
        (tmp_path / name / "adapter" / "reference" / "adapter_config.json").write_text("{}")
        (tmp_path / name / "run.json").write_text('{"task": "piqa", "seed": 1}')
    assert [policy.label for policy in find_policies([tmp_path / "a"])] == ["base", "piqa/1"]
    with pytest.raises(CourseError, match="both called 'piqa/1'"):
        find_policies([tmp_path])


def records_of(folder, policy, strict, chosen):
    file = RecordFile(folder / f"own_{policy.replace('/', '_')}.csv")
    file.append({"policy": policy, "system": True, "id": f"q{n}", "prompt_hash": "h", "right": "A", "strict": s,
                 "lenient": s, "chosen": c, "chosen_norm": c, "scores": [0.0] * 4, "completion": ""}
                for n, (s, c) in enumerate(zip(strict, chosen, strict=True)))


def test_letters_are_read_again_from_whole_completions_and_nothing_else_changes(tmp_path, capsys):
    row = ROWS[0]  # A: leather and the like; four choices
    kept = [  # completion, what a reader of old had read, what is read now
        ("B\nBecause iron rusts", "", "B"), ("vitamin C", "C", ""), ("B: it is so", "B", "B"),
        ("B" + " so" * 40, "C", "C"),
        ("The answer is:\\n\n\nD", "", "D"), ("<answer>b</answer>", "", "B"), ("", "", ""), ("B | a", "B", "")]
    base = {"policy": "base", "prompt_hash": "h", "right": row["answer"], "strict": None, "chosen": "A",
            "chosen_norm": "B", "scores": [-1.0, -2.0, -3.0, -4.0]}
    for name, ids, own in (("own_base", [row["id"]] * 8, True), ("arc_base", ["Mercury"] * 8, False)):
        RecordFile(tmp_path / f"{name}.csv").append(
            {**base, "system": bool(place % 2), "id": ids[place], "lenient": old, "completion": shareable(said, own)}
            for place, (said, old, _) in enumerate(kept))
    before = {name: (tmp_path / f"{name}_base.csv").read_text().splitlines() for name in ("own", "arc")}
    assert arc_study.main(["--regrade", str(tmp_path)]) == 0
    assert "own_base.csv: 8 rows, 5 changed, 1 kept" in capsys.readouterr().out
    rows = RecordFile(tmp_path / "own_base.csv").rows()
    assert [found["lenient"] for found in rows] == [now for *_, now in kept]
    assert [found["strict"] for found in rows] == ["", "", "", "", "", "B", "", ""]
    arc = RecordFile(tmp_path / "arc_base.csv").rows()
    assert [found["lenient"] for found in arc] == ["", "C", "B", "C", "", "B", "", "B"], "others' texts were not kept"
    for name, lines in before.items():
        after = (tmp_path / f"{name}_base.csv").read_text().splitlines()
        assert [line.split(",")[7:] for line in after] == [line.split(",")[7:] for line in lines]
    assert sum(found["changed"] for found in regrade(tmp_path).values()) == 0, "a second time changes nothing"


def test_the_shipped_study_is_read_with_the_reader_of_today(tmp_path):
    import shutil

    from problama_utils.config import course_root

    shutil.copytree(course_root() / "assets" / "results" / "arc", tmp_path / "arc")
    assert {name: found["changed"] for name, found in regrade(tmp_path / "arc").items() if found["changed"]} == {}


def test_a_letter_that_an_options_text_explains_is_not_taken_away_without_the_text():
    row = {"completion": "A: C", "scores": "-1 -2 -3", "right": "B", "strict": "", "lenient": "A"}
    assert arc_study._regraded(row, None) is None
    assert arc_study._regraded({**row, "lenient": ""}, None)["lenient"] == ""
    assert arc_study._regraded({**row, "completion": "A:", "lenient": ""}, None)["lenient"] == "A"


@pytest.mark.parametrize("damage", ["nothing there", "a damaged file"])
def test_a_study_that_cannot_be_read_again_is_left_alone(tmp_path, damage):
    if damage == "a damaged file":
        records_of(tmp_path, "base", "AB", "AB")
        (tmp_path / "own_x.csv").write_text("not,a,record\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CourseError, match="no records in|not a file of records"):
        regrade(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_table_keeps_format_and_knowledge_apart(tmp_path, capsys):
    # base: 1 of 4 answers readable; tuned: all readable, 2 right; by likelihood both have 2 of 4
    records_of(tmp_path, "base", ["A", "", "", ""], "ABAB")
    records_of(tmp_path, "riddles/1", ["A", "A", "B", "B"], "BABA")
    table, gain = arc_table.summarise(read_records(tmp_path)), arc_table.gains(read_records(tmp_path)).iloc[0]
    assert table.loc[("own", True, "base"), ["unparsed", "strict", "among_parsed"]].tolist() == [0.75, 0.25, 1.0]
    assert (gain.format, gain.among_read, gain.knowledge) == (75.0, -50.0, 0.0)
    assert arc_table.main(["--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "50.0 (15.0 to 85.0)" in printed and "chance: 25.0" in printed  # Wilson for 2 of 4


def test_the_table_of_a_folder_without_records_says_how_to_make_them(tmp_path):
    with pytest.raises(CourseError, match="arc_study"):
        arc_table.main(["--results", str(tmp_path)])
