"""Train a policy with GRPO: problems → prompts → TRL's `GRPOTrainer` → a run folder.

A run that was killed, interrupted or cut off resumes from its last whole checkpoint when the same call is made
again; on a CPU its log and adapter end up bit for bit as if nothing had happened. Everything that can be refused is
refused before the run folder is touched, and a finished run in it stays until the new one is finished.

What differs from DeepSeekMath's algorithm (arXiv:2402.03300) in the settings used here:

1. One optimiser step per batch of rollouts, so the probability ratio is 1 when its gradient is taken.
2. The reference policy is the base model for the whole run (the adapter switched off); the paper refreshes it.
3. Rewards come from three short functions instead of a trained reward model.
4. Advantages divide by the unbiased standard deviation (TRL, torch), which the paper leaves open.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError, tell
from problama_utils.config import GRPOSettings, Profile, runs_dir
from problama_utils.model.loading import attach_lora, compute_dtype, load_policy, model_source
from problama_utils.monitoring import curves as monitoring
from problama_utils.monitoring import run_folder
from problama_utils.rewards.slides import rewards_of
from problama_utils.setup.gpu import samples_with_vllm
from problama_utils.setup.machine import peak_memory_gb
from problama_utils.tasks.base import Task
from problama_utils.tasks.datasets import fingerprint
from problama_utils.tasks.registry import TASKS, get_task
from problama_utils.training import checkpoints
from problama_utils.training.checks import (
    check_budget,
    check_call,
    check_lengths,
    check_settings,
    leave_out_long,
    prompt_lengths,
)
from problama_utils.training.problems import heldout_problems, task_settings, training_order, training_problems

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig, GRPOTrainer

RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")


class TrainingInterrupted(CourseError):
    """The reader stopped a training; it is saved and goes on with the same call."""


@dataclass(frozen=True)
class Plan:
    """All that decides what one run does; the policy and the clock come with the call."""

    task: Task
    profile: Profile
    settings: GRPOSettings  # of the task in this profile
    seed: int
    trainer: str  # "stock" or "shared-prefix"
    folder: Path
    data_fingerprint: str  # of the problems chosen

    @property
    def stored(self) -> dict[str, Any]:
        """What `plan.json` and `run.json` hold of it: a run goes on only where this is the same."""
        stored = {"task": self.task.name, "profile": {**asdict(self.profile), self.task.name: asdict(self.settings)},
                  "seed": self.seed, "model": Path(model_source(self.profile)).name, "trainer": self.trainer,
                  "data_fingerprint": self.data_fingerprint}
        if self.task != TASKS.get(self.task.name):  # what the course's own tasks are, their names say
            stored |= {"rewards": [reward.__name__ for reward in rewards_of(self.task)], "chance": self.task.chance,
                       "maxima": self.task.maxima}
        return stored


def grpo_config(settings: GRPOSettings, profile: Profile, *, seed: int, out: Path) -> GRPOConfig:
    """Translate our settings into TRL's `GRPOConfig`, naming every value whose default differs or may drift."""
    import torch
    from trl import GRPOConfig

    rows = settings.per_device_batch_size or settings.completions_per_step
    return GRPOConfig(
        output_dir=str(out / run_folder.CHECKPOINTS),
        max_steps=settings.max_steps,
        per_device_train_batch_size=rows,  # rows of one backward pass; all of a step together are P·G, groups whole
        gradient_accumulation_steps=settings.completions_per_step // rows,
        num_generations=settings.num_generations,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        beta=settings.beta,
        epsilon=settings.epsilon,
        num_iterations=1,
        loss_type="grpo",  # mean over tokens, then over completions, as in the paper
        use_bias_correction_kl=False,  # the plain k3 estimator of the paper
        scale_rewards="group",  # divide by the group's standard deviation, as on the slide
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=compute_dtype(profile) is torch.bfloat16,
        fp16=compute_dtype(profile) is torch.float16,
        use_cpu=not (profile.uses_gpu and torch.cuda.is_available()),
        optim=profile.optim,
        gradient_checkpointing=bool(profile.lora.use_gradient_checkpointing),
        use_vllm=samples_with_vllm(profile),
        logging_steps=1,
        logging_nan_inf_filter=False,  # on, a loss that is NaN would be logged as a plausible number
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=checkpoints.KEPT,
        shuffle_dataset=False,  # `training_order` has done it
        report_to="none",
        disable_tqdm=True,  # our own bar goes to stderr, so saved notebooks stay free of it
        seed=seed,
        data_seed=seed,
    )


