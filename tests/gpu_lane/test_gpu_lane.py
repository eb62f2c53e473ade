"""The course's GPU lane on unsloth's own GPU code: see `pretend_card` for what is real here and what is not."""

import pytest

pytestmark = pytest.mark.slow
NATS = 5e-5  # unsloth multiplies adapters in another order than peft


@pytest.fixture(scope="module")
def trained(run_lane):
    return run_lane("train")


@pytest.fixture(scope="module")
def plain(trained, run_lane):
    return run_lane("plain")


def same(measured, expected):
    assert measured["completions"] == expected["completions"]
    for ours, theirs in zip(measured["scores"], expected["scores"], strict=True):
        assert ours == pytest.approx(theirs, abs=NATS, rel=0)


def test_the_code_that_ran_is_unsloths_and_the_comparison_is_not(trained, plain):
    assert "Unsloth" in trained["stdout"] and trained["optimizer"].startswith("bitsandbytes")
    assert trained["padding_side"] == "right"  # what unsloth's get_peft_model leaves behind
    assert plain["unsloth"] is False


def test_a_fresh_adapter_measures_like_the_plain_base_model(trained, plain):
    same(trained["before"], plain["base"])
    assert plain["base"]["correct"] >= 4  # so that wrong padding would show


def test_the_policy_in_memory_and_the_reloaded_one_measure_like_plain_peft(trained, plain):
    same(trained["trained"], plain["tuned"])
    same(trained["reloaded"], plain["tuned"])
    assert plain["tuned"]["scores"] != plain["base"]["scores"]


def test_a_run_that_was_stopped_goes_on_to_the_same_steps(trained):
    assert "after step 1 of 3" in trained["stopped"]
    assert [row["step"] for row in trained["log_whole"]] == ["1", "2", "3"]
    assert trained["log_parts"] == trained["log_whole"]
    assert trained["heldout_parts"] == trained["heldout_whole"]
    assert trained["files_parts"] == trained["files_whole"]


def test_held_out_problems_are_measured_before_between_and_after(trained):
    rows = trained["heldout_whole"]
    assert [row["step"] for row in rows] == ["0", "2", "3"]
    assert all(row["n"] == "4" and int(row["unjudged"]) <= 2 for row in rows)
