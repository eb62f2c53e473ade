"""From advantages to a loss: PPO's clipped objective, the value loss, KL estimators and the GRPO loss.

Axes: P prompts, G completions per prompt, T tokens; B = P·G completions. Log-probabilities are natural logarithms of
the probability of the token that was sampled. Nothing here knows a model: tensors in, tensors out.

What differs from the papers:
1. The GRPO paper (arXiv:2402.03300, eq. 3) averages over the tokens of a completion, then over completions. That is
   aggregation="sequence"; "token" (DAPO, arXiv:2503.14476) and "constant" (Dr. GRPO, arXiv:2503.20783) are offered too.
2. kl_correction=True weighs the KL estimate by the ratio, as TRL now does by default; the paper does not.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence", "token", "constant"]
Estimator = Literal["k1", "k2", "k3"]


def ppo_clip_objective(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, epsilon: float = 0.2) -> Tensor:
    r"""PPO's clipped objective for each token, to be maximised.

    min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) with ρ = exp(log π_θ − log π_old)     (arXiv:1707.06347, eq. 7)

    The minimum is taken for both signs of A: clipping may only make the objective worse, never better.

    Args:
        logprobs: log π_θ of the sampled tokens, any shape; carries the gradient.
        old_logprobs: log π_old of the same tokens at sampling time, same shape; treated as constants.
        advantages: A, same shape or one that broadcasts to it; treated as constants.
        epsilon: ε, the clip range below and above 1.
    Returns:
        The objective per token, same shape as logprobs.

    >>> ratio = torch.tensor([0.5, 1.5, 0.5, 1.5])
    >>> values = ppo_clip_objective(ratio.log(), torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]))
    >>> [round(v, 2) for v in values.tolist()]
    [0.5, 1.2, -0.8, -1.5]
    """
    ratio = torch.exp(_precise(logprobs) - _precise(old_logprobs).detach())
    advantages = _precise(advantages).detach()
    return torch.minimum(ratio * advantages, ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * advantages)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Mean squared error of the value function, over real tokens.

    L^VF = mean((V_θ(s_t) − V_t^targ)²)                               (arXiv:1707.06347, below eq. 9)

    Args:
        values: V_θ(s_t), shape (B, T); carries the gradient.
        returns: targets, usually GAE advantages + old values, shape (B, T); treated as constants.
        mask: 1 for real tokens, shape (B, T). None: all are real.
    Returns:
        A scalar.

    >>> value_loss(torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 9.0]]), torch.tensor([[1, 0]])).item()
    0.25
    """
    mask = torch.ones_like(values) if mask is None else mask
    error = (_keep(values, mask) - _keep(returns, mask).detach()) ** 2
    return error.sum() / mask.sum().clamp(min=1)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator = "k3") -> Tensor:
    r"""Estimate KL(π_θ ‖ π_ref) from sampled tokens, one number per token.

    With u = log π_ref − log π_θ of a token sampled from π_θ:
    k1 = −u, k2 = u²/2, k3 = e^u − u − 1                              (Schulman 2020; k3 is GRPO's eq. 4)

    Values: k1 and k3 have the right mean, k2 does not; k2 and k3 are never negative. Gradients through the estimate,
    tokens held fixed: k1 averages to 0 (useless as a loss), k2 to the gradient of KL(π_θ ‖ π_ref), k3 to the
    gradient of KL(π_ref ‖ π_θ), which agrees with the former only near π_ref.

    Args:
        logprobs: log π_θ of tokens sampled from π_θ, any shape; carries the gradient.
        ref_logprobs: log π_ref of the same tokens, same shape; treated as constants.
        estimator: "k1", "k2" or "k3".
    Returns:
        The estimate per token, same shape.
    Raises:
        ValueError: for an unknown estimator.

    >>> p, q = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    >>> [round(kl_estimate(p, q, k).item(), 4) for k in ("k1", "k2", "k3")]
    [0.6931, 0.2402, 0.1931]
    """
    u = _precise(ref_logprobs).detach() - _precise(logprobs)
    estimates = {"k1": -u, "k2": 0.5 * u**2, "k3": torch.exp(u) - u - 1.0}
    if estimator not in estimates:
        raise ValueError(f"estimator is {estimator!r}; choose 'k1', 'k2' or 'k3'.")
    return estimates[estimator]


def aggregate(
    per_token: Tensor, mask: Tensor, aggregation: Aggregation = "sequence", max_tokens: int | None = None
) -> Tensor:
    """Turn per-token numbers into one.

    Args:
        per_token: shape (B, T).
        mask: 1 for real tokens, shape (B, T).
        aggregation: "sequence" = mean over each completion's tokens, then over completions: every completion
            weighs the same. "token" = mean over all tokens: every token weighs the same. "constant" = sum divided
            by B · max_tokens: the weight of a token does not depend on any length.
        max_tokens: the longest completion allowed; needed for "constant".
    Returns:
        A scalar.
    Raises:
        ValueError: for an unknown aggregation, or "constant" without max_tokens.
    """
    kept = _keep(per_token, mask)
    if aggregation == "sequence":
        return (kept.sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)).mean()
    if aggregation == "token":
        return kept.sum() / mask.sum().clamp(min=1)
    if aggregation == "constant":
        if not max_tokens:
            raise ValueError("aggregation='constant' needs max_tokens, the longest completion that was allowed.")
        return kept.sum() / (kept.shape[0] * max_tokens)
    raise ValueError(f"aggregation is {aggregation!r}; choose 'sequence', 'token' or 'constant'.")


