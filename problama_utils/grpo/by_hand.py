"""One GRPO step in plain torch, as notebook 03 shows it: what TRL's trainer does, without the trainer.

Slow on purpose: one completion at a time, so that no padding, mask or batch dimension hides the mathematics.
`training.comparison` checks that it equals TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from problama_utils.config import GRPOSettings
from problama_utils.grpo.advantages import group_advantages


def completion_logprobs(model: Any, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """Return log π(token | all before it) for each of the T tokens of a completion, shape [T]."""
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / temperature  # position t predicts t + 1
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)


def reference_step(
    model: Any, prompts: Sequence[list[int]], completions: Sequence[list[int]], rewards: Sequence[float],
    settings: GRPOSettings, optimizer: torch.optim.Optimizer,
) -> float:
    """Train one step on P · G completions, group by group, and return the loss."""
    advantages = group_advantages(torch.tensor(rewards).view(-1, settings.num_generations)).flatten()
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
