"""A run folder never loses a run: refused calls leave it alone, one training at a time, what is not ours stays."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import pytest

from problama_utils import CourseError
from problama_utils.config import GRPOSettings, get_profile
from problama_utils.model.loading import attach_lora, load_policy
from problama_utils.monitoring import run_folder
from problama_utils.rewards.slides import SLIDE_REWARDS
from problama_utils.training import callbacks as progress
from problama_utils.training import checkpoints
from problama_utils.training import run as training
from problama_utils.training.run import TrainingInterrupted, run_grpo

SETTINGS = GRPOSettings(max_steps=3, dataset_size=4, prompts_per_step=2, num_generations=2, max_completion_length=8,
                        learning_rate=1e-2, warmup_steps=0, few_shot=False, save_every=1, heldout_every=2,
                        heldout_size=2)
PLAN = {"task": "riddles", "profile": {"name": "cpu"}, "seed": 3}
FILES = [*run_folder.PRODUCTS[:-1], "adapter/adapter_model.safetensors"]


@pytest.fixture(scope="module")
def profile(tiny_model_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
        yield dataclasses.replace(get_profile("cpu"), riddles=SETTINGS, max_seq_length=2048)


def changed(profile, **values):
    return dataclasses.replace(profile, riddles=dataclasses.replace(profile.riddles, **values))


def train(profile, out, *, strict=False, **options):
    return run_grpo("riddles", profile, seed=3, out=out, strict=strict, **options)


def finished_run(folder, mark="old"):
    """A finished run as bytes that can be told apart, without a training."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{mark} {name}")
    return folder


