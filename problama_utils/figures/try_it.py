"""Notebook 01's panel: move ε, β, the step and four rewards, see ratios, advantages, objective and gradient arrows.

The figure is the content, the widgets an extra: `show_panel` sends both in one output, so that a page without
a kernel (print, GitHub, a test run) shows the figure of the default settings instead of an empty frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from problama_utils.figures import four_rollouts
from problama_utils.figures.curves import png
from problama_utils.grpo.advantages import group_advantages
from problama_utils.grpo.losses import grpo_loss, kl_estimate, ppo_clip_objective


@dataclass(frozen=True)
class Knobs:
    """What the panel's sliders set."""

    rewards: tuple[float, float, float, float] = (1.0, 1.0, 0.0, 0.0)
    epsilon: float = 0.2  # clip range
    beta: float = 0.04  # weight of the KL penalty, 0 = off
    step: float = 1.0  # learning rate of each plain gradient step
    iterations: int = 3  # gradient steps on the same four rollouts


def after_steps(knobs: Knobs) -> dict[str, Tensor]:
    """Take the gradient steps on the group of four.

    Returns:
        "advantages" (G,), "ratios", "objective", "slopes" (derivative of the objective by the ratio) and "mask" (G, T),
        "logits" after the steps (V, V), and the scalars "kl" (k3, mean over real tokens) and "mean objective".
    """
    ids, mask = four_rollouts.token_ids()
    advantages = group_advantages(torch.tensor(knobs.rewards))
    logits = four_rollouts.old_policy().requires_grad_()
    old = four_rollouts.logprobs(logits, ids).detach()
    options = dict(ref_logprobs=old, beta=knobs.beta, epsilon=knobs.epsilon)
    for _ in range(knobs.iterations):
        loss = grpo_loss(four_rollouts.logprobs(logits, ids), old, advantages, mask, **options)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - knobs.step * gradient).detach().requires_grad_()
    now = four_rollouts.logprobs(logits, ids).detach()
    ratios = (now - old).exp().requires_grad_()
    objective = ppo_clip_objective(ratios.log(), torch.zeros_like(old), advantages[:, None], knobs.epsilon)
    (slopes,) = torch.autograd.grad(objective.sum(), ratios)
    return {
        "advantages": advantages,
        "ratios": ratios.detach(),
        "objective": objective.detach(),
        "slopes": slopes,
        "mask": mask,
        "logits": logits.detach(),
        "kl": (kl_estimate(now, old) * mask).sum() / mask.sum(),
        "mean objective": -grpo_loss(now, old, advantages, mask, **options),
    }


def draw(knobs: Knobs | None = None) -> Figure:
    """Left: the four advantages. Right: each token's ratio and objective, an arrow where the gradient still pulls."""
    knobs = knobs or Knobs()
    state = after_steps(knobs)
    figure = Figure(figsize=(10.2, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.9))
    names = [f"{text}\nr = {r:g}" for text, r in zip(four_rollouts.COMPLETIONS, knobs.rewards, strict=True)]
    hatches = ["///" if a < 0 else "" for a in state["advantages"]]
    left.barh(names, state["advantages"], color="#9ec1df", hatch=hatches, edgecolor="#12385c")
    left.axvline(0, color="#333333", linewidth=0.8)
    left.invert_yaxis()
    left.set(xlabel="advantage A", title="Advantages")
    colours, markers = ("#12385c", "#4a7c3a", "#c05a00", "#7a4a8c"), "o^sD"
    for row, text in enumerate(four_rollouts.COMPLETIONS):
        real = state["mask"][row].bool()
        x, y, slopes = (state[name][row][real].tolist() for name in ("ratios", "objective", "slopes"))
        right.plot(x, y, markers[row], color=colours[row], markersize=7, label=text)
        for a, b, pull in zip(x, y, slopes, strict=True):
            if abs(pull) > 1e-6:
                arrow = dict(arrowstyle="-|>", color=colours[row], linewidth=1.3)
                right.annotate("", (a + 0.09 * pull, b), (a, b), arrowprops=arrow)
    for edge in (1 - knobs.epsilon, 1 + knobs.epsilon):
        right.axvline(edge, color="#777777", linestyle="--", linewidth=1)
    right.axvline(1, color="#333333", linestyle=":", linewidth=1)
    right.set(xlabel="ratio $\\pi_\\theta / \\pi_{old}$ of a token (dashed: 1 ± ε)",
              ylabel="clipped objective of the token")
    right.set_title("Tokens; an arrow shows where the gradient still pulls the ratio", fontsize=10.5)
    right.legend(fontsize=8, loc="best")
    before, after = (four_rollouts.success(x) for x in (four_rollouts.old_policy(), state["logits"]))
    figure.suptitle(
        f"ε = {knobs.epsilon:g}, β = {knobs.beta:g}, {knobs.iterations} steps of {knobs.step:g}: "
        f"objective {state['mean objective'].item():.3f}, KL {state['kl'].item():.3f}, "
        f"chance of a right answer {before:.3f} → {after:.3f}",
        fontsize=10.5,
    )
    return figure


def show_panel() -> None:
    """Show the panel; where widgets do not run, the same output holds the figure of the default settings."""
    from IPython.display import display

    bundle: dict[str, object] = {"image/png": png(draw()), "text/plain": "The panel at its default settings."}
    try:
        bundle |= _widgets()._repr_mimebundle_() | {"text/plain": bundle["text/plain"]}
    except ImportError:
        print("ipywidgets is not installed: this is the panel at its default settings (pip install ipywidgets).")
    display(bundle, raw=True)


def _widgets():
    """The sliders above an image that follows them."""
    import ipywidgets

    def slider(name: str, value: float, low: float, high: float, step: float):
        return ipywidgets.FloatSlider(value, min=low, max=high, step=step, description=name, continuous_update=False)

    default = Knobs()
    rewards = [slider(f"reward {i + 1}", r, 0.0, 2.0, 0.5) for i, r in enumerate(default.rewards)]
    others = [slider("ε", default.epsilon, 0.05, 0.5, 0.05), slider("β", default.beta, 0.0, 1.0, 0.02),
              slider("step", default.step, 0.0, 4.0, 0.25)]
    image = ipywidgets.Image(value=png(draw()), format="png")

    def redraw(_change: object) -> None:
        epsilon, beta, step = (s.value for s in others)
        image.value = png(draw(Knobs(tuple(s.value for s in rewards), epsilon, beta, step)))

    for control in rewards + others:
        control.observe(redraw, names="value")
    return ipywidgets.VBox([ipywidgets.HBox([ipywidgets.VBox(rewards), ipywidgets.VBox(others)]), image])
