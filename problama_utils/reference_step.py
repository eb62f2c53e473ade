"""One GRPO step in plain torch, as notebook 03 shows it: what TRL's trainer does, without the trainer.

Slow on purpose: one completion at a time, so that no padding, mask or batch dimension hides the mathematics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from problama_utils.advantages import group_advantages
from problama_utils.config import GRPOSettings, Profile
from problama_utils.rewards import total_reward

if TYPE_CHECKING:
    from datasets import Dataset


def completion_logprobs(model: Any, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """Return log π(token | all before it) for each of the T tokens of a completion, shape [T]."""
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / temperature  # position t predicts t + 1
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)


def reference_step(
    model: Any, prompts: Sequence[list[int]], completions: Sequence[list[int]], rewards: Sequence[float],
    settings: GRPOSettings, optimizer: torch.optim.Optimizer,
) -> float:
    """Train one step on P · G completions, groups standing together, and return the loss."""
    groups = torch.tensor(rewards).view(-1, settings.num_generations)
    advantages = group_advantages(groups).flatten()
    optimizer.zero_grad()
    total = 0.0
    for prompt, completion, advantage in zip(prompts, completions, advantages, strict=True):
        with torch.no_grad(), model.disable_adapter():  # the reference policy is the model without its adapter
            reference = completion_logprobs(model, prompt, completion, settings.temperature)
        policy = completion_logprobs(model, prompt, completion, settings.temperature)
        ratio = torch.exp(policy - policy.detach())  # 1 in value; its gradient is that of log π
        clipped = ratio.clamp(1 - settings.epsilon, 1 + settings.epsilon)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        kl = torch.exp(reference - policy) - (reference - policy) - 1  # Schulman's k3
        loss = (settings.beta * kl - gain).mean() / len(completions)  # over tokens, then over completions
        loss.backward()
        total += loss.item()
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    torch.nn.utils.clip_grad_norm_(trainable, 1.0)
    optimizer.step()
    return total


@dataclass(frozen=True)
class TrainedStep:
    """What TRL's trainer read and logged in one step. P · G entries each, groups standing together."""

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

    from problama_utils.trainer import make_trainer
    from problama_utils.training import grpo_config

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
