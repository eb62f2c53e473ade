"""The group of four that notebook 01 carries from reward to gradient step.

A policy small enough to print: four words, and a table of logits that says which word follows which. Row 0 is the
start, row 1 + i follows word i. It answers the slides' riddle "I have streets, but no pavement…" (a map).

Axes: G = 4 completions, T = 3 tokens at most, V = 4 words.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORDS = ("a", "map", "piano", "<end>")
COMPLETIONS = ("a map <end>", "map <end>", "a piano <end>", "piano <end>")
_TABLE = [
    [0.50, 0.15, 0.30, 0.05],  # first word
    [0.05, 0.35, 0.55, 0.05],  # after "a"
    [0.10, 0.05, 0.05, 0.80],  # after "map"
    [0.10, 0.05, 0.05, 0.80],  # after "piano"
]


def old_policy() -> Tensor:
    """Logits of the policy that sampled the group, shape (V, V), because nothing follows <end>; it prefers "piano"."""
    return torch.tensor(_TABLE).log()


def token_ids() -> tuple[Tensor, Tensor]:
    """The four completions as ids (padded with <end>) and their mask, shapes (G, T)."""
    rows = [[WORDS.index(word) for word in text.split()] for text in COMPLETIONS]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [len(WORDS) - 1] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def states(ids_GT: Tensor) -> Tensor:
    """The table row that each token is drawn from: 0 at the start, 1 + previous word afterwards, shape (G, T)."""
    rows = torch.cat([torch.zeros_like(ids_GT[:, :1]), 1 + ids_GT[:, :-1]], dim=1)
    return rows.clamp(max=len(WORDS) - 1)  # what follows <end> is padding: any row will do


def logprobs(logits: Tensor, ids_GT: Tensor) -> Tensor:
    """log π of each token, shape (G, T)."""
    return torch.log_softmax(logits, -1)[states(ids_GT), ids_GT]


def rewards(texts: tuple[str, ...] = COMPLETIONS) -> Tensor:
    """1 if the answer says "map" and not "piano", else 0, shape (G,)."""
    return torch.tensor([float("map" in text.split() and "piano" not in text.split()) for text in texts])


def success(logits: Tensor, beginning: tuple[str, ...] = ()) -> float:
    """The exact chance that a completion is rewarded, given how it begins: V of that beginning, by the true policy.

    `logits` has shape (V, V). A completion that reaches three words without <end> is graded as it is.
    """
    if len(beginning) == 3 or "<end>" in beginning:
        return rewards((" ".join(beginning),)).item()
    row = 1 + WORDS.index(beginning[-1]) if beginning else 0
    chances = torch.softmax(logits[row], -1).tolist()
    return sum(c * success(logits, (*beginning, word)) for c, word in zip(chances, WORDS, strict=True))
