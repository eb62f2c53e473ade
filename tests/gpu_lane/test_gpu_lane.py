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
    same(trained["switched_off"], plain["base"])
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


# Defaults of unsloth's GRPOConfig that differ from TRL's and that the course leaves to unsloth, with the reason.
LEFT_TO_UNSLOTH = {
    "eval_accumulation_steps": "the trainer evaluates nothing", "per_device_eval_batch_size": "the same",
    "generation_kwargs": "{} instead of None", "include_num_input_tokens_seen": "False instead of \"no\"",
    "mask_truncated_completions": "None, which becomes False, TRL's default, for every loss but DAPO's",
    "router_aux_loss_coef": "for mixtures of experts", "torch_empty_cache_steps": "when freed memory is given back",
    "vllm_importance_sampling_correction": "with vLLM only, whose engine shares unsloth's weights",
}  # fmt: skip


def test_every_default_that_unsloth_changes_is_named_or_known_to_be_harmless(run_lane):
    """Its own optim, loss_type, beta and weight decay would silently train something else."""
    found = run_lane("defaults")
    assert {"optim", "beta", "loss_type", "weight_decay"} <= set(found["differ"])
    assert set(found["differ"]) - set(found["named"]) == set(LEFT_TO_UNSLOTH)


def test_the_optimiser_is_the_one_that_the_memory_bill_counts(trained):
    """A checkpoint has the adapter in fp32 and a byte per moment and number; unsloth keeps no copy of the reference."""
    from problama_utils.model.memory import ADAM_BYTES, SMOLLM2_135M

    adapter = SMOLLM2_135M.lora_parameters(32)
    sizes = trained["checkpoint"]
    assert trained["config"]["optim"].lower().endswith("adamw_8bit")
    assert sizes["adapter_model.safetensors"] == pytest.approx(4 * adapter, rel=0.02)
    assert not any(name.startswith("ref/") for name in sizes)
    assert sizes["optimizer.pt"] == pytest.approx(ADAM_BYTES["adamw_8bit"] * adapter, rel=0.1)