def run_grpo(
    task: str | Task,
    profile: Profile,
    *,
    seed: int = 3407,
    out: str | Path | None = None,
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    trainer: str = "",
    resume: bool = True,
    strict: bool = True,
) -> Path:
    """Train one task and return the run folder, whose files `monitoring.run_folder` describes.

    Args:
        task: "riddles", "piqa", or a `Task` of your own.
        profile: which model, how long, how large; see `config`.
        seed: of the problems chosen, the adapter, the sampling and the data order.
        out: the run folder; None means `runs/<task>`. It may lie on a mounted drive.
        policy: `(model with its adapter, tokenizer)` that is already in memory, trained in place; None loads one.
        trainer: "stock" is TRL's own, "shared-prefix" ours for CPUs (same loss, faster); "" picks by profile.
        resume: go on with an unfinished run of the same settings found in the folder; False starts anew. A finished
            run is kept in the folder until the new one is finished; an unfinished one of other settings is renamed.
        strict: False trains what `training.checks` would refuse, to watch it fail. A training whose numbers stop being
            finite then ends at that step, unfinished and without an adapter, instead of raising.

    Raises:
        CourseError: unknown task, settings that cannot work, no model, no room for the adapter, another training in
            the same folder (all of these leave the disk as it was); a loss, gradient, reward or weight that is no
            finite number.
        TrainingInterrupted: Ctrl-C; the run is saved.
    """
    seed, name = check_call(profile, seed=seed, policy=policy, trainer=trainer, resume=resume, strict=strict)
    task = get_task(task)
    settings = task_settings(task, profile)
    folder, real = run_folder.place(runs_dir() / task.name if out is None else out)
    problems = training_problems(task, settings, seed=seed)
    if strict:
        check_settings(task.name, settings, profile, problems["prompt"], tags=not task.rewards)
    plan = Plan(task, profile, settings, seed, name, real, fingerprint(problems))

    model, tokenizer = policy or _fresh_policy(profile, seed)
    problems = leave_out_long(problems, tokenizer, settings, profile.max_seq_length, "training")
    lengths = prompt_lengths(problems, tokenizer)
    longest = check_lengths(lengths, settings, profile.max_seq_length)
    goes_on = resume and _unfinished(real, plan.stored)[1] and checkpoints.newest_whole(
        real / run_folder.CHECKPOINTS, remove=False)
    if strict and not task.rewards and not goes_on:
        check_budget(model, tokenizer, problems, settings)
    run_folder.check_room(real, _bytes_on_disk(model))
    ordered = problems.select(training_order(lengths, settings, seed=seed))
    with run_folder.locked(real):
        checkpoint, minutes = _prepare(real, plan.stored, resume)
        started = time.perf_counter() - 60 * minutes
        try:
            with checkpoints.stop_on_interrupt() as stop:
                grpo = _make_trainer(plan, model, tokenizer, ordered, stop, started)
                grpo.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if grpo.state.global_step < settings.max_steps:
                raise TrainingInterrupted(f"Stopped after step {grpo.state.global_step} of {settings.max_steps}; the "
                                          f"run is saved in {real.name!r}. Make the same call again to go on from "
                                          "there.")
            minutes = (time.perf_counter() - started) / 60
            _save(grpo, real, {**plan.stored, **_run_record(profile, problems, longest, minutes)})
        except checkpoints.NotFinite as broken:
            sentence = _why_it_broke(broken, real, settings)
            if strict:
                raise CourseError(sentence) from None
            tell(sentence)
        except CourseError as error:
            raise type(error)(f"{error} {run_folder.kept(real)}".strip()) from error.__cause__
        except BaseException:
            if run_folder.kept(real):
                tell(run_folder.kept(real))
            raise
    return folder


