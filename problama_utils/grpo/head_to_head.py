"""PPO against GRPO on a small game with a verifiable reward: same policy network, same number of rollouts.

The game: a target between 4 and 12 is shown, the policy writes 4 digits from 0 to 4, one token after the other, and is
rewarded with 1 if they add up to the target, otherwise with 0. Like a riddle's answer the reward comes once, at the
end; unlike a language model all 9 · 625 completions can be listed, so success and KL are exact, not sampled.

Axes: P prompts, G completions per prompt, T tokens, V vocabulary, B = P·G rollouts.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

import torch
from torch import Tensor, nn

from problama_utils.grpo.advantages import generalised_advantages, group_advantages
from problama_utils.grpo.losses import grpo_loss, value_loss

TOKENS, VOCABULARY, TARGETS = 4, 5, tuple(range(4, 13))
_FEATURES = len(TARGETS) + TOKENS + TOKENS * VOCABULARY


@dataclass(frozen=True)
class Settings:
    """One training run. PPO asks `rollouts` prompts once each, GRPO asks rollouts / group prompts `group` times."""

    method: str = "grpo"  # "grpo" or "ppo"
    seed: int = 0
    updates: int = 100  # batches of fresh rollouts
    rollouts: int = 64  # completions per update, for both methods
    group: int = 8  # G, GRPO only
    epochs: int = 4  # gradient steps on each batch
    learning_rate: float = 3e-3  # Adam, policy
    value_learning_rate: float = 3e-3  # Adam, value network, PPO only
    lam: float = 0.95  # λ of GAE, PPO only; γ is 1
    clip: float = 0.2  # ε
    beta: float = 0.0  # weight of the KL to the untrained policy, 0 = off
    hidden: int = 64  # width of the one hidden layer, of policy and value network alike

    def __post_init__(self) -> None:
        if self.method not in ("ppo", "grpo"):
            raise ValueError(f"method is {self.method!r}; choose 'ppo' or 'grpo'.")
        if self.rollouts % self.group:
            raise ValueError(f"{self.rollouts} rollouts do not divide into groups of {self.group}.")


@dataclass(frozen=True)
class Run:
    """What one training run left behind; the lists have one entry per update, the first before any training."""

    settings: Settings
    success: list[float]  # exact probability of a right answer, mean over the targets
    kl: list[float]  # exact KL of the policy from the untrained one, nats per completion
    dead_groups: list[float]  # share of groups with equal rewards (GRPO), else empty
    parameters: int  # trainable numbers, value network included
    optimiser_bytes: int  # Adam's moments
    milliseconds: float  # median per update: sampling and gradient steps, evaluation not counted
    policy: nn.Module


def network(outputs: int, hidden: int, generator: torch.Generator) -> nn.Sequential:
    """A one-layer perceptron on (target, position, tokens so far); the output layer starts at 0.

    A zero output layer makes the untrained policy exactly uniform and the untrained value exactly 0, for every seed.
    """
    net = nn.Sequential(nn.Linear(_FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(hidden, _FEATURES, generator=generator) / 2)
        net[0].bias.zero_()
        net[2].weight.zero_()
        net[2].bias.zero_()
    return net


def features(targets_B: Tensor, tokens_BT: Tensor) -> Tensor:
    """What the networks see before each token: target, position and the tokens written so far, shape (B, T, F)."""
    rows = len(targets_B)
    target = nn.functional.one_hot(targets_B - TARGETS[0], len(TARGETS)).float()
    written = nn.functional.one_hot(tokens_BT, VOCABULARY).float()
    before = torch.tril(torch.ones(TOKENS, TOKENS), diagonal=-1)  # row t keeps the tokens before t
    history = (before[None, :, :, None] * written[:, None]).reshape(rows, TOKENS, TOKENS * VOCABULARY)
    position = torch.eye(TOKENS).expand(rows, TOKENS, TOKENS)
    return torch.cat([target[:, None].expand(rows, TOKENS, -1), position, history], dim=-1)


def token_logprobs(policy: nn.Module, states_BTF: Tensor, tokens_BT: Tensor) -> Tensor:
    """log π of the tokens that were written, shape (B, T)."""
    return torch.log_softmax(policy(states_BTF), -1).gather(-1, tokens_BT.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def sample(policy: nn.Module, targets_B: Tensor, generator: torch.Generator) -> Tensor:
    """Write one completion per target, token by token, shape (B, T)."""
    tokens = torch.zeros(len(targets_B), TOKENS, dtype=torch.long)
    for t in range(TOKENS):
        chances = torch.softmax(policy(features(targets_B, tokens)[:, t]), -1)
        tokens[:, t] = torch.multinomial(chances, 1, generator=generator).squeeze(-1)
    return tokens


def reward(targets_B: Tensor, tokens_BT: Tensor) -> Tensor:
    """1.0 where the digits add up to the target, else 0.0, shape (B,)."""
    return (tokens_BT.sum(dim=-1) == targets_B).float()


@cache
def _tree() -> tuple[list[Tensor], Tensor]:
    """What the policy sees after each of the V^t beginnings, shape (targets · V^t, F) for each t, and all rewards."""
    states = []
    for t in range(TOKENS + 1):
        beginnings = itertools.product(range(VOCABULARY), repeat=t)
        tokens = torch.tensor([(*beginning, *[0] * (TOKENS - t)) for beginning in beginnings])
        targets = torch.tensor(TARGETS).repeat_interleave(len(tokens))
        tokens = tokens.repeat(len(TARGETS), 1)
        if t < TOKENS:
            states.append(features(targets, tokens)[:, t])
    return states, reward(targets, tokens).view(len(TARGETS), -1)


@torch.no_grad()
def evaluate(policy: nn.Module) -> tuple[float, float]:
    """Exact (mean success over the targets, mean KL from the uniform policy in nats per completion)."""
    states, rewards = _tree()
    logprobs = torch.zeros(len(TARGETS), 1)  # of every beginning so far
    for level in states:
        following = torch.log_softmax(policy(level), -1).view(*logprobs.shape, VOCABULARY)
        logprobs = (logprobs.unsqueeze(-1) + following).flatten(1)
    chances, uniform = logprobs.exp(), -TOKENS * math.log(VOCABULARY)
    success, kl = (chances * rewards).sum(1), (chances * (logprobs - uniform)).sum(1)
    return success.mean().item(), kl.mean().item()


def train(settings: Settings) -> Run:
    """Train a fresh policy by PPO or GRPO and evaluate it exactly after every update.

    The same seed gives the same run, and both methods the same untrained policy.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    policy = network(VOCABULARY, settings.hidden, generator)
    value = network(1, settings.hidden, generator) if settings.method == "ppo" else None
    optimisers = [torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)]
    if value is not None:
        optimisers.append(torch.optim.Adam(value.parameters(), lr=settings.value_learning_rate))
    curves, seconds, dead = [evaluate(policy)], [], []
    for _ in range(settings.updates):
        start = time.perf_counter()
        share = update(policy, value, optimisers, settings, generator)
        seconds.append(time.perf_counter() - start)
        dead += [] if share is None else [share]
        curves.append(evaluate(policy))
    success, kl = (list(curve) for curve in zip(*curves, strict=True))
    moments = [m for o in optimisers for state in o.state.values() for m in (state["exp_avg"], state["exp_avg_sq"])]
    return Run(
        settings, success, kl, dead,
        parameters=sum(p.numel() for o in optimisers for group in o.param_groups for p in group["params"]),
        optimiser_bytes=sum(m.numel() * m.element_size() for m in moments),
        milliseconds=1000 * sorted(seconds)[len(seconds) // 2],
        policy=policy,
    )  # fmt: skip


def update(
    policy: nn.Module, value: nn.Module | None, optimisers: list[torch.optim.Optimizer], settings: Settings,
    generator: torch.Generator,
) -> float | None:
    """Sample one batch of rollouts and take `epochs` gradient steps on it; `value` is given for PPO only.

    Returns:
        GRPO: the share of groups whose rewards were all equal. PPO: None.
    """
    asked = settings.rollouts if value is not None else settings.rollouts // settings.group
    prompts = torch.tensor(TARGETS)[torch.randint(len(TARGETS), (asked,), generator=generator)]
    targets = prompts.repeat_interleave(settings.rollouts // asked)
    tokens = sample(policy, targets, generator)
    rewards, states, mask = reward(targets, tokens), features(targets, tokens), torch.ones_like(tokens)
    old = token_logprobs(policy, states, tokens).detach()
    uniform = torch.full_like(old, -math.log(VOCABULARY))  # the untrained policy
    returns, share = None, None
    if value is not None:
        predicted = value(states).squeeze(-1).detach()
        step_rewards = torch.zeros_like(predicted)
        step_rewards[:, -1] = rewards  # only a finished completion can be judged
        advantages = generalised_advantages(step_rewards, predicted, lam=settings.lam)
        returns = advantages + predicted
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)  # usual in PPO; the paper is silent
    else:
        groups = rewards.view(asked, settings.group)
        advantages = group_advantages(groups).flatten()
        share = (groups.amax(1) == groups.amin(1)).float().mean().item()
    for _ in range(settings.epochs):
        loss = grpo_loss(  # with advantages per token this is PPO's clipped loss, the same line for both
            token_logprobs(policy, states, tokens), old, advantages, mask,
            ref_logprobs=uniform, beta=settings.beta, epsilon=settings.clip,
        )  # fmt: skip
        if value is not None:
            loss = loss + value_loss(value(states).squeeze(-1), returns)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    return share


@dataclass(frozen=True)
class Comparison:
    """Two methods over the same seeds: paired differences of one score, first minus second."""

    first: str
    second: str
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.differences)

    @property
    def standard_error(self) -> float:
        return stdev(self.differences) / math.sqrt(len(self.differences))

    @property
    def verdict(self) -> str:
        """The rule of 2 standard errors, in words; with fewer than 4 seeds nothing is claimed."""
        n, mean, error = len(self.differences), self.mean, self.standard_error
        measured = f"{mean:+.3f}, standard error {error:.3f}, {n} seeds"
        if n < 4:
            return f"no claim: {n} seeds are too few ({measured})"
        if abs(mean) <= 2 * error:
            return f"no difference between {self.first} and {self.second} beyond 2 standard errors ({measured})"
        better, worse = (self.first, self.second) if mean > 0 else (self.second, self.first)
        return f"{better} is ahead of {worse} by more than 2 standard errors ({measured})"


def compare(first: list[Run], second: list[Run], score=lambda run: fmean(run.success)) -> Comparison:
    """Compare two lists of runs seed by seed; the default score is the mean success over the whole training."""
    seeds = [run.settings.seed for run in first]
    if seeds != [run.settings.seed for run in second]:
        raise ValueError("the two lists of runs must have the same seeds in the same order, to be compared in pairs.")
    names = first[0].settings.method.upper(), second[0].settings.method.upper()
    return Comparison(*names, tuple(score(a) - score(b) for a, b in zip(first, second, strict=True)))


def mean_and_interval(runs: list[Run]) -> tuple[list[float], list[float], list[float]]:
    """Mean success per update and the edges of its 95 % band (mean ± 1.96 standard errors over seeds)."""
    columns = [list(column) for column in zip(*(run.success for run in runs), strict=True)]
    means, errors = [fmean(c) for c in columns], [stdev(c) / math.sqrt(len(c)) for c in columns]
    low = [m - 1.96 * e for m, e in zip(means, errors, strict=True)]
    return means, low, [m + 1.96 * e for m, e in zip(means, errors, strict=True)]
