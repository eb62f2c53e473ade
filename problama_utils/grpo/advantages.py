"""From rewards to advantages: TD errors and GAE for PPO, group-relative advantages for GRPO.

Axes: P prompts, G completions per prompt, T tokens, B = any leading batch axes (B = P·G once a group is flattened).
A mask is 1 on the tokens that a completion really has and 0 on the padding behind them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Deviation = Literal["unbiased", "population", "none"]
_CORRECTION = {"unbiased": 1, "population": 0}


def end_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """Put one reward per completion on its last real token and 0 on every other token.

    A verifiable reward judges a finished completion, PPO wants a reward for each step: r_t = 0 until the last token.

    Args:
        rewards: one number per completion, shape (B,).
        mask: 1 for real tokens, 0 for the padding on the right, shape (B, T).
    Returns:
        Rewards per token, shape (B, T). A completion without any token gets zeros.
    Raises:
        ValueError: when the mask is not ones followed by zeros, or the shapes do not fit.

    >>> end_rewards(torch.tensor([1.0, 0.5]), torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 0.5]]
    """
    mask = _right_padded(mask)
    if rewards.shape != mask.shape[:-1]:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)} but the mask has {tuple(mask.shape)}: "
            "give one reward per row of the mask."
        )
    return rewards.unsqueeze(-1) * _last_token(mask)


def td_errors(
    rewards: Tensor,
    values: Tensor,
    gamma: float = 1.0,
    mask: Tensor | None = None,
    last_values: Tensor | None = None,
) -> Tensor:
    r"""One-step temporal-difference errors: how much better a step went than the value function expected.

    δ_t = r_t + γ V(s_{t+1}) − V(s_t)                                (GAE, arXiv:1506.02438, below eq. 9)

    Args:
        rewards: r_t, reward received after token t, shape (B, T).
        values: V(s_t), the prediction made before token t, shape (B, T).
        gamma: discount γ per token, 0 to 1. Language-model RL uses 1: a late answer is as good as an early one.
        mask: 1 for real tokens, 0 for the padding on the right, shape (B, T). None: every token is real.
        last_values: V after the last real token, shape (B,). None: 0, the completion has ended. Give it for
            completions that were cut off by the token limit.
    Returns:
        δ, shape (B, T), 0 on the padding.
    Raises:
        ValueError: for shapes that differ or a mask that is not ones followed by zeros.

    >>> td_errors(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75])).tolist()
    [-0.25, 0.5, 0.25]
    """
    _same_shape(rewards=rewards, values=values)
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else _right_padded(mask)
    _same_shape(rewards=rewards, mask=mask)
    after = values.new_zeros(values.shape[:-1]) if last_values is None else last_values
    after = after.unsqueeze(-1)
    next_values = torch.cat([values[..., 1:], after], dim=-1)
    next_values = torch.where(_last_token(mask), after, next_values)
    return torch.where(mask, rewards + gamma * next_values - values, torch.zeros_like(values))


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    mask: Tensor | None = None,
    last_values: Tensor | None = None,
) -> Tensor:
    r"""Generalised advantage estimation: a sum of TD errors that fades by γλ per step.

    A_t = Σ_{l≥0} (γλ)^l δ_{t+l}, computed backwards as A_t = δ_t + γλ A_{t+1}     (arXiv:1506.02438, eq. 16)

    λ = 0 keeps δ_t alone (one-step TD: low variance, as biased as V is wrong); λ = 1 gives the Monte Carlo return
    minus V(s_t) (no bias from V, the variance of the whole rest of the episode).

    Args:
        rewards, values, gamma, mask, last_values: as in `td_errors`.
        lam: λ, 0 to 1.
    Returns:
        Advantages, shape (B, T), 0 on the padding. Detach them (or the values) before they weigh a policy loss.
    Raises:
        ValueError: as `td_errors`; also for γ or λ outside 0 to 1.

    >>> generalised_advantages(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75]), lam=1.0).tolist()
    [0.5, 0.75, 0.25]
    """
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}, but it must lie between 0 and 1.")
    deltas = td_errors(rewards, values, gamma, mask, last_values)
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
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)}: a group needs at least 2 completions on the last axis, "
            "because one completion has nobody to be compared with."
        )
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards contain NaN or infinity: drop or score unjudged completions before comparing them.")
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    # Rounding leaves 1e-8 instead of 0 for rewards such as 0.1: an equal group must be an exact zero.
    equal = rewards.amax(dim=-1, keepdim=True) == rewards.amin(dim=-1, keepdim=True)
    centred = torch.where(equal, torch.zeros_like(centred), centred)
    if deviation == "none":
        return centred
    if deviation not in _CORRECTION:
        raise ValueError(f"deviation is {deviation!r}; choose 'unbiased', 'population' or 'none'.")
    spread = rewards.std(dim=-1, correction=_CORRECTION[deviation], keepdim=True) + eps
    return centred / torch.where(equal, torch.ones_like(spread), spread)  # never 0 / 0, not even with eps = 0


def _right_padded(mask: Tensor) -> Tensor:
    """The mask as booleans; refuses one with a hole, because time steps would be skipped silently."""
    mask = mask.bool()
    if (mask[..., 1:] & ~mask[..., :-1]).any():
        raise ValueError("the mask must be ones followed by zeros on each row (padding on the right).")
    return mask


def _last_token(mask: Tensor) -> Tensor:
    """True on the last real token of each row of a right-padded mask."""
    behind = torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], dim=-1)
    return mask & ~behind


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"these must have the same shape: {shapes}.")
