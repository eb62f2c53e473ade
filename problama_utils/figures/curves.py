"""The curves of notebook 01: clip, GAE's bias and variance, KL estimators, head to head, memory.

Each function gives a matplotlib Figure that reads in greyscale; `save` writes SVG and PNG, the same bytes each time.
"""

from __future__ import annotations

import io
import pathlib

import matplotlib
import torch
from matplotlib.figure import Figure

from problama_utils.grpo.advantages import generalised_advantages
from problama_utils.grpo.head_to_head import Run, mean_and_interval
from problama_utils.grpo.losses import kl_estimate, ppo_clip_objective

_STYLES = [("#12385c", "-", "o"), ("#c05a00", "--", "s"), ("#4a7c3a", ":", "^"), ("#7a4a8c", "-.", "D")]


def save(figure: Figure, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Write `name`.svg and `name`.png into a folder, without dates, so that a redrawn figure is the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=110, metadata={"Software": None})
    return paths


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes, for an output cell that looks the same in every notebook program."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def clip_surfaces() -> Figure:
    """PPO's objective against the ratio, for a good and for a bad token."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    ratio, epsilon = torch.linspace(0.4, 1.8, 281), 0.2
    good = dict(title="A = +1: a good token", held=ratio > 1 + epsilon, note=(1.5, 1.2), shift=-20, legend="upper left")
    bad = dict(title="A = −1: a bad token", held=ratio < 1 - epsilon, note=(0.6, -0.8), shift=12, legend="upper right")
    for ax, advantage, look in zip(figure.subplots(1, 2), (1.0, -1.0), (good, bad), strict=True):
        objective = ppo_clip_objective(ratio.log(), torch.zeros_like(ratio), torch.tensor(advantage), epsilon)
        ax.plot(ratio, ratio * advantage, color="#777777", linestyle="--", linewidth=1.3,
                label="ratio × A, not clipped")
        ax.plot(ratio, objective, color="#12385c", linewidth=2.4, label="PPO's objective")
        ax.fill_between(ratio, *ax.get_ylim(), where=look["held"], facecolor="none", edgecolor="#999999", hatch="//",
                        linewidth=0)
        ax.axvline(1.0, color="#333333", linewidth=0.8, linestyle=":")
        ax.plot([1.0], [advantage], "o", color="#12385c")
        ax.set(title=look["title"], xlabel="ratio $\\pi_\\theta / \\pi_{old}$ (1 = unchanged)",
               ylabel="objective (to be raised)")
        ax.annotate("held: gradient 0", look["note"], fontsize=9, ha="center", xytext=(0, look["shift"]),
                    textcoords="offset points", bbox=dict(facecolor="white", edgecolor="none", pad=1))
        ax.legend(fontsize=8.5, loc=look["legend"])
    return figure


def gae_bias_variance(episodes: int = 20_000, seed: int = 0) -> dict[str, torch.Tensor]:
    """Measure bias² and variance of GAE's first advantage over λ, where the truth is known.

    Every step pays a reward from N(0, 1), so the true value of every state is 0, and so is the true advantage of the
    first step before its reward is seen. The value function is wrong on purpose, less so towards the end, as real
    ones are: V(s_t) = 2 / 2^(t−1) for t ≥ 1, and right at t = 0. γ = 1, 12 tokens.

    Returns:
        "lambda", "bias2", "variance" and "error2" (their sum), each of shape (number of λ,), in reward units squared.
    """
    lambdas, tokens = torch.linspace(0, 1, 21), 12
    rewards = torch.randn(episodes, tokens, generator=torch.Generator().manual_seed(seed))
    values = (2.0 * 0.5 ** (torch.arange(tokens) - 1.0)).expand(episodes, tokens).clone()
    values[:, 0] = 0.0
    first = torch.stack([generalised_advantages(rewards, values, 1.0, lam)[:, 0] for lam in lambdas.tolist()])
    bias2, variance = first.mean(dim=1) ** 2, first.var(dim=1)
    return {"lambda": lambdas, "bias2": bias2, "variance": variance, "error2": bias2 + variance}


def gae_curve(measured: dict[str, torch.Tensor]) -> Figure:
    """Bias², variance and their sum over λ."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    ax = figure.subplots()
    labels = {"bias2": "bias²", "variance": "variance", "error2": "squared error = both"}
    for (colour, line, marker), (name, label) in zip(_STYLES, labels.items(), strict=False):
        ax.plot(measured["lambda"], measured[name], color=colour, linestyle=line, marker=marker, markevery=2,
                label=label)
    best = measured["lambda"][measured["error2"].argmin()].item()
    ax.axvline(best, color="#333333", linewidth=0.8, linestyle=":")
    ax.annotate(f"least error: λ = {best:.2f}", (best, ax.get_ylim()[1] * 0.5), rotation=90, ha="right", va="center",
                fontsize=9)
    ax.set(xlabel="λ (0 = one-step TD, 1 = Monte Carlo)", ylabel="reward units squared",
           title="GAE: bias against variance")
    ax.legend(fontsize=9)
    return figure