def _unfinished(folder: Path, plan: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """Return what `run_folder.read_plan` says of an unfinished run in the folder, and whether this is the same run."""
    before = None if run_folder.is_finished(folder) else run_folder.read_plan(folder)
    settings = {name: value for name, value in (before or {}).items() if name not in ("minutes", "owner")}
    return before, settings == json.loads(json.dumps(plan))


def _prepare(folder: Path, plan: dict[str, Any], resume: bool) -> tuple[Path | None, float]:
    """Make the folder ready; return the checkpoint to go on from (None: the start) and the minutes already spent."""
    finished = run_folder.is_finished(folder)
    before, same = _unfinished(folder, plan)
    if before == {} or (before and resume and not same):
        aside = run_folder.set_aside(folder)
        what = "with other settings" if before else f"whose {run_folder.PLAN_FILE} cannot be read"
        tell(f"{folder.name} held an unfinished run {what}; it is now in {aside.name}.")
        before = None
    checkpoint = checkpoints.newest_whole(folder / run_folder.CHECKPOINTS) if before and resume else None
    owned = {**plan, "owner": run_folder.owner()}
    if checkpoint is None:
        run_folder.start(folder, owned)
        if finished:
            tell(f"{run_folder.kept(folder)[:-1]} until the new one is finished.")
        return None, 0.0
    step, minutes = run_folder.checkpoint_step(checkpoint), before.get("minutes")
    minutes = float(minutes) if isinstance(minutes, int | float) and 0 <= minutes < float("inf") else 0.0
    tell(f"going on with the unfinished run in {folder.name} after step {step}.")
    run_folder.go_on(folder, step, {**owned, "minutes": minutes})
    return checkpoint, minutes


def _why_it_broke(broken: checkpoints.NotFinite, folder: Path, settings: GRPOSettings) -> str:
    """Return what the reader is told of a training whose numbers stopped being finite."""
    last = checkpoints.newest_whole(folder / run_folder.CHECKPOINTS, remove=False)
    saved = f"The last good checkpoint is {str(last)!r}" if last else "No checkpoint was saved yet"
    cure = ("correct the reward function (None stands for a completion that cannot be judged)"
            if "reward" in str(broken) else
            f"train anew with a lower rate, learning_rate = {max(min(settings.learning_rate / 10, 3e-4), 1e-12):.3g}")
    return (f"The training stopped, because {broken}: no later step can be right. {saved}, and the log in "
            f"{folder.name!r} shows the steps until then: {cure}. {run_folder.kept(folder)}").strip()


def _fresh_policy(profile: Profile, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load_policy(profile, seed=seed)
    return attach_lora(model, profile, seed=seed), tokenizer


def _make_trainer(
    plan: Plan, model: Any, tokenizer: Any, ordered: Dataset, stop: threading.Event, started: float
) -> GRPOTrainer:
    from transformers.trainer_callback import PrinterCallback

    # After the model: unsloth patches TRL before it is imported.
    from problama_utils.training import callbacks
    from problama_utils.training.trainer import trainer_class

    task, settings, profile, folder = plan.task, plan.settings, plan.profile, plan.folder
    writer = callbacks.RunWriter(folder, settings.max_steps, f"GRPO {task.name}", stop, settings.num_generations,
                                 started)
    rewards = [writer.watch(function) for function in rewards_of(task)]
    heldout = leave_out_long(heldout_problems(task, settings), tokenizer, settings, profile.max_seq_length, "held-out")

    def measure(policy: Any) -> dict[str, int]:
        return callbacks.heldout_counts(policy, tokenizer, task, heldout, settings.max_completion_length)

    watchers = [callbacks.LiveCurve()] if callbacks.someone_watches() else []
    grpo = checkpoints.with_safe_checkpoints(trainer_class(plan.trainer, on_gpu=profile.uses_gpu))(
        model=model,
        reward_funcs=rewards,
        args=grpo_config(settings, profile, seed=plan.seed, out=folder),
        train_dataset=ordered,
        processing_class=tokenizer,
        callbacks=[writer, callbacks.HeldOut(folder, measure, settings.heldout_every), *watchers],
    )
    grpo.remove_callback(PrinterCallback)  # it prints every log as a dictionary; the log is on disk
    return grpo


def _bytes_on_disk(model: Any) -> float:
    """Return what an adapter and one checkpoint take: in fp32 the weights thrice, and AdamW's two moments."""
    return max(run_folder.LEAST_ROOM, 5 * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad))


def _save(grpo: GRPOTrainer, folder: Path, record: dict[str, Any]) -> None:
    """Save the policy's adapter, and not TRL's copy of the reference, in one step; then the run is a finished one."""
    from problama_utils.engine.layers import first_broken_weight

    policy = grpo.accelerator.unwrap_model(grpo.model)
    if name := first_broken_weight(policy, trained=True):
        raise checkpoints.NotFinite(f"the weight {name} is not finite at step {grpo.state.global_step}")
    part, adapter = folder / "adapter.part", folder / run_folder.ADAPTER_FOLDER
    try:
        shutil.rmtree(part, ignore_errors=True)
        policy.save_pretrained(str(part), selected_adapters=[policy.active_adapter], safe_serialization=True)
        shutil.rmtree(adapter, ignore_errors=True)
        os.replace(part, adapter)
        run_folder.finish(folder, record)
    except Exception as error:  # safetensors raises its own kind for a full disk
        raise CourseError(f"The training is finished, but its adapter cannot be written to {folder.name!r} ({error}): "
                          "free some disk space and make the same call again, it goes on from the last checkpoint."
                          ) from error


def _run_record(profile: Profile, problems: Dataset, longest: int, minutes: float) -> dict[str, Any]:
    import torch

    cores, dtype = torch.get_num_threads(), str(compute_dtype(profile)).removeprefix("torch.")
    return {
        "date": date.today().isoformat(),
        "minutes": round(minutes, 2),
        # the high-water mark of the whole process, so of this training and all before it
        "peak_memory_gb": round(peak_memory_gb(), 2),
        "problems": len(problems),
        "source": problems.info.description,
        "longest_prompt_tokens": longest,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}},
        "machine": f"{platform.system()} {platform.machine()}, {cores} cores, {dtype}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: `python -m problama_utils.training riddles --profile cpu --seed 3407`."""
    import argparse

    from problama_utils.config import detect_profile, get_profile

    parser = argparse.ArgumentParser(description="Train one task with GRPO and write a run folder.")
    parser.add_argument("task", help="riddles, piqa, or a task of your own: my_task.py:NAME")
    parser.add_argument("--profile", help="cpu, colab-t4 or slides (default: by hardware)")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of the profile's")
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--out", help="run folder (default: runs/<task>); an unfinished run in it is resumed")
    parser.add_argument("--anew", action="store_true", help="start anew, ignoring what the folder holds")
    options = parser.parse_args(arguments)
    profile = get_profile(options.profile) if options.profile else detect_profile()
    task = get_task(options.task)
    if options.steps is not None:
        settings = replace(task_settings(task, profile), max_steps=options.steps)
        if task.settings:
            task = replace(task, settings=settings)
        else:
            profile = replace(profile, **{task.name: settings})
    folder = run_grpo(task, profile, seed=options.seed, out=options.out, resume=not options.anew)
    print(f"{'problems from':>15}: {monitoring.read_run(folder)['source']}")
    log = monitoring.read_log(folder)
    for metric, title in monitoring.reward_curves(log).items():
        first, last = monitoring.first_and_last(log, metric)
        print(f"{title:>15}: {first:.2f} in the first 5 steps, {last:.2f} in the last 5")
