"""One step of TRL's trainer beside the same step by hand, in a process of its own that sees no GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from problama_utils import CourseError
from problama_utils.config import GRPOSettings, Profile, get_profile
from problama_utils.grpo.by_hand import reference_step
from problama_utils.rewards.slides import total_reward

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TrainedStep:
    """What TRL's trainer read and logged in one step. P · G entries each, group by group."""

    prompts: list[list[int]]  # token ids
    completions: list[list[int]]  # token ids
    rewards: list[float]  # totals
    loss: float
    grad_norm: float  # before clipping


def trl_step(
    model: Any, tokenizer: Any, problems: Dataset, settings: GRPOSettings, profile: Profile, *, seed: int, out: Path
) -> TrainedStep:
    """Let TRL's trainer train the policy in place for one step in fp32, and return what it worked with.

    Args:
        model: policy with its adapter, in fp32: with rounded weights "equal" would need a tolerance.
        tokenizer: of the policy.
        problems: from `training_problems`.
        settings: `max_steps` must be 1; `warmup_steps` 0, or the first step's learning rate is 0.
        profile: as for `run_grpo`.
        seed: of the sampling.
        out: a folder that the trainer may write to.
    """
    from transformers.trainer_callback import PrinterCallback

    from problama_utils.training.run import grpo_config
    from problama_utils.training.trainer import make_trainer

    seen: dict[str, Any] = {}

    def total(prompts: list, completions: list, completion_ids: list, **columns: Any) -> list[float]:
        seen.update(prompts=prompts, ids=completion_ids, rewards=total_reward(completions, **columns))
        return seen["rewards"]

    config = grpo_config(settings, profile, seed=seed, out=out)
    config.bf16 = config.fp16 = False
    config.save_strategy = "no"
    trainer = make_trainer(model=model, reward_funcs=total, args=config, train_dataset=problems,
                           processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    encoded = tokenizer.apply_chat_template(seen["prompts"], add_generation_prompt=True, return_dict=True)
    logged = trainer.state.log_history[0]
    return TrainedStep(encoded["input_ids"], seen["ids"], seen["rewards"], logged["loss"], logged["grad_norm"])


@dataclass(frozen=True)
class Comparison:
    """`by_hand` beside one step of TRL's trainer, from the same weights, completions and rewards."""

    rewards: list[float]  # totals of the P · G completions, group by group
    loss: float
    trl_loss: float
    largest_step: float  # the learning rate: by about as much Adam moves a weight in its first step
    apart: float  # share of trained weights that ended more than a hundredth of the largest step apart


def compare_with_trl(ids: Sequence[str], *, seed: int) -> Comparison:
    """Compare `grpo.by_hand` with TRL's trainer on two groups of the embedded model, in fp32 on the CPU.

    It runs in a process of its own that sees no GPU. In a notebook's own process unsloth may have exchanged TRL's
    trainer for its own, and "equal" needs one device and one number format on both sides.

    Args:
        ids: of two training riddles, one group each.
        seed: of adapter and sampling.

    Raises:
        CourseError: the process ended without a result; the message carries its last line.
    """
    command = [sys.executable, "-m", "problama_utils.training.comparison", str(seed), *ids]
    apart = {"CUDA_VISIBLE_DEVICES": "", "PROBLAMA_PROFILE": "cpu", "PROBLAMA_MODEL": "", "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2],
                          env={**os.environ, **apart})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise CourseError(f"The comparison with TRL ended without a result ({last}): free some memory and run it "
                          "again.")
    return Comparison(**json.loads(done.stdout.splitlines()[-1]))


def _compare(seed: int, ids: Sequence[str]) -> Comparison:
    from problama_utils.model.loading import attach_lora, load_policy
    from problama_utils.training.problems import training_problems

    profile = get_profile("cpu")
    settings = dataclasses.replace(profile.riddles, max_steps=1, prompts_per_step=len(ids), warmup_steps=0,
                                   temperature=1.0)
    problems = training_problems("riddles", dataclasses.replace(settings, dataset_size=0, difficulty=0), seed=seed)
    problems = problems.select([i for i, name in enumerate(problems["id"]) if name in ids])
    theirs, ours = (attach_lora(load_policy(profile, seed=seed)[0].float(), profile, seed=seed) for _ in range(2))
    with tempfile.TemporaryDirectory() as out:
        step = trl_step(theirs, load_policy(profile)[1], problems, settings, profile, seed=seed, out=Path(out))
    trained = {name: weight for name, weight in ours.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=settings.learning_rate, weight_decay=0.0)
    loss = reference_step(ours, step.prompts, step.completions, step.rewards, settings, optimizer)
    other = dict(theirs.named_parameters())
    gaps = torch.cat([(weight - other[name]).detach().abs().flatten() for name, weight in trained.items()])
    share = (gaps > 0.01 * settings.learning_rate).float().mean().item()
    return Comparison(list(step.rewards), loss, step.loss, settings.learning_rate, share)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(_compare(int(sys.argv[1]), sys.argv[2:]))))
