"""From rewards to advantages: GAE for PPO, group-relative advantages for GRPO.

Axes: P prompts, G completions per prompt, T tokens, B = any leading batch axes (B = P·G once a group is flattened).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Deviation = Literal["unbiased", "population", "none"]


def generalised_advantages(rewards: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    r"""Generalised advantage estimation: a sum of TD errors δ that fades by γλ per step.

    δ_t = r_t + γ V(s_{t+1}) − V(s_t), how much better a step went than expected    (arXiv:1506.02438, below eq. 9)
    A_t = Σ_{l≥0} (γλ)^l δ_{t+l}, computed backwards as A_t = δ_t + γλ A_{t+1}      (eq. 16)

    λ = 0 keeps δ_t alone (one-step TD: low variance, as biased as V is wrong); λ = 1 gives the Monte Carlo return
    minus V(s_t) (no bias from V, the variance of the whole rest of the episode).

    Args:
        rewards: r_t, reward received after token t, shape (B, T).
        values: V(s_t), the prediction made before token t, shape (B, T). After the last token V counts 0.
        gamma: discount γ per token, 0 to 1. Language-model RL uses 1: a late answer is as good as an early one.
        lam: λ, 0 to 1.
    Returns:
        Advantages, shape (B, T). Detach them (or the values) before they weigh a policy loss.
    Raises:
        ValueError: for shapes that differ, or γ or λ outside 0 to 1.

    >>> generalised_advantages(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75]), lam=0.0).tolist()
    [-0.25, 0.5, 0.25]
    >>> generalised_advantages(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75]), lam=1.0).tolist()
    [0.5, 0.75, 0.25]
    """
    if rewards.shape != values.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and values {tuple(values.shape)} must have the same shape.")
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}, but it must lie between 0 and 1.")
    next_values = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    deltas = rewards + gamma * next_values - values
    running = deltas.new_zeros(deltas.shape[:-1])
    advantages = []
    for delta in reversed(deltas.unbind(dim=-1)):
        running = delta + gamma * lam * running
        advantages.append(running)
    return torch.stack(advantages[::-1], dim=-1)


def group_advantages(rewards: Tensor, deviation: Deviation = "unbiased", eps: float = 1e-4) -> Tensor:
    r"""Group-relative advantages: each completion against the other answers to the same prompt.

    A_i = (r_i − mean(r)) / (std(r) + eps)                           (GRPO, arXiv:2402.03300, section 4.1.2)
    A_i = r_i − mean(r)            for deviation="none"              (Dr. GRPO, arXiv:2503.20783, section 3.2)

    A group whose rewards are all equal gets exact zeros: it compares nothing, so it teaches nothing.

    Args:
        rewards: one number per completion, shape (..., G), groups along the last axis; usually (P, G).
        deviation: "unbiased" divides the squared deviations by G − 1 (torch, TRL), "population" by G (numpy),
            "none" does not divide by the deviation.
        eps: added to the deviation, as in TRL (1e-4), so that a nearly constant group is not blown up.
    Returns:
        Advantages, same shape. They sum to 0 in each group.
    Raises:
        ValueError: for fewer than two completions, rewards that are not finite, or an unknown deviation.

    >>> [round(a, 3) for a in group_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0])).tolist()]
    [0.866, 0.866, -0.866, -0.866]
    >>> [round(a, 3) for a in group_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0]), "population").tolist()]
    [1.0, 1.0, -1.0, -1.0]
    """
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if rewards.dim() == 0 or rewards.shape[-1] < 2:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}: a group needs at least 2 completions.")
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards contain NaN or infinity: drop or score unjudged completions before comparing them.")
    if deviation not in get_args(Deviation):
        raise ValueError(f"deviation is {deviation!r}; choose 'unbiased', 'population' or 'none'.")
    # Rounding leaves 1e-8 instead of 0 for rewards such as 0.1: an equal group must be an exact zero.
    equal = rewards.amax(dim=-1, keepdim=True) == rewards.amin(dim=-1, keepdim=True)
    centred = (rewards - rewards.mean(dim=-1, keepdim=True)).masked_fill(equal, 0.0)
    if deviation == "none":
        return centred
    spread = rewards.std(dim=-1, correction=int(deviation == "unbiased"), keepdim=True) + eps
    return centred / spread.masked_fill(equal, 1.0)  # never 0 / 0, not even with eps = 0
