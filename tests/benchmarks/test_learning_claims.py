"""What assets/results/README.md says of learning is what the shipped runs show; a claim beyond them is found."""

import csv
import importlib.util

import pytest

from problama_utils.config import course_root

ROOT = course_root()


@pytest.fixture(scope="module")
def learning():
    spec = importlib.util.spec_from_file_location("learning", ROOT / "benchmarks" / "learning.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_runs(folder, rewards, accuracy):
    """Runs of riddles whose rewards go from the first to the second value, and of 40 items answered alike."""
    for seed, (first, last) in enumerate(rewards):
        run = folder / f"riddles-{seed}"
        run.mkdir()
        values = [first] * 10 + [last] * 10
        (run / "log.csv").write_text("step,reward\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values, 1)))
        before, after = accuracy[seed]
        with (run / "items.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "greedy_before", "sampled_before", "greedy_after", "sampled_after"])
            for i in range(40):
                words = ["right" if i < right else "wrong" for right in (before, after)]
                writer.writerow([i, words[0], "wrong", words[1], "wrong"])


def verdicts(learning, folder):
    return {row["measure"]: row["verdict"] for row in learning.measure("riddles", folder)}


def test_four_seeds_that_all_gain_are_a_claim_and_form_that_was_always_there_is_none(learning, tmp_path):
    make_runs(tmp_path, [(1.0, 2.0), (1.1, 2.0), (1.0, 1.9), (0.9, 2.1)], [(10, 30), (10, 31), (10, 29), (10, 30)])
    assert verdicts(learning, tmp_path) == {"total": "rises", "format": "no claim", "accuracy": "rises"}


def test_three_seeds_or_a_gain_within_two_standard_errors_are_no_claim(learning, tmp_path):
    (tmp_path / "few").mkdir()
    make_runs(tmp_path / "few", [(1.0, 2.0)] * 2 + [(1.0, 2.1)], [(10, 30)] * 3)
    assert set(verdicts(learning, tmp_path / "few").values()) == {"no claim"}
    (tmp_path / "noisy").mkdir()
    make_runs(tmp_path / "noisy", [(1.0, 2.0), (2.0, 1.0), (1.0, 1.5), (1.0, 0.9)],
              [(10, 20), (20, 10), (10, 12), (12, 10)])
    assert verdicts(learning, tmp_path / "noisy")["total"] == "no claim"


def test_a_fall_is_called_a_fall(learning, tmp_path):
    make_runs(tmp_path, [(2.0, 1.0), (2.0, 1.1), (2.1, 1.0), (2.0, 0.9)], [(30, 10)] * 4)
    assert verdicts(learning, tmp_path)["total"] == "falls"


def test_a_claim_that_the_runs_do_not_bear_out_is_named(learning, tmp_path):
    make_runs(tmp_path, [(2.0, 1.0), (2.0, 1.1), (2.1, 1.0), (2.0, 0.9)], [(30, 10)] * 4)
    rows = learning.measure("riddles", tmp_path)
    honest = learning.table(rows)
    assert learning.broken_claims(rows, honest) == []
    boast = honest.replace("| falls |", "| rises |")
    assert any("total reward" in sentence and "the runs say: falls" in sentence
               for sentence in learning.broken_claims(rows, boast))
    assert learning.broken_claims(rows, "nothing here") == [
        "assets/results/README.md has no table of learning claims."]


def test_the_page_of_results_shows_the_table_of_the_shipped_runs_to_the_letter(learning):
    rows = [row for task in learning.TASKS for row in learning.measure(task, ROOT / "assets" / "runs")]
    assert learning.table(rows) in (ROOT / learning.CLAIMS).read_text(encoding="utf-8")


def test_one_adapter_per_task_is_shipped_small_and_low_rank():
    import json

    for task in ("riddles", "piqa"):
        adapters = list((ROOT / "assets" / "runs").glob(f"{task}-*/adapter/adapter_model.safetensors"))
        assert len(adapters) == 1 and adapters[0].stat().st_size <= 10e6
        assert json.loads((adapters[0].parent / "adapter_config.json").read_text())["r"] <= 16
