"""Train a policy with GRPO: problems → prompts → TRL's `GRPOTrainer` → a run folder.

What differs from DeepSeekMath's algorithm (arXiv:2402.03300) in the settings used here:

1. One optimiser step per batch of rollouts, so the probability ratio is 1 when its gradient is taken.
2. The reference policy is the base model for the whole run (the adapter switched off); the paper refreshes it.
3. Rewards come from three short functions instead of a trained reward model.
4. Advantages divide by the unbiased standard deviation (TRL, torch), which the paper leaves open.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import monitoring, prompts
from problama_utils.config import GRPOSettings, Profile, runs_dir
from problama_utils.errors import CourseError
from problama_utils.models import attach_lora, compute_dtype, load_policy
from problama_utils.problems import fingerprint, load_physical, load_riddles
from problama_utils.rewards import SLIDE_REWARDS

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig

TASKS = ("riddles", "piqa")
RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")


def task_settings(task: str, profile: Profile) -> GRPOSettings:
    """Return the profile's settings of a task.

    Raises:
        CourseError: there is no such task.
    """
    if task not in TASKS:
        raise CourseError(f"There is no task {task!r}. Choose one of: {', '.join(TASKS)}.")
    return getattr(profile, task)


def training_problems(task: str, settings: GRPOSettings, *, seed: int) -> Dataset:
    """Return the problems to train on, in the columns that TRL and the rewards read.

    Args:
        task: "riddles" or "piqa".
        settings: how many problems, of which difficulty, with or without the two examples.
        seed: of the choice of `settings.dataset_size` problems.

    Returns:
        A dataset with `prompt` (chat messages), `answer`, and `aliases` (riddles) or `labels` (piqa).
    """
    from datasets import Dataset

    load = load_riddles if task == "riddles" else load_physical
    rows = load("train", difficulty=settings.difficulty or None).shuffle(seed=seed)
    if settings.dataset_size:
        rows = rows.select(range(min(settings.dataset_size, len(rows))))
    return Dataset.from_list([_asked(task, row, settings.few_shot) for row in rows])


def _asked(task: str, row: Mapping[str, Any], few_shot: bool) -> dict[str, Any]:
    """Return one problem as TRL and the rewards read it."""
    if task == "riddles":
        return {"id": row["id"], "prompt": prompts.riddle_messages(row, few_shot=few_shot),
                "answer": row["answer"], "aliases": row["aliases"]}
    return {"id": row["id"], "prompt": prompts.piqa_messages(row, few_shot=few_shot),
            "answer": prompts.piqa_letter(row), "labels": ["A", "B"]}


def check_lengths(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, settings: GRPOSettings, limit: int) -> int:
    """Return the longest prompt in tokens, after making sure that prompt and completion fit the model's window.

    Raises:
        CourseError: prompt + completion exceed `limit` tokens.
    """
    encoded = tokenizer.apply_chat_template(list(dataset["prompt"]), add_generation_prompt=True, return_dict=True)
    longest = max(len(ids) for ids in encoded["input_ids"])
    if longest + settings.max_completion_length > limit:
        raise CourseError(
            f"The longest prompt has {longest} tokens and max_completion_length is {settings.max_completion_length}, "
            f"together more than max_seq_length = {limit}: lower the completion budget or raise max_seq_length."
        )
    return longest


def grpo_config(settings: GRPOSettings, profile: Profile, *, seed: int, out: Path) -> GRPOConfig:
    """Translate our settings into TRL's `GRPOConfig`, naming every value whose default differs or may drift."""
    import torch
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(out),
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.completions_per_step,  # P·G rows, all groups whole
        gradient_accumulation_steps=1,
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
        bf16=compute_dtype() is torch.bfloat16,
        fp16=compute_dtype() is torch.float16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=bool(profile.lora.use_gradient_checkpointing),
        use_vllm=profile.fast_inference,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,  # our own bar goes to stderr, so saved notebooks stay free of it
        seed=seed,
        data_seed=seed,
    )


