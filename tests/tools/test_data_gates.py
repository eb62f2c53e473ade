"""Gates: green on the embedded files, red for each planted fault; and a data card that equals what was measured."""

import json
import random
from pathlib import Path

import pytest

from problama_utils.tasks.datasets import fingerprint
from problama_utils.tasks.piqa import load_piqa
from problama_utils.tasks.registry import LOADERS
from problama_utils.tasks.riddles import load_riddles
from problama_utils.tasks.science import load_science
from problama_utils.tasks.sources import assets_folder
from tools import check_data as report
from tools import data_gates as gates

RESULTS = Path(__file__).resolve().parents[2] / "assets" / "results" / "data_baselines.json"


@pytest.fixture(autouse=True)
def no_local_folder(monkeypatch):
    monkeypatch.delenv("PROBLAMA_DATA", raising=False)
    monkeypatch.delenv("PROBLAMA_ASSETS", raising=False)


@pytest.fixture(scope="module")
def files() -> dict[str, list[dict]]:
    return {"riddles": load_riddles("all", source="embedded").to_list(),
            "physical": load_piqa("all", source="embedded").to_list(),
            "science": load_science("test", source="embedded").to_list()}


def copy_of(rows: list[dict]) -> list[dict]:
    return json.loads(json.dumps(rows))


@pytest.fixture(scope="module")
def shipped() -> list[gates.Gate]:
    return report.embedded_gates()


def only(found: list[gates.Gate], name: str) -> gates.Gate:
    [gate] = [gate for gate in found if gate.name.startswith(name)]
    return gate


# --- green on what is shipped --------------------------------------------------------------------------------------


def test_every_gate_of_the_embedded_files_is_green(shipped):
    assert [gate for gate in shipped if not gate.ok] == []
    assert {gate.data for gate in shipped} == set(LOADERS)


def test_held_out_answers_are_not_even_aliases_in_train(files):
    assert gates.leaked_answers(files["riddles"]) == set()


def test_answers_have_one_to_three_words(files):
    assert [row["answer"] for row in files["riddles"] if not 1 <= len(row["answer"].split()) <= 3] == []


def test_no_item_of_ours_is_worded_like_one_of_the_slides_examples(files):
    from rapidfuzz import fuzz, utils

    from problama_utils.tasks.datasets import load_few_shot

    for data, field in (("riddles", "riddle"), ("physical", "goal")):
        for example in load_few_shot(data):
            nearest = max(fuzz.token_set_ratio(example[field], gates.item_text(row), processor=utils.default_process)
                          for row in files[data])
            assert nearest < 85


# --- red for planted faults ----------------------------------------------------------------------------------------


def test_one_riddle_reworded_from_another_is_a_near_duplicate(files):
    rows = copy_of(files["riddles"][:60])
    rows[7]["riddle"] = "Please tell me: " + rows[30]["riddle"].lower()
    assert not only(gates.word_gates("riddles", rows), "nearest two").ok
    assert set(gates.nearest_pair(rows)[1:]) == {rows[7]["id"], rows[30]["id"]}


def test_an_answer_shared_by_both_splits_is_a_leak_even_as_an_alias(files):
    rows = copy_of(files["riddles"])
    train = next(row for row in rows if row["split"] == "train")
    held = next(row for row in rows if row["split"] == "heldout")
    held["aliases"].append(f"The {train['answer'].upper()}!")
    assert len(gates.leaked_answers(rows)) == 1


@pytest.mark.parametrize(("riddle", "answer", "aliases", "inside"), [
    ("A key turns in me.", "key", [], True),
    ("Keys turn in me.", "key", [], True),
    ("I keep you dry in the rain.", "rain coat", [], True),
    ("I tick on the wrist, a wrist watch.", "clock", ["wrist watch"], True),
    ("It is the time of day.", "watch of the day", [], True),
    ("I am of the sea.", "salt of the earth", [], False),
    ("A monkey eats it.", "key", [], False),
])
def test_an_answer_word_inside_its_riddle_is_found(riddle, answer, aliases, inside):
    row = {"id": "x", "riddle": riddle, "answer": answer, "aliases": aliases}
    assert (gates.answers_in_riddle([row]) == ["x"]) is inside


@pytest.mark.parametrize(("answer", "aliases", "bad"), [("bee", ["honeybee"], False), ("bee", ["The bee"], True),
                                                        ("bee", ["fly", "Fly!"], True), ("bee", ["!"], True)])
def test_aliases_must_differ_after_normalising(answer, aliases, bad):
    assert bool(gates.repeated_aliases([{"id": "x", "answer": answer, "aliases": aliases}])) is bad


@pytest.mark.parametrize(("choices", "bad"), [("bee ant fly owl", False), ("bee wasp fly owl", True),
                                              ("bee ant Ant owl", True)])