def tree(folder):
    """Everything below a folder: name, content and time of change."""
    return {path: (path.is_dir() or path.read_bytes(), path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def is_whole(folder, mark="old"):
    return all((folder / name).is_file() and (folder / name).read_text() == f"{mark} {name}" for name in FILES)


def broken_policy(profile, **harm):
    model, tokenizer = load_policy(profile, seed=3)
    model = attach_lora(model, profile, seed=3)
    next(weight for weight in model.parameters() if weight.requires_grad).data.fill_(float("nan"))
    return model, tokenizer


REFUSED = {
    "budget": (lambda p: (changed(p, max_completion_length=7), {}), "answers of the untrained policy"),
    "shortest answer": (lambda p: (changed(p, max_completion_length=6), {}), "at least 7 tokens"),
    "window by words": (lambda p: (dataclasses.replace(p, max_seq_length=32), {}), "words"),
    "window by tokens": (lambda p: (dataclasses.replace(p, max_seq_length=120), {"strict": False}), "longest prompt"),
    "too few problems": (lambda p: (changed(p, prompts_per_step=9), {}), "lower prompts_per_step to 4"),
    "trainer": (lambda p: (p, {"trainer": "fast"}), "shared-prefix, stock"),
    "trainer in capitals": (lambda p: (p, {"trainer": "Stock"}), "shared-prefix, stock"),
    "no trainer at all": (lambda p: (p, {"trainer": None}), "shared-prefix, stock"),
    "task in capitals": (lambda p: (p, {"task": "Riddles"}), "riddles, piqa"),
    "task is no text": (lambda p: (p, {"task": ["riddles"]}), "riddles, piqa"),
    "seed as text": (lambda p: (p, {"seed": "3407"}), "seed = '3407'"),
    "negative seed": (lambda p: (p, {"seed": -1}), "seed = -1"),
    "seed too large": (lambda p: (p, {"seed": 2**32}), "seed = 4294967296"),
    "half a seed": (lambda p: (p, {"seed": 1.5}), "seed = 1.5"),
    "seed is None": (lambda p: (p, {"seed": None}), "seed = None"),
    "seed is True": (lambda p: (p, {"seed": True}), "seed = True"),
    "profile by name": (lambda p: ("cpu", {}), r"get_profile\('cpu'\)"),
    "strict as text": (lambda p: (p, {"strict": "no"}), "True or False"),
    "resume as number": (lambda p: (p, {"resume": 0}), "True or False"),
    "a model alone": (lambda p: (p, {"policy": load_policy(p)[0]}), "pair"),
    "a policy without adapter": (lambda p: (p, {"policy": load_policy(p)}), "attach_lora"),
    "a policy of NaN": (lambda p: (p, {"policy": broken_policy(p)}), "no finite numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("before", ["finished", "unfinished", "nothing"])
def test_a_refused_call_changes_nothing_on_disk(case, before, profile, tmp_path):
    if before != "nothing":
        finished_run(tmp_path / "runs" / "run")
    if before == "unfinished":
        (tmp_path / "runs" / "run" / "run.json").rename(tmp_path / "runs" / "run" / "plan.json")
    seen = tree(tmp_path)
    make, said = REFUSED[case]
    asked, options = make(profile)
    call = {"task": "riddles", "seed": 3, "out": tmp_path / "runs" / "run", "strict": True, **options}
    with pytest.raises(CourseError, match=said):
        run_grpo(profile=asked, **call)
    assert tree(tmp_path) == seen


@pytest.mark.parametrize(
    "out", ["", "  ", 3, b"runs", ["runs"], "/", "\0", "x" * 300, "file", "file/run", "file/a/b", "~nobody-here/x",
            "loop"]
)
def test_what_cannot_be_a_run_folder_is_one_sentence_before_the_model_is_loaded(out, profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(training, "_fresh_policy", None)
    with pytest.raises(CourseError, match="folder"):
        train(profile, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize("name", [*run_folder.PRODUCTS, "adapter", "checkpoints", run_folder.PREVIOUS])
def test_a_file_where_a_folder_belongs_or_the_reverse_is_refused_and_stays(name, profile, tmp_path):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    path.mkdir() if name in run_folder.PRODUCTS else path.write_text("mine")
    with pytest.raises(CourseError, match="move it away"):
        train(profile, tmp_path / "run")
    assert path.exists() and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("place", ["run", "parent", "grandparent", "checkpoints"])
def test_a_read_only_place_is_one_sentence_before_the_model_is_loaded(place, profile, tmp_path, monkeypatch):
    folder = tmp_path / "a" / "run"
    if place != "grandparent":
        (folder / "checkpoints").mkdir(parents=True)
    locked = {"run": folder, "parent": folder.parent, "grandparent": tmp_path, "checkpoints": folder / "checkpoints"}
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(locked[place]) and access(path, mode))
    monkeypatch.setattr(training, "_fresh_policy", None)
    with pytest.raises(CourseError, match="Nothing can be written"):
        train(profile, folder)


def test_a_read_only_mount_is_one_sentence_for_root_too(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_fresh_policy", None)
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True) if shutil.which("mount") else None
    if done is None or done.returncode:  # only root may mount; then the modes of files count
        tmp_path.chmod(0o500)
    try:
        with pytest.raises(CourseError, match="Nothing can be written"):
            train(profile, tmp_path / "run")
    finally:
        if done is not None and not done.returncode:
            subprocess.run(["umount", str(tmp_path)], check=True)
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("free", [0, 1, 1e6, 49e6])
def test_a_full_disk_is_one_sentence_before_the_model_is_loaded(free, profile, tmp_path, monkeypatch):
    finished_run(tmp_path / "run")
    seen = tree(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(training, "_fresh_policy", None)
    with pytest.raises(CourseError, match="MB left"):
        train(profile, tmp_path / "run")
    assert tree(tmp_path) == seen


def test_a_disk_without_room_for_the_adapter_is_refused_before_the_folder_is_touched(profile, tmp_path, monkeypatch):
    finished_run(tmp_path / "run")
    seen = tree(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=60e6))
    monkeypatch.setattr(training, "_bytes_on_disk", lambda model: 70e6)
    with pytest.raises(CourseError, match="60 MB left.*about 70 MB"):
        train(profile, tmp_path / "run")
    assert tree(tmp_path) == seen


@pytest.mark.parametrize("what", ["mkdir", "replace", "link and copy", "write"])
def test_a_disk_that_fails_at_the_start_leaves_the_finished_run(what, profile, tmp_path, monkeypatch):
    finished_run(tmp_path / "run")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if what == "mkdir":
            patch.setattr(run_folder.Path, "mkdir", full)
        elif what == "replace":
            patch.setattr(run_folder.os, "replace", full)
        elif what == "write":
            patch.setattr(run_folder, "write_json", full)
        else:
            patch.setattr(run_folder, "_link", full)
        with pytest.raises(CourseError, match="cannot be written"):
            train(profile, tmp_path / "run")
    assert is_whole(tmp_path / "run") or is_whole(tmp_path / "run" / run_folder.PREVIOUS)


class Killed(BaseException):
    """What a process that is killed does at an operation on the disk: nothing more."""


@contextmanager
def killed_at(last, root):
    """Let the process be killed at its `last`-th operation on the disk below `root`; yields whether it came to that."""
    done = []

    def counted(function):
        def operation(path, *args, **kwargs):
            if str(path).startswith(str(root)) or "dir_fd" in kwargs:  # and not of a thread that does something else
                done.append(path)
                if len(done) == last:
                    raise Killed
            return function(path, *args, **kwargs)

        return operation

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        for name in ("link", "replace", "rename", "unlink", "mkdir", "rmdir", "open"):
            patch.setattr(os, name, counted(getattr(os, name)))
        yield done


@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_operation_leaves_one_finished_run(links, tmp_path, monkeypatch, capsys):
    """Killed at the n-th operation of the start, for every n; then again while the next call starts."""
    if not links:  # a mounted drive
        monkeypatch.setattr(run_folder, "_link", shutil.copy2)
    for number in range(1, 99):
        folder = finished_run(tmp_path / f"run-{number}")
        (folder / "notes.txt").write_text("mine")
        for _ in range(2):
            with killed_at(number, folder) as done:
                training._prepare(folder, PLAN, True)
            assert is_whole(folder) or is_whole(folder / run_folder.PREVIOUS), number
            assert not run_folder.is_finished(folder) or is_whole(folder), "run.json says finished"
        training._prepare(folder, PLAN, True)
        assert is_whole(folder / run_folder.PREVIOUS) and run_folder.read_plan(folder)["seed"] == 3
        assert (folder / "notes.txt").read_text() == "mine"
        if len(done) < number and number > 40:  # nothing is left to be killed
            break
    assert number < 98


def test_a_kill_at_any_operation_of_the_end_leaves_one_finished_run(tmp_path):
    for number in range(1, 99):
        folder = finished_run(tmp_path / f"run-{number}")
        training._prepare(folder, PLAN, True)
        finished_run(folder, "new")
        (folder / "run.json").unlink()
        with killed_at(number, folder) as done:
            run_folder.finish(folder, {})
        assert run_folder.is_finished(folder) or is_whole(folder / run_folder.PREVIOUS)
        assert all((folder / name).read_text() == f"new {name}" for name in FILES if name != "run.json")
        if len(done) < number:
            break
    assert 5 < number < 98


def fail_at(monkeypatch, step, error):
    on_log = progress.RunWriter.on_log

    def watched(self, args, state, control, logs=None, **kwargs):
        on_log(self, args, state, control, logs=logs, **kwargs)
        if state.global_step == step and logs and "reward" in logs:
            if error is None:
                self.stop.set()
            else:
                raise error

    monkeypatch.setattr(progress.RunWriter, "on_log", watched)


@pytest.mark.parametrize("error", [RuntimeError("power"), KeyboardInterrupt(), MemoryError(), CourseError("odd"), None])
@pytest.mark.parametrize("resume", [True, False])
def test_a_training_that_fails_over_a_finished_run_keeps_it_and_says_where(
    error, resume, profile, tmp_path, monkeypatch, capsys
):
    folder = finished_run(tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        fail_at(patch, 2 if error else 1, error)
        with pytest.raises(type(error) if error else TrainingInterrupted) as caught:
            train(profile, folder, resume=resume)
    said = str(caught.value) if isinstance(caught.value, CourseError) else capsys.readouterr().err
    assert f"is kept in {str(folder / run_folder.PREVIOUS)!r}" in said
    assert is_whole(folder / run_folder.PREVIOUS) and not run_folder.is_finished(folder)
    train(profile, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter", "completions.jsonl", "heldout.csv", "log.csv", "notes.txt", "run.json", "timing.csv"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "one run, no lock, no copy"


def test_a_finished_run_survives_an_unfinished_one_of_other_settings(profile, tmp_path, monkeypatch):
    folder = finished_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        fail_at(patch, 2, RuntimeError("power"))
        with pytest.raises(RuntimeError):
            train(profile, folder)
        with pytest.raises(RuntimeError):
            train(changed(profile, max_steps=2), folder)
    assert is_whole(folder / run_folder.PREVIOUS)
    assert run_folder.read_plan(tmp_path / "run-unfinished-1")["profile"]["riddles"]["max_steps"] == 3


# What people, file managers and sync programs leave beside checkpoints.
def strangers(folder):
    for name in ("checkpoint-best", "checkpoint-", "checkpoint-12.bak", "checkpoint-3-copy", "checkpoint--4", "old",
                 "checkpoint-03", "checkpoint-٣", "Checkpoint-9", "checkpoint-1 (1)", ".trash", "nested/checkpoint-7"):
        (folder / name).mkdir(parents=True)
        (folder / name / "note.txt").write_text(name)
    (folder / "checkpoint-2").write_text("a file")
    (folder / ".DS_Store").write_bytes(b"\0\1")
    (folder / "checkpoint-99").symlink_to(folder / "old", target_is_directory=True)
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.parametrize("interrupted", [False, True])
def test_strange_names_beside_the_checkpoints_are_ignored_and_stay(interrupted, profile, tmp_path, monkeypatch, capsys):
    settings = changed(profile, max_steps=6, save_every=1)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    names = strangers(folder / "checkpoints")
    (folder / "checkpoints" / "checkpoint-2").rename(folder / "checkpoints" / "checkpoint-77")  # 2 will be ours
    names = sorted(path.relative_to(folder / "checkpoints") for path in (folder / "checkpoints").rglob("*"))
    if interrupted:
        with monkeypatch.context() as patch:
            fail_at(patch, 5, RuntimeError("power"))
            with pytest.raises(RuntimeError):
                train(settings, folder)
        assert [path.name for path in checkpoints.own_checkpoints(folder / "checkpoints")] == [
            "checkpoint-4", "checkpoint-3"]
        capsys.readouterr()
    train(settings, folder)
    assert ("after step 4." in capsys.readouterr().err) == interrupted
    assert sorted(path.relative_to(folder / "checkpoints") for path in (folder / "checkpoints").rglob("*")) == names
    assert run_folder.is_finished(folder)


def test_only_whole_numbers_are_checkpoints(tmp_path):
    strangers(tmp_path)
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-9").mkdir()
    assert [path.name for path in checkpoints.own_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9"]


UNREADABLE = {
    "empty": b"", "truncated": b'{"task": "ridd', "a list": b"[1, 2]", "a number": b"7", "null": b"null",
    "a text": b'"plan"', "binary": bytes(range(256)), "nothing in it": b"{}", "zeros": b"\0" * 400,
    "other schema": b'{"name": "another program", "steps": 3}', "half of ours": b'{"task": "riddles"}',
    "too deep": b"[" * 100_000, "missing": None,
}  # fmt: skip


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_plan_is_set_aside_with_its_checkpoints_and_one_line(case, resume, tmp_path, capsys):
    folder, content = tmp_path / "run", UNREADABLE[case]
    for number in (1, 2):
        (folder / "checkpoints" / f"checkpoint-{number}").mkdir(parents=True)
        (folder / "checkpoints" / f"checkpoint-{number}" / "weights").write_text("dear")
    if content is not None:
        (folder / "plan.json").write_bytes(content)
    assert training._prepare(folder, PLAN, resume) == (None, 0.0)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "plan.json cannot be read; it is now in run-unfinished-1" in said
    aside = tmp_path / "run-unfinished-1"
    assert len(list(aside.rglob("weights"))) == 2
    assert content is None or (aside / "plan.json").read_bytes() == content
    assert run_folder.read_plan(folder)["seed"] == 3


@pytest.mark.parametrize("minutes", ["soon", None, [1], -3, float("nan"), float("inf"), True, {}])
def test_odd_minutes_in_a_plan_cost_nothing(minutes, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("w")
    checkpoints.write_manifest(checkpoint)
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "minutes": minutes}))
    found, spent = training._prepare(tmp_path, PLAN, True)
    assert found == checkpoint and 0 <= spent <= 1


@pytest.mark.parametrize("text", [b"\xff\xfe{}", b"not json\n", b"[1]\n", b'{"step": "x"}\n', b'{"no": 1}\n', b"\n\n",
                                  b"null\n", b"\0\0\n", b'{"step": null}\n', b'{"step": 1}\n{"ste'])
def test_damaged_rows_are_dropped_when_a_run_goes_on(text, tmp_path):
    good = b'{"step": 1, "completion": "\xc3\xa9"}\n'
    (tmp_path / "completions.jsonl").write_bytes(good + text)
    (tmp_path / "heldout.csv").write_bytes(b"step,right\n1,2\n9,3\n" + text)
    run_folder.go_on(tmp_path, 2, PLAN)
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["completion"] == "é" and all(line["step"] == 1 for line in lines)
    assert [row["step"] for row in run_folder.read_table(tmp_path / "heldout.csv")] == ["1"]


# --- one training at a time

HOLD = """
import sys, time
from pathlib import Path
from problama_utils.monitoring import run_folder
folder = Path(sys.argv[1])
with run_folder.locked(folder):
    if len(sys.argv) > 2:
        run_folder.start(folder, {"task": "riddles", "profile": {}, "seed": 3, "owner": run_folder.owner()})
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    running = []

    def start(*arguments):
        child = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        running.append(child)
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in running:
        child.kill()
        child.wait()


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_a_second_training_is_refused_with_who_holds_the_folder_and_since_when(
    known, resume, holder, profile, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    child = holder(folder, *(["plan"] if known else []))
    seen = tree(tmp_path)
    monkeypatch.setattr(training, "_fresh_policy", None)  # before the model is loaded
    who = f"process {child.pid} on .* since 20" if known else "another process"
    for out in (folder, tmp_path / "x" / ".." / "run"):
        with pytest.raises(CourseError, match=f"Another training.*{who}.*wait until it ends"):
            train(changed(profile, max_steps=2), out, resume=resume)
    assert tree(tmp_path) == seen


def test_a_link_to_the_folder_is_the_same_folder(holder, profile, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    holder(tmp_path / "run")
    with pytest.raises(CourseError, match="Another training"):
        train(profile, tmp_path / "link")


def test_a_lock_left_by_a_killed_run_is_no_obstacle(holder, profile, tmp_path):
    child = holder(tmp_path / "run", "plan")
    child.kill()
    child.wait()
    assert (tmp_path / ".run.lock").exists()
    train(profile, tmp_path / "run")
    assert not (tmp_path / ".run.lock").exists()


# ids: a pid in a name would give each worker of pytest-xdist other tests
@pytest.mark.parametrize("content", [b"", b"12345\n", b'{"pid": 1, "host": "elsewhere"}', b"1\nelsewhere\n", b"\0" * 99,
                                     str(os.getpid()).encode()],
                         ids=["empty", "pid", "json", "pid and host", "zeros", "our own pid"])
def test_a_lock_file_of_another_host_or_of_a_pid_that_lives_is_no_obstacle(content, tmp_path):
    (tmp_path / ".run.lock").write_bytes(content)
    run_folder.place(tmp_path / "run")
    assert (tmp_path / ".run.lock").read_bytes() == content, "looking changes nothing"
    with run_folder.locked(tmp_path / "run"):
        pass
    assert not (tmp_path / ".run.lock").exists()


def test_threads_of_one_process_train_one_after_another_or_not_at_all(tmp_path):
    begun, done, answers = threading.Event(), threading.Event(), []

    def hold():
        with run_folder.locked(tmp_path / "run"):
            begun.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(20)
    try:
        for _ in range(2):
            with pytest.raises(CourseError, match="Another training"), run_folder.locked(tmp_path / "run"):
                answers.append("both")
    finally:
        done.set()
        thread.join()
    with run_folder.locked(tmp_path / "run"):
        assert answers == []


def test_an_inner_training_into_the_same_folder_leaves_the_outer_one_unharmed(profile, tmp_path, monkeypatch):
    """A 4-step run, and after its first checkpoint a 3-step run into its folder: refused, nothing mixed."""
    expected = train(changed(profile, max_steps=4), tmp_path / "alone")
    on_save, refused = progress.RunWriter.on_save, []

    def second(self, args, state, control, **kwargs):
        on_save(self, args, state, control, **kwargs)
        if state.global_step == 1:
            for resume in (True, False):
                with pytest.raises(CourseError, match=f"process {os.getpid()} ") as caught:
                    train(profile, tmp_path / "run", resume=resume)
                refused.append(caught.value)

    monkeypatch.setattr(progress.RunWriter, "on_save", second)
    folder = train(changed(profile, max_steps=4), tmp_path / "run")
    assert len(refused) == 2
    for name in ("log.csv", "heldout.csv", "completions.jsonl"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


# --- numbers that are no numbers


def reward_of(value, step=2):
    """A reward function that pays `value` to one completion of one step."""
    calls = []

    def odd_reward(completions, **columns):
        calls.append(1)
        return [value if len(calls) == step and i == 1 else 0.5 * (i % 2) for i in range(len(completions))]

    return odd_reward


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), np.float64("inf")])
def test_a_reward_that_is_no_number_stops_the_training(value, place, profile, tmp_path, monkeypatch):
    rewards = list(SLIDE_REWARDS)
    rewards[place] = reward_of(value)
    monkeypatch.setattr(training, "rewards_of", lambda task: tuple(rewards))
    with pytest.raises(CourseError) as caught:
        train(profile, tmp_path / "run", strict=True, policy=ready(profile, monkeypatch))
    said = str(caught.value)
    assert f"the reward of odd_reward for completion 2 is {value} at step 2" in said and "None stands for" in said
    assert_stopped_at_2(tmp_path / "run", said)


def ready(profile, monkeypatch):
    """A fresh policy; the check of the budget, which a policy of random weights cannot pass, is left out."""
    monkeypatch.setattr(training, "check_budget", lambda *args: None)
    model, tokenizer = load_policy(profile, seed=3)
    return attach_lora(model, profile, seed=3), tokenizer


def assert_stopped_at_2(folder, said):
    assert [row["step"] for row in run_folder.read_table(folder / "log.csv")] == ["1", "2"], "the log keeps the row"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-1"]
    assert str(folder / "checkpoints" / "checkpoint-1") in said
    assert not (folder / "adapter").exists() and not run_folder.is_finished(folder)


@pytest.mark.parametrize("value", [None, 0, 1, -3.5, np.float32(1), True])
def test_rewards_that_are_numbers_or_none_are_legal(value, profile, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "rewards_of", lambda task: (reward_of(value), SLIDE_REWARDS[1]))
    assert run_folder.is_finished(train(profile, tmp_path / "run"))


def test_a_step_in_which_nothing_could_be_judged_is_legal(profile, tmp_path, monkeypatch):
    def unjudged_reward(completions, **_):
        return [None] * len(completions)

    monkeypatch.setattr(training, "rewards_of", lambda task: (unjudged_reward,))
    assert run_folder.is_finished(train(profile, tmp_path / "run"))


def harmed(monkeypatch, quantity, value):
    """Let a quantity of step 2 be `value`, in TRL's trainer itself."""
    from trl import GRPOTrainer

    computed = vars(GRPOTrainer)["_compute_loss"]

    def odd(self, model, inputs):
        loss = computed(self, model, inputs)
        if self.state.global_step != 1:
            return loss
        if quantity == "loss":
            return loss * value if value != value else loss + value
        weight = next(w for w in model.parameters() if w.requires_grad)
        harm = (weight * 0).sum()
        harm.register_hook(lambda gradient: gradient * value)
        return loss + harm

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", odd)


@pytest.mark.parametrize("trainer", ["shared-prefix", "stock"])
@pytest.mark.parametrize("quantity", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_or_gradient_that_is_no_number_stops_the_training(
    value, quantity, trainer, profile, tmp_path, monkeypatch
):
    finished_run(tmp_path / "run")
    harmed(monkeypatch, quantity, value)
    with pytest.raises(CourseError) as caught:
        train(profile, tmp_path / "run", strict=True, trainer=trainer, policy=ready(profile, monkeypatch))
    said = str(caught.value)
    assert f"the {quantity}" in said and "at step 2" in said and "learning_rate = 0.0003" in said
    assert_stopped_at_2(tmp_path / "run", said)
    assert is_whole(tmp_path / "run" / run_folder.PREVIOUS) and run_folder.PREVIOUS in said


def test_with_strict_off_it_ends_there_with_its_log_and_one_line(profile, tmp_path, monkeypatch, capsys):
    harmed(monkeypatch, "loss", float("nan"))
    folder = train(profile, tmp_path / "run")
    said = capsys.readouterr().err
    assert "the loss is nan at step 2" in said
    assert_stopped_at_2(folder, said)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [2, 3])
def test_weights_that_are_no_numbers_are_never_saved(step, value, profile, tmp_path, monkeypatch):
    """A step may end with a sound loss and gradient and still leave broken weights."""
    on_log = progress.HeldOut.on_log

    def spoil(self, args, state, control, model=None, **kwargs):
        if state.global_step == step:
            next(weight for weight in model.parameters() if weight.requires_grad).data[0, 0] = value
        else:
            on_log(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(progress.HeldOut, "on_log", spoil)
    with pytest.raises(CourseError, match=rf"the weight \S+lora_A\S+ is not finite at step {step}"):
        train(changed(profile, save_every=1 if step == 2 else 2), tmp_path / "run", strict=True,
              policy=ready(profile, monkeypatch))
    assert not (tmp_path / "run" / "adapter").exists()
    assert checkpoints.newest_whole(tmp_path / "run" / "checkpoints").name == f"checkpoint-{step - 1}"


def test_a_step_that_fp16_leaves_out_is_sound():
    logs = {"reward": 1.0, "loss": 0.1, "grad_norm": float("inf")}
    assert progress._not_finite(logs, SimpleNamespace(step_was_skipped=False)) == "the gradient norm is inf"
    assert progress._not_finite(logs, SimpleNamespace(step_was_skipped=True)) == ""
    assert progress._not_finite({**logs, "grad_norm": 1.0, "reward": float("nan")}, None) == ""
    assert progress._not_finite({**logs, "grad_norm": 1.0, "reward": float("inf")}, None) == "the total reward is inf"


@pytest.mark.parametrize("step", ["place", "locked"])
def test_a_drive_that_knows_no_locks_is_refused_in_one_sentence(tmp_path, monkeypatch, step):
    import filelock

    def unknown(self, **how):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", unknown)
    run_folder.lock_file(tmp_path / "run").touch()
    with pytest.raises(CourseError, match="does not appear to support flock"):
        if step == "place":
            run_folder.place(tmp_path / "run")
        with run_folder.locked(tmp_path / "run"):
            pass
