"""One picture of what shared-prefix packing saves: the padded rows beside the nodes that are left of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from problama_utils.engine.tree import pack_rows, pad_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABSENT, PADDING, PROMPT, COMPLETION = range(4)
LOOKS = {  # colour, hatch, legend: tones and hatches stay apart in greyscale
    PADDING: ("#ffffff", "....", "padding (computed, then masked)"),
    PROMPT: ("#9ecae1", "", "prompt token"),
    COMPLETION: ("#08519c", "", "completion token"),
    ABSENT: ("#ffffff", None, "is in a row above: not computed again"),
}


def draw_packing(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Figure:
    """Draw B rows twice: as padding computes them, and with only those tokens that packing computes.

    Args:
        prompts: B token lists; a prompt is repeated before each of its completions.
        completions: B token lists.

    Returns:
        The figure, its token counts in the titles.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    padded, packed = _cells(prompts, completions)
    computed = np.count_nonzero(packed != ABSENT)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.9 + 0.17 * len(prompts) + 1.2), sharey=True)
    _draw_rows(left, padded, f"padded rows: {padded.size:,} tokens")
    _draw_rows(right, packed, f"packed tree: {computed:,} tokens, {padded.size / computed:.1f} times fewer")
    left.set_ylabel("row of the batch (one completion each)")
    handles = [
        Patch(facecolor=face, edgecolor="0.5", hatch=hatch, label=label, linestyle=":" if hatch is None else "-")
        for face, hatch, label in LOOKS.values()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=8.5)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure


def _cells(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the kind of every cell, (B, L) twice: padded, and packed with each node in the first row that has it."""
    batch, tree = pad_rows(prompts, completions, 0), pack_rows(prompts, completions)
    split = batch.input_ids_BL.shape[1] - batch.completion_length
    padded = np.full(tuple(batch.input_ids_BL.shape), PADDING)
    packed = np.full(padded.shape, ABSENT)
    seen: set[int] = set()
    for row, (prompt, path) in enumerate(zip(prompts, tree.paths, strict=True)):
        for place, node in enumerate(path):
            column = split - len(prompt) + place
            padded[row, column] = PROMPT if column < split else COMPLETION
            if node not in seen:
                packed[row, column] = padded[row, column]
                seen.add(node)
    return padded, packed


def _draw_rows(axes: Axes, cells: np.ndarray, title: str) -> None:
    for kind, (face, hatch, _) in LOOKS.items():
        if kind == ABSENT:
            continue
        for row, line in enumerate(cells == kind):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
            spans = [(start, end - start) for start, end in edges.reshape(-1, 2)]
            axes.broken_barh(spans, (row + 0.08, 0.84), facecolor=face, hatch=hatch, edgecolor="0.5", linewidth=0.4)
    axes.set(title=title, xlabel="position (tokens)", xlim=(0, cells.shape[1]), ylim=(len(cells), 0))