def kl_estimators() -> Figure:
    """Left: the three estimators as functions of log(π_ref/π). Right: their mean and spread against the exact KL."""
    figure = Figure(figsize=(9.8, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = dict(zip(("k1", "k2", "k3"), _STYLES, strict=False))
    u = torch.linspace(-2.0, 2.0, 201)
    for name, (colour, line, _) in styles.items():
        left.plot(u, kl_estimate(-u, torch.zeros_like(u), name), color=colour, linestyle=line, linewidth=2, label=name)
    left.axhline(0, color="#333333", linewidth=0.7)
    left.set(xlabel="$u = \\log \\pi_{ref} - \\log \\pi_\\theta$ of one token (nats)", ylabel="estimate (nats)",
             title="One token")
    left.legend()
    base, strengths = torch.tensor([1.5, 0.5, 0.0, -0.5, -1.5]), torch.linspace(0.05, 1.2, 12)[:, None]
    logp, ref = torch.log_softmax(strengths * base, -1), torch.log_softmax(-0.3 * strengths * base, -1)
    exact = (logp.exp() * (logp - ref)).sum(-1)
    right.plot([0, exact.max()], [0, exact.max()], color="#999999", linewidth=1, label="exact")
    for name, (colour, line, marker) in styles.items():
        estimate = kl_estimate(logp, ref, name)
        mean = (logp.exp() * estimate).sum(-1, keepdim=True)
        deviation = (logp.exp() * (estimate - mean) ** 2).sum(-1).sqrt()
        right.plot(exact, mean, color=colour, linestyle="none", marker=marker, markersize=5, label=f"{name}: mean")
        right.plot(exact, deviation, color=colour, linestyle=line, linewidth=1.2, label=f"{name}: deviation")
    right.set(xlabel="exact KL (nats)", ylabel="mean or deviation of the estimate (nats)",
              title="Mean and deviation over sampled tokens")
    right.legend(fontsize=8, ncols=2)
    return figure


def success_curves(runs_by_name: dict[str, list[Run]], rollouts: int) -> Figure:
    """Mean success with its 95 % band over the rollouts spent, one line per method."""
    figure = Figure(figsize=(6.8, 3.9), layout="constrained")
    ax = figure.subplots()
    looks = zip(_STYLES, ("//", "..", "xx", "++"), runs_by_name.items(), strict=False)
    for (colour, line, marker), hatch, (name, runs) in looks:
        mean, low, high = mean_and_interval(runs)
        spent = [rollouts * i for i in range(len(mean))]
        every = max(1, len(mean) // 10)
        label = f"{name}, {len(runs)} seeds"
        ax.plot(spent, mean, color=colour, linestyle=line, marker=marker, markevery=every, linewidth=2, label=label)
        ax.fill_between(spent, low, high, facecolor=colour, alpha=0.15, edgecolor=colour, hatch=hatch, linewidth=0.3)
    ax.set(xlabel="rollouts spent (completions)", ylabel="exact success (share of completions)", ylim=(0, 1.03))
    ax.set_title("Same policy network, same rollouts: mean and 95 % band")
    ax.legend(loc="lower right")
    return figure


def memory_bars(rows: list[dict[str, object]], title: str) -> Figure:
    """Bytes by part as stacked bars, in GiB."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    regimes = {"full": "full fine-tuning", "lora": "LoRA r = 64, bf16 base", "qlora": "LoRA r = 64, NF4 base"}
    parts = {"policy": ("#12385c", ""), "reference": ("#dddddd", "///"), "value": ("#c05a00", "\\\\\\"),
             "gradients": ("#9ec1df", "..."), "Adam": ("#f1e3c4", "xx")}
    for ax, (regime, label) in zip(figure.subplots(1, 3), regimes.items(), strict=True):
        chosen = [row for row in rows if row["regime"] == regime]
        names, floor = [str(row["method"]).upper() for row in chosen], [0.0] * len(chosen)
        for part, (colour, hatch) in parts.items():
            sizes = [row[part] for row in chosen]
            ax.bar(names, sizes, bottom=floor, color=colour, hatch=hatch, edgecolor="#333333", linewidth=0.6,
                   label=part, width=0.6)
            floor = [a + b for a, b in zip(floor, sizes, strict=True)]
        for name, total in zip(names, floor, strict=True):
            ax.text(name, total * 1.01, f"{total:.1f}", ha="center", va="bottom", fontsize=9)
        ax.set(title=label, ylabel="GiB" if regime == "full" else "", ylim=(0, max(floor) * 1.12))
    figure.axes[-1].legend(fontsize=8, loc="upper right")
    figure.suptitle(title + " (each panel has its own scale)")
    return figure