def grpo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *,
    ref_logprobs: Tensor | None = None, beta: float = 0.0, epsilon: float = 0.2,
    aggregation: Aggregation = "sequence", max_tokens: int | None = None, kl_correction: bool = False,
) -> Tensor:
    r"""The GRPO loss, to be minimised: minus the clipped objective, plus β times the KL estimate.

    L = − agg(min(ρ A, clip(ρ) A) − β · KL(π_θ ‖ π_ref))                (arXiv:2402.03300, eq. 3 and 4)

    Args:
        logprobs: log π_θ of the sampled tokens, shape (B, T); carries the gradient.
        old_logprobs: log π_old at sampling time, shape (B, T). On the first pass over fresh rollouts it equals
            logprobs, the ratio is 1 and the loss about 0; the gradient is not.
        advantages: one per completion, shape (B,), or one per token, shape (B, T).
        mask: 1 for real tokens, 0 for padding, shape (B, T). What is on padding is ignored, NaN included.
        ref_logprobs: log π_ref, shape (B, T); needed when beta is not 0.
        beta: weight of the KL penalty, 0 = off. The GRPO paper uses 0.04.
        epsilon: see `ppo_clip_objective`.
        aggregation, max_tokens: see `aggregate`. TRL's loss types: "grpo" = sequence, "bnpo" and, over a whole batch,
            "dapo" = token, "dr_grpo" = constant.
        kl_correction: multiply the KL estimate k3 by the ratio ρ, gradient included. It then has the exact value and
            gradient of KL(π_θ ‖ π_ref), off-policy too (DeepSeek-V3.2, arXiv:2512.02556). False is the GRPO paper;
            True is TRL's default (`use_bias_correction_kl`).
    Returns:
        A scalar.
    Raises:
        ValueError: for shapes that do not fit, or beta without ref_logprobs.
    """
    shapes = [tuple(tensor.shape) for tensor in (logprobs, old_logprobs, mask)]
    if len(set(shapes)) > 1:
        raise ValueError(f"logprobs, old_logprobs and mask must have the same shape (B, T), but have {shapes}.")
    if advantages.dim() == logprobs.dim() - 1:
        advantages = advantages.unsqueeze(-1)
    # Padding is replaced before exp(): multiplying NaN or infinity by a mask of 0 would still give NaN.
    logprobs, old_logprobs = _keep(logprobs, mask), _keep(old_logprobs, mask)
    advantages = _keep(advantages.expand_as(logprobs), mask)
    objective = ppo_clip_objective(logprobs, old_logprobs, advantages, epsilon)
    if beta != 0.0:
        if ref_logprobs is None:
            raise ValueError(f"beta is {beta}, so the KL penalty needs ref_logprobs; pass them or set beta=0.")
        kl = kl_estimate(logprobs, _keep(ref_logprobs, mask))
        objective = objective - beta * (kl * torch.exp(logprobs - old_logprobs.detach()) if kl_correction else kl)
    return -aggregate(objective, mask, aggregation, max_tokens)


@torch.no_grad()
def clip_fractions(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, epsilon: float = 0.2
) -> tuple[float, float]:
    """Which share of the real tokens has stopped learning because the clip holds it.

    Args:
        logprobs, old_logprobs, advantages, mask, epsilon: as in `grpo_loss`.
    Returns:
        (low, high): low = ratio below 1 − ε with A < 0; high = ratio above 1 + ε with A > 0.
        TRL logs them as `clip_ratio/low_mean` and `clip_ratio/high_mean`.
    """
    if advantages.dim() == logprobs.dim() - 1:
        advantages = advantages.unsqueeze(-1)
    ratio = torch.exp(_keep(logprobs, mask) - _keep(old_logprobs, mask))
    low, high = (ratio < 1.0 - epsilon) & (advantages < 0), (ratio > 1.0 + epsilon) & (advantages > 0)
    tokens = mask.sum().clamp(min=1)
    return (_keep(low.float(), mask).sum() / tokens).item(), (_keep(high.float(), mask).sum() / tokens).item()


def _precise(tensor: Tensor) -> Tensor:
    """At least 32 bits: exp() of a bf16 log-probability has three digits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _keep(tensor: Tensor, mask: Tensor) -> Tensor:
    """The tensor with 0 on the padding; no gradient flows through what was replaced."""
    tensor = _precise(tensor)
    return torch.where(mask.bool(), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
