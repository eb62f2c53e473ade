"""The two training loops of the slides, redrawn: which boxes PPO needs and which of them GRPO does without."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

_WIDTH = 11.6  # of a diagram, in axes units
# Readable in greyscale: a trained model has a thick edge, a frozen one is hatched, data has no fill.
_LOOKS = {
    "trained": dict(facecolor="#cfe3f5", edgecolor="#12385c", linewidth=2.6),
    "frozen": dict(facecolor="#eeeeee", edgecolor="#777777", linewidth=1.2, hatch="///"),
    "rule": dict(facecolor="#fff4d6", edgecolor="#8a6100", linewidth=1.4, linestyle="--"),
    "data": dict(facecolor="white", edgecolor="#333333", linewidth=1.0),
}


@dataclass(frozen=True)
class Box:
    """A box of a diagram: centre, size (axes units) and its text."""

    text: str
    x: float
    y: float
    kind: str = "data"
    width: float = 1.7
    height: float = 0.8

    def edge(self, side: str) -> tuple[float, float]:
        """The middle of a side: "left", "right", "top" or "bottom"."""
        dx, dy = {"left": (-1, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, -1)}[side]
        return self.x + dx * self.width / 2, self.y + dy * self.height / 2


def training_using_ppo() -> Figure:
    """PPO: three models beside the reward, two of them trained."""
    boxes = {
        "prompt": Box("prompt\n$q$", 0.9, 3.2, width=1.2),
        "policy": Box("policy\n$\\pi_\\theta$", 2.9, 3.2, "trained", 1.4),
        "output": Box("completion\n$o$, $T$ tokens", 5.0, 3.2),
        "reference": Box("reference\n$\\pi_{ref}$", 7.3, 4.6, "frozen"),
        "reward": Box("reward\nchecked answer", 7.3, 3.2, "rule", 1.9),
        "value": Box("value model\n$V(s_t)$", 7.3, 1.8, "trained"),
        "rewards": Box("$r_t$: reward at the end,\n$-\\beta\\,$KL per token", 9.9, 3.9, width=2.3),
        "gae": Box("GAE\n$A_t$ per token", 9.9, 2.1, "rule", 2.0),
    }
    figure, ax = _diagram("Training using PPO", boxes, height=5.2)
    for start, end in [
        (("prompt", "right"), ("policy", "left")), (("policy", "right"), ("output", "left")),
        (("output", "right"), ("reference", "left")), (("output", "right"), ("reward", "left")),
        (("output", "right"), ("value", "left")), (("reference", "right"), ("rewards", "top")),
        (("reward", "right"), ("rewards", "left")), (("value", "right"), ("gae", "left")),
        (("rewards", "bottom"), ("gae", "top")),
    ]:  # fmt: skip
        _arrow(ax, boxes[start[0]].edge(start[1]), boxes[end[0]].edge(end[1]))
    _elbow(ax, boxes["gae"].edge("bottom"), boxes["policy"].edge("bottom"), 0.75,
           "policy: clipped objective, weighed by $A_t$")
    _elbow(ax, (10.4, 1.7), (7.3, 1.4), 1.1, "")
    _note(ax, 8.8, 1.16, "value: squared error")
    _legend(ax)
    return figure


def training_using_grpo() -> Figure:
    """GRPO: the group replaces the value model."""
    boxes = {
        "prompt": Box("prompt\n$q$", 0.9, 3.2, width=1.2),
        "policy": Box("policy\n$\\pi_\\theta$", 2.9, 3.2, "trained", 1.4),
        "reference": Box("reference\n$\\pi_{ref}$", 7.3, 5.0, "frozen"),
        "kl": Box("KL penalty $\\beta\\,$KL", 9.9, 5.0, width=2.0, height=0.6),
    }
    heights = {"1": 4.15, "2": 3.52, "dots": 2.89, "G": 2.26}
    for row, y in heights.items():
        for letter, x, width in (("o", 4.9, 0.9), ("r", 8.6, 0.8), ("A", 11.05, 0.8)):
            text = "$\\dots$" if row == "dots" else f"${letter}_{row}$"
            boxes[f"{letter}_{row}"] = Box(text, x, y, width=width, height=0.48)
    boxes["reward"] = Box("reward\nchecked\nanswer", 6.8, 3.2, "rule", 1.4, 2.4)
    boxes["group"] = Box("$\\dfrac{r-\\mathrm{mean}}{\\mathrm{std}}$", 9.85, 3.2, "rule", 0.95, 2.4)
    figure, ax = _diagram("GRPO: the group replaces the value model", boxes, height=6.1)
    _arrow(ax, boxes["prompt"].edge("right"), boxes["policy"].edge("left"))
    for row, y in heights.items():
        _arrow(ax, boxes["policy"].edge("right"), boxes[f"o_{row}"].edge("left"))
        _arrow(ax, boxes[f"o_{row}"].edge("right"), (6.1, y))
        _arrow(ax, (7.5, y), boxes[f"r_{row}"].edge("left"))
        _arrow(ax, boxes[f"r_{row}"].edge("right"), (9.375, y))
        _arrow(ax, (10.325, y), boxes[f"A_{row}"].edge("left"))
    _arrow(ax, boxes["o_1"].edge("top"), boxes["reference"].edge("left"))
    _arrow(ax, boxes["reference"].edge("right"), boxes["kl"].edge("left"))
    _elbow(ax, boxes["A_G"].edge("bottom"), boxes["policy"].edge("bottom"), 1.2,
           "clipped objective: $A_i$ weighs every token of $o_i$")
    _elbow(ax, boxes["kl"].edge("top"), boxes["policy"].edge("top"), 5.62, "")
    _note(ax, 6.0, 5.66, "the penalty goes straight into the loss, not into the reward")
    _legend(ax)
    return figure


def _diagram(title: str, boxes: dict[str, Box], height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10.4, 0.92 * height))
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.9))
    ax.set(xlim=(0, _WIDTH), ylim=(0, height))
    ax.axis("off")
    figure.suptitle(title, fontsize=14, fontweight="bold", y=0.975)
    for box in boxes.values():
        corner = box.x - box.width / 2, box.y - box.height / 2
        _patch(ax, corner, box.width, box.height, box.kind, 0.08)
        backing = dict(facecolor="white", edgecolor="none", pad=1.5) if box.kind == "frozen" else None
        ax.text(box.x, box.y, box.text, ha="center", va="center", fontsize=10, bbox=backing)
    return figure, ax


def _patch(ax: Axes, corner: tuple[float, float], width: float, height: float, kind: str, rounding: float) -> None:
    style = f"round,pad=0,rounding_size={rounding}"
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, **_LOOKS[kind]))


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    look = dict(arrowstyle="-|>", mutation_scale=12, color="#333333", shrinkA=1, shrinkB=1, linewidth=1.2)
    ax.add_patch(FancyArrowPatch(start, end, **look))


def _elbow(ax: Axes, start: tuple[float, float], end: tuple[float, float], level: float, label: str) -> None:
    """An arrow that goes down (or up) to a level, along it, and back: the way of the gradient."""
    ax.plot([start[0], start[0], end[0]], [start[1], level, level], color="#333333", linewidth=1.2)
    _arrow(ax, (end[0], level), end)
    _note(ax, (start[0] + end[0]) / 2 - 0.6, level + 0.05, label)


def _note(ax: Axes, x: float, y: float, text: str) -> None:
    ax.text(x, y, text, ha="center", va="bottom", fontsize=8.5)


def _legend(ax: Axes) -> None:
    x = 0.5
    for kind, text in [("trained", "trained"), ("frozen", "frozen"), ("rule", "plain computation"), ("data", "data")]:
        _patch(ax, (x, 0.12), 0.4, 0.26, kind, 0.05)
        ax.text(x + 0.5, 0.25, text, va="center", fontsize=8.5)
        x += _WIDTH / 5