def run_grpo(
    task: str,
    profile: Profile,
    *,
    seed: int = 3407,
    out: str | Path | None = None,
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    trainer: str = "",
) -> Path:
    """Train one task and return the run folder with `log.csv`, `run.json` and `adapter/`.

    Args:
        task: "riddles" or "piqa".
        profile: which model, how long, how large; see `config`.
        seed: of the problems chosen, the adapter, the sampling and the data order.
        out: the run folder; None means `runs/<task>`.
        policy: `(model with its adapter, tokenizer)` that is already in memory, trained in place; None loads one.
        trainer: "stock" is TRL's own, "shared-prefix" ours for CPUs (same loss, faster); "" picks by profile.

    Raises:
        CourseError: unknown task, settings that cannot work, no model.
    """
    settings = task_settings(task, profile)
    folder = Path(out) if out is not None else runs_dir() / task
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = policy or _fresh_policy(profile, seed)
    dataset = training_problems(task, settings, seed=seed)
    longest = check_lengths(dataset, tokenizer, settings, profile.max_seq_length)

    from problama_utils.trainer import trainer_class  # after the model: unsloth patches TRL before it is imported

    started = time.perf_counter()
    grpo = trainer_class(trainer or ("shared-prefix" if profile.backend == "transformers" else "stock"))(
        model=model,
        reward_funcs=list(SLIDE_REWARDS),
        args=grpo_config(settings, profile, seed=seed, out=folder),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[_log_writer(folder, settings.max_steps, task)],
    )
    _drop_console_printer(grpo)
    grpo.train()
    grpo.save_model(str(folder / monitoring.ADAPTER_FOLDER))
    minutes = (time.perf_counter() - started) / 60
    monitoring.write_run(folder, _run_record(task, profile, seed, dataset, longest, minutes))
    return folder


def _fresh_policy(profile: Profile, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load_policy(profile, seed=seed)
    return attach_lora(model, profile, seed=seed), tokenizer


def _log_writer(folder: Path, max_steps: int, task: str) -> Any:
    """Return a callback that keeps `log.csv` current and shows progress with the time left on stderr."""
    from tqdm import tqdm
    from transformers import TrainerCallback

    class LogWriter(TrainerCallback):
        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []
            self.bar = tqdm(total=max_steps, desc=f"GRPO {task}", unit="step", file=sys.stderr)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "reward" in logs:  # the closing summary has no rewards
                self.rows.append({"step": state.global_step, **logs})
                monitoring.write_log(folder, self.rows)
                self.bar.set_postfix(reward=f"{float(logs['reward']):.2f}")
                self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return LogWriter()


def _drop_console_printer(trainer: Any) -> None:
    """TRL prints every log as a dictionary when its bar is off; the log is on disk, and the notebook stays readable."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _run_record(
    task: str, profile: Profile, seed: int, dataset: Dataset, longest: int, minutes: float
) -> dict[str, Any]:
    return {
        "task": task,
        "profile": asdict(profile),
        "seed": seed,
        "date": date.today().isoformat(),
        "minutes": round(minutes, 2),
        # kilobytes on Linux: the high-water mark of the whole process, so of this training and all before it
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "problems": len(dataset),
        "longest_prompt_tokens": longest,
        "data_fingerprint": fingerprint(dataset),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}},
        "machine": f"{platform.system()} {platform.machine()}, {_cores()} cores, {str(compute_dtype())[6:]}",
    }


def _cores() -> int:
    import torch

    return torch.get_num_threads()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: `python -m problama_utils.training riddles --profile cpu --seed 3407`."""
    import argparse

    from problama_utils.config import detect_profile, get_profile

    parser = argparse.ArgumentParser(description="Train one task with GRPO and write a run folder.")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--profile", help="cpu, colab-t4 or slides (default: by hardware)")
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--out", help="run folder (default: runs/<task>)")
    options = parser.parse_args(arguments)
    profile = get_profile(options.profile) if options.profile else detect_profile()
    folder = run_grpo(options.task, profile, seed=options.seed, out=options.out)
    log = monitoring.read_log(folder)
    for metric, title in monitoring.SLIDE_CURVES.items():
        first, last = monitoring.first_and_last(log, metric)
        print(f"{title:>15}: {first:.2f} in the first 5 steps, {last:.2f} in the last 5")


if __name__ == "__main__":
    main()
