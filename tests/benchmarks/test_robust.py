"""The sweep over processors: seeds of one test are counted together, stale outcomes and skips are not counted."""

import json

import pytest

from problama_utils.config import course_root


@pytest.fixture
def robust(monkeypatch):
    monkeypatch.syspath_prepend(str(course_root() / "benchmarks"))
    import robust

    return robust


@pytest.mark.parametrize(("test", "name"), [
    ("t.py::test_a[seed 3]", "t.py::test_a"),
    ("t.py::test_a[seed 12-beta-0.1]", "t.py::test_a[beta-0.1]"),
    ("t.py::test_a[beta-0.1-seed 12]", "t.py::test_a[beta-0.1]"),
    ("t.py::test_a[x-seed 1-y]", "t.py::test_a[x-y]"),
    ("t.py::test_a[7]", "t.py::test_a[7]"),
    ("t.py::test_a", "t.py::test_a"),
])  # fmt: skip
def test_the_seed_is_left_out_of_a_tests_name(robust, test, name):
    assert robust.summarise({("fp32", test): "passed"}) == {name: {"fp32": [1, 1]}}


def test_passed_of_run_is_counted_per_setting_and_a_skip_is_no_run(robust):
    outcomes = {("fp32", "a[seed 0]"): "passed", ("fp32", "a[seed 1]"): "failed", ("bf16", "a[seed 0]"): "passed",
                ("bf16", "b"): "skipped"}
    assert robust.summarise(outcomes) == {"a": {"fp32": [1, 2], "bf16": [1, 1]}}


def test_only_outcomes_of_the_code_as_it_stands_count(robust, monkeypatch, tmp_path):
    test = "tests/benchmarks/test_robust.py::test_x"
    rows = [{"setting": name, "test": test, "stamp": stamp, "outcome": "passed"}
            for name, stamp in (("fp32", robust.stamp("tests/benchmarks/test_robust.py")), ("bf16", "of another day"))]
    monkeypatch.setattr(robust, "LOG", tmp_path / "robust.jsonl")
    assert robust.read_outcomes() == {}
    robust.LOG.write_text('{"setting": "fp3' + "".join("\n" + json.dumps(row) for row in rows))  # killed in a line
    assert robust.read_outcomes() == {("fp32", test): "passed"}