def test_a_bank_has_exactly_one_accepted_word_and_no_word_twice(choices, bad):
    row = {"id": "x", "answer": "bee", "aliases": ["wasp"], "choices": choices.split()}
    assert bool(gates.second_right_choices([row])) is bad


def test_labels_out_of_balance_in_one_split_are_red(files):
    rows = copy_of(files["physical"])
    flipped = 0
    for row in rows:
        if row["split"] == "heldout" and row["label"] == 0 and flipped < 15:
            row["label"], flipped = 1, flipped + 1
    found = gates.balance_gates("physical", rows)
    assert not only(found, "right option at A, heldout").ok
    assert only(found, "right option at A, train").ok


def test_choose_the_longer_gets_half_a_point_for_a_tie():
    rows = [{"sol1": "abcd", "sol2": "abc", "label": 0}, {"sol1": "abcd", "sol2": "abc", "label": 1},
            {"sol1": "abc", "sol2": "abd ", "label": 1}, {"sol1": "ab", "sol2": "abc", "label": 1}]
    assert gates.longest_option_accuracy(rows) == pytest.approx(100 * (1 + 0 + 0.5 + 1) / 4)


def test_a_bag_of_words_finds_a_word_that_only_right_options_use():
    rng = random.Random(0)
    rows = []
    for number in range(100):
        right = rng.randrange(2)
        options = [f"use item {rng.randrange(40)}", f"use item {rng.randrange(40)}"]
        options[right] += " carefully"
        rows.append({"id": str(number), "goal": "g", "sol1": options[0], "sol2": options[1], "label": right})
    assert gates.bag_of_words_accuracy(rows, seeds=[0]) == 100


def test_a_bag_of_words_is_at_chance_on_equal_options():
    rows = [{"sol1": "same words", "sol2": "same words", "label": number % 2} for number in range(40)]
    assert gates.bag_of_words_accuracy(rows, seeds=[0]) == 50


def test_a_missing_row_and_a_gap_in_the_ids_are_red(files):
    rows = copy_of(files["science"])
    del rows[100]
    found = gates.count_gates("science", rows)
    assert not only(found, "rows").ok
    assert only(found, "ids out of sequence").figure == 299


@pytest.mark.parametrize(("figure", "ok"), [(23.9, False), (24, True), (26, True), (26.1, False)])
def test_bounds_include_their_ends(figure, ok):
    assert gates.Gate("d", "n", figure, 24, 26).ok is ok


# --- the command and the card --------------------------------------------------------------------------------------


def test_the_command_prints_every_source_and_returns_1_when_a_gate_is_red(monkeypatch, capsys, shipped):
    monkeypatch.setattr(report, "embedded_gates", lambda: shipped)
    assert report.main() == 0
    printed = capsys.readouterr().out
    for text in ("riddles", "640", "160", "physical", "2,000", "400", "science", "green"):
        assert text in printed
    assert "RED" not in printed
    monkeypatch.setattr(report, "embedded_gates", lambda: [gates.Gate("riddles", "rows", 799, 800, 800)])
    assert report.main() == 1
    assert "RED" in capsys.readouterr().out


def test_the_command_shows_local_arc_and_piqa(monkeypatch, capsys, tmp_path):
    for split, keys in (("Train", "AB"), ("Dev", "C"), ("Test", "D2")):
        lines = [json.dumps({"id": f"{split}{i}", "answerKey": key, "question": {"stem": "Which?", "choices": [
            {"text": f"t{label}", "label": label} for label in ("1234" if key.isdigit() else "ABCD")]}})
            for i, key in enumerate(keys)]
        (tmp_path / "ARC-Challenge").mkdir(exist_ok=True)
        (tmp_path / "ARC-Challenge" / f"ARC-Challenge-{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "piqa").mkdir()
    pairs = [json.dumps({"goal": f"goal {i}", "sol1": "a", "sol2": "b"}) for i in range(10)]
    (tmp_path / "piqa" / "valid.jsonl").write_text("\n".join(pairs))
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n1\n" * 5)
    monkeypatch.setenv("PROBLAMA_DATA", str(tmp_path))
    monkeypatch.setattr(report, "embedded_gates", list)
    report.main()
    printed = capsys.readouterr().out
    assert "1 test keys were digits" in printed
    assert "PIQA: 10 labelled" in printed
    assert [line.split()[2:4] for line in printed.splitlines() if line.startswith("science")] == [
        ["train", "2"], ["dev", "1"], ["test", "2"]]


def test_baselines_were_measured_on_the_files_that_are_shipped():
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert record["fingerprints"] == {data: fingerprint(load("test" if data == "science" else "all"))
                                      for data, load in LOADERS.items()}


def test_the_data_card_prints_the_measured_baselines_and_the_gates(shipped):
    card = (assets_folder() / "README.md").read_text(encoding="utf-8")
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert report.baseline_table(record) in card
    assert report.gate_table(shipped) in card
    for text in (record["date"], record["machine"], record["versions"]["torch"], f"seed {record['seed']}"):
        assert text in card
