"""Nothing is lost: interrupted, damaged and full-disk runs, on a Llama made on the spot."""

import dataclasses
import errno
import json
import os
import signal

import pytest

from problama_utils.config import GRPOSettings, get_profile
from problama_utils.model.manifests import MANIFEST
from problama_utils.monitoring import run_folder
from problama_utils.training import callbacks as progress
from problama_utils.training import checkpoints
from problama_utils.training.run import TrainingInterrupted, run_grpo

STEPS = 6
SETTINGS = GRPOSettings(max_steps=STEPS, dataset_size=4, prompts_per_step=2, num_generations=4, max_completion_length=5,
                        learning_rate=1e-2, warmup_steps=2, few_shot=False, save_every=2, heldout_every=2,
                        heldout_size=3)
SAME = ("log.csv", "heldout.csv", "completions.jsonl", "adapter/adapter_model.safetensors")


@pytest.fixture(scope="module")
def profile(tiny_model_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
        yield dataclasses.replace(get_profile("cpu"), riddles=SETTINGS, max_seq_length=2048)


def train(profile, out, **options):
    return run_grpo("riddles", profile, seed=3, out=out, strict=False, **options)


@pytest.fixture(scope="module")
def whole(profile, tmp_path_factory):
    """An uninterrupted run, as bytes."""
    return contents(train(profile, tmp_path_factory.mktemp("whole")))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in SAME}


def stop_at(monkeypatch, step, act):
    """Let `act` happen when the log of `step` is written."""
    on_log = progress.RunWriter.on_log

    def watched(self, args, state, control, logs=None, **kwargs):
        on_log(self, args, state, control, logs=logs, **kwargs)
        if state.global_step == step and logs and "reward" in logs:
            act()

    monkeypatch.setattr(progress.RunWriter, "on_log", watched)


def fail():
    raise RuntimeError("the power went out")


def cut_off(profile, out, monkeypatch, step):
    with monkeypatch.context() as patch:
        stop_at(patch, step, fail)
        with pytest.raises(RuntimeError, match="power"):
            train(profile, out)


@pytest.mark.parametrize("step", [1, 2, 3, 4, STEPS])
def test_a_run_that_was_cut_off_ends_bit_for_bit_like_a_whole_one(step, profile, whole, tmp_path, monkeypatch, capsys):
    cut_off(profile, tmp_path / "run", monkeypatch, step)
    assert contents(train(profile, tmp_path / "run")) == whole
    saved = (step - 1) // 2 * 2  # the checkpoint of a step is written after its log
    assert (f"after step {saved}." in capsys.readouterr().err) == (saved > 0)


def test_the_stock_trainer_resumes_bit_for_bit_too(profile, tmp_path, monkeypatch):
    expected = contents(train(profile, tmp_path / "whole", trainer="stock"))
    with monkeypatch.context() as patch:
        stop_at(patch, 3, fail)
        with pytest.raises(RuntimeError):
            train(profile, tmp_path / "run", trainer="stock")
    assert contents(train(profile, tmp_path / "run", trainer="stock")) == expected


def test_ctrl_c_saves_says_how_to_go_on_and_the_run_ends_the_same(profile, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))  # arrives during step 3
        with pytest.raises(TrainingInterrupted, match="Stopped after step 3 of 6.*same call again"):
            train(profile, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3").exists()
    assert contents(train(profile, tmp_path / "run")) == whole


def test_a_second_ctrl_c_interrupts_at_once_and_the_first_handler_returns():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), checkpoints.stop_on_interrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("harm", ["shorten", "flip", "lose the manifest"])
def test_a_damaged_last_checkpoint_means_the_one_before(harm, profile, whole, tmp_path, monkeypatch, capsys):
    cut_off(profile, tmp_path / "run", monkeypatch, 5)
    last = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    weights = last / "optimizer.pt"
    content = bytearray(weights.read_bytes())
    if harm == "shorten":
        weights.write_bytes(content[:-100])
    elif harm == "flip":
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    else:
        (last / MANIFEST).unlink()
    capsys.readouterr()
    assert contents(train(profile, tmp_path / "run")) == whole
    said = capsys.readouterr().err
    assert said.count("checkpoint-4 is damaged") == 1 and "after step 2." in said


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(profile, whole, tmp_path, monkeypatch, capsys):
    seal = checkpoints.write_manifest

    def full(checkpoint):
        if checkpoint.name == "checkpoint-4":
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_manifest", full)
        cut_off(profile, tmp_path / "run", monkeypatch, 5)
    assert "checkpoint-4 could not be saved" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert contents(train(profile, tmp_path / "run")) == whole


def test_a_disk_too_full_for_the_log_costs_no_rows(profile, whole, tmp_path, monkeypatch, capsys):
    write, calls = run_folder.write_metrics, []

    def sometimes(folder, history):
        calls.append(folder)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, history)

    monkeypatch.setattr(run_folder, "write_metrics", sometimes)
    assert contents(train(profile, tmp_path / "run")) == whole
    assert capsys.readouterr().err.count("log cannot be written") == 1


def test_an_unfinished_run_of_other_settings_is_kept_aside_not_overwritten(profile, tmp_path, monkeypatch, capsys):
    cut_off(profile, tmp_path / "run", monkeypatch, 3)
    other = dataclasses.replace(profile, riddles=dataclasses.replace(SETTINGS, learning_rate=1e-3))
    train(other, tmp_path / "run")
    assert (tmp_path / "run-unfinished-1" / "checkpoints" / "checkpoint-2").exists()
    assert "now in run-unfinished-1" in capsys.readouterr().err


def test_resume_false_starts_anew(profile, whole, tmp_path, monkeypatch):
    cut_off(profile, tmp_path / "run", monkeypatch, 3)
    assert contents(train(profile, tmp_path / "run", resume=False)) == whole


def test_a_finished_run_leaves_no_checkpoints_and_is_replaced_by_the_next(profile, whole, tmp_path):
    folder = train(profile, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter", "completions.jsonl", "heldout.csv", "log.csv", "run.json", "timing.csv"]
    assert contents(train(profile, tmp_path)) == whole


def test_samples_and_held_out_counts_are_whole(profile, tmp_path):
    folder = train(profile, tmp_path)
    text = (folder / run_folder.COMPLETIONS_FILE).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [step for step in range(1, STEPS + 1) for _ in range(4)]
    rewards = [name for name in lines[0] if name.endswith("_reward")]
    assert len(rewards) == 3 and all(line["total"] == sum(line[name] for name in rewards) for line in lines)
    held = run_folder.read_table(folder / run_folder.HELDOUT_FILE)
    assert [row["step"] for row in held] == ["0", "2", "4", "6"]
    assert all(int(row["right"]) + int(row["wrong"]) + int(row["unjudged"]) == int(row["n"]) == 3 for row in held)
