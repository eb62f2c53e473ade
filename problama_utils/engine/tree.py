"""Ragged rollouts to tensors: plain padding (the reference) and shared-prefix packing (the fast way).

A GRPO batch repeats itself: all P prompts begin with the same system turn and examples, and each prompt is repeated
before all G of its completions. Padding computes every copy. Packing writes the batch as a *prefix tree*: one node per
distinct (prefix, token) pair, each node once, its position the depth in the tree, its attention limited to its own
ancestors. A node then sees exactly what the same token sees in its padded row, so this is not an approximation.

Letters: P prompts, G completions per prompt, B = P·G rows, T completion tokens, N tree nodes.

Which nodes may attend to which is an N × N mask (`tree_mask`), nearly empty. A batch is therefore cut by prompts, and
large groups by rows: `PackedTree.levels` lists blocks of queries that share their keys, so the largest mask is a
block's, and the cost grows in proportion to the number of rows instead of its square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

BLOCK_NODES = 256  # a block of more queries than this is cut by rows: past it, masked pairs cost more than calls


@dataclass(frozen=True)
class PaddedBatch:
    """B rows of L = longest prompt + longest completion tokens; prompts end and completions begin in one column."""

    input_ids_BL: torch.Tensor  # int64
    attention_mask_BL: torch.Tensor  # int64, 1 = a real token
    completion_length: int  # T, the last T columns


@dataclass(frozen=True)
class AttentionLevel:
    """K blocks of the tree, padded to a common size, whose attention is one batched product.

    A block's queries are nodes of its own; its keys are those nodes and all their ancestors.
    """

    queries_KQ: torch.Tensor  # int64 node of each query; padding repeats node 0
    query_is_real_KQ: torch.Tensor  # bool
    keys_KS: torch.Tensor  # int64 node of each key; padding repeats node 0
    blocked_KQS: torch.Tensor  # bool, True = the query must not see the key


@dataclass(frozen=True)
class PackedTree:
    """A batch as one sequence of N nodes in which parents precede their children."""

    tokens_N: torch.Tensor  # int64
    positions_N: torch.Tensor  # int64, the depth: a root token has position 0
    parents_N: torch.Tensor  # int64, -1 for a root
    levels: tuple[AttentionLevel, ...]
    paths: tuple[tuple[int, ...], ...]  # the nodes of each row, first token to last
    scored_nodes_C: torch.Tensor  # int64, the distinct nodes that are completion tokens of some row
    predictors_R: torch.Tensor  # int64, the distinct parents of the scored nodes: only these need logits
    predictor_of_C: torch.Tensor  # int64, which of the R predicts each scored node
    score_index_BT: torch.Tensor  # int64, which of the C is row b's token t; -1 = padding

    @property
    def size(self) -> int:
        """N."""
        return self.tokens_N.numel()

    def to_rows(self, values_C: torch.Tensor) -> torch.Tensor:
        """Spread one value per scored node over the rows that contain it: (C,) → (B, T), 0 at padding."""
        index = self.score_index_BT.to(values_C.device)
        real = index >= 0
        rows = values_C.new_zeros(index.shape)
        return rows.masked_scatter(real, values_C.index_select(0, index[real]))


def pad_rows(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_token_id: int
) -> PaddedBatch:
    """Pad prompts on the left and completions on the right, as TRL does.

    Args:
        prompts: B token lists (a prompt is repeated before each of its completions).
        completions: B token lists.
        pad_token_id: fills the gaps; masked, so any id will do.

    Raises:
        ValueError: not one prompt for each completion.

    >>> pad_rows([[5, 6], [7]], [[8], [9, 3]], 0).input_ids_BL.tolist()
    [[5, 6, 8, 0], [0, 7, 9, 3]]
    """
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts for {len(completions)} completions: give each completion its prompt.")
    left, right = max(map(len, prompts)), max(map(len, completions))
    ids = torch.full((len(prompts), left + right), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        span = slice(left - len(prompt), left + len(completion))
        ids[row, span] = torch.tensor([*prompt, *completion], dtype=torch.long)
        mask[row, span] = 1
    return PaddedBatch(ids, mask, right)


def pack_padded(input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor, completion_length: int) -> PackedTree:
    """Pack a padded batch as TRL hands it over; padding may be on either side, or between prompt and completion.

    Args:
        input_ids_BL: int64 (B, L).
        attention_mask_BL: (B, L), non-zero at real tokens.
        completion_length: T; the last T columns are completions.

    Returns:
        The tree; `to_rows` gives values of shape (B, T).
    """
    split = input_ids_BL.shape[1] - completion_length
    ids, real = input_ids_BL.tolist(), attention_mask_BL.bool().tolist()
    prompts, completions, columns = [], [], []
    for tokens, keep in zip(ids, real, strict=True):
        prompts.append([token for token, kept in zip(tokens[:split], keep[:split], strict=True) if kept])
        columns.append([column for column in range(completion_length) if keep[split + column]])
        completions.append([tokens[split + column] for column in columns[-1]])
    return pack_rows(prompts, completions, columns=columns, width=completion_length)


def pack_rows(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    columns: Sequence[Sequence[int]] | None = None,
    width: int | None = None,
    block_nodes: int = BLOCK_NODES,
) -> PackedTree:
    """Pack B prompt + completion rows as a prefix tree.

    Args:
        prompts: B token lists, none empty.
        completions: B token lists; an empty one scores nothing.
        columns: B lists: the column of (B, T) that each completion token reports to; default 0, 1, 2, …
        width: T; default the longest completion.
        block_nodes: queries per attention block, at most, where rows allow it.

    Raises:
        ValueError: an empty prompt (its first completion token would have nothing to be predicted from).

    >>> tree = pack_rows([[5, 6]] * 2, [[7, 8], [7, 9]])
    >>> tree.tokens_N.tolist(), tree.positions_N.tolist()
    ([5, 6, 7, 8, 9], [0, 1, 2, 3, 3])
    """
    if not all(map(len, prompts)):
        raise ValueError("A prompt is empty: every row needs at least one token to predict its first completion token.")
    # in sorted order the same rows give the same tree, hence the same rounding, however they were shuffled
    order = sorted(range(len(prompts)), key=lambda row: (list(prompts[row]), list(completions[row])))
    tokens, parents, depths, grown = _grow_tree([prompts[row] for row in order], [completions[row] for row in order])
    paths = [path for _, path in sorted(zip(order, grown, strict=True))]
    prompt_ends = [path[len(prompt) - 1] for path, prompt in zip(paths, prompts, strict=True)]
    levels = _attention_levels(parents, paths, prompt_ends, block_nodes)

    width = max(map(len, completions), default=0) if width is None else width
    slots: dict[int, int] = {}
    score_index = np.full((len(paths), width), -1, dtype=np.int64)
    for row, (path, prompt) in enumerate(zip(paths, prompts, strict=True)):
        scored = path[len(prompt) :]
        places = range(len(scored)) if columns is None else columns[row]
        for column, node in zip(places, scored, strict=True):
            score_index[row, column] = slots.setdefault(node, len(slots))
    scored_nodes = np.fromiter(slots, dtype=np.int64, count=len(slots))
    predictors, predictor_of = np.unique(np.asarray(parents)[scored_nodes], return_inverse=True)
    return PackedTree(
        torch.tensor(tokens), torch.tensor(depths), torch.tensor(parents), levels, tuple(map(tuple, paths)),
        torch.from_numpy(scored_nodes), torch.from_numpy(predictors), torch.from_numpy(predictor_of.reshape(-1)),
        torch.from_numpy(score_index),
    )  # fmt: skip


def tree_mask(tree: PackedTree) -> torch.Tensor:
    """Return the dense (N, N) mask, True where a node may attend: to itself and its ancestors.

    It is what the blocks of `tree.levels` add up to; for tests, figures and models without a block attention.
    """
    mask = torch.zeros(tree.size, tree.size, dtype=torch.bool)
    for node, parent in enumerate(tree.parents_N.tolist()):
        if parent >= 0:
            mask[node] = mask[parent]
        mask[node, node] = True
    return mask


def _grow_tree(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[list[int], list[int], list[int], list[list[int]]]:
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    children: dict[tuple[int, int], int] = {}
    paths = []
    for prompt, completion in zip(prompts, completions, strict=True):
        node, path = -1, []
        for depth, token in enumerate([*prompt, *completion]):
            child = children.setdefault((node, token), len(tokens))
            if child == len(tokens):
                tokens.append(token)
                parents.append(node)
                depths.append(depth)
            node = child
            path.append(child)
        paths.append(path)
    return tokens, parents, depths, paths


def _attention_levels(
    parents: list[int], paths: list[list[int]], prompt_ends: list[int], block_nodes: int
) -> tuple[AttentionLevel, ...]:
    """Cut the tree into blocks: what several prompts share, what several cuts of one group share, and the rest."""
    group_of = _owners(paths, prompt_ends)  # None = several prompts pass through
    chunks = _cut_groups(paths, prompt_ends, group_of, block_nodes)
    chunk_of = _owners(paths, chunks)
    blocks: dict[tuple[int, int | None], list[int]] = {}
    for node in range(len(parents)):
        if group_of[node] is None:
            key = (0, None)
        elif chunk_of[node] is None:
            key = (1, group_of[node])
        else:
            key = (2, chunk_of[node])
        blocks.setdefault(key, []).append(node)
    by_level: dict[int, list[list[int]]] = {}
    for (level, _), nodes in sorted(blocks.items(), key=lambda item: item[0][0]):
        by_level.setdefault(level, []).append(nodes)
    return tuple(_level(parents, level_blocks) for level_blocks in by_level.values())


def _owners(paths: list[list[int]], labels: Sequence[int]) -> dict[int, int | None]:
    owners: dict[int, int | None] = {}
    for path, label in zip(paths, labels, strict=True):
        for node in path:
            if owners.setdefault(node, label) != label:
                owners[node] = None
    return owners


def _cut_groups(
    paths: list[list[int]], prompt_ends: list[int], group_of: dict[int, int | None], block_nodes: int
) -> list[int]:
    """Return a chunk number per row: rows of one prompt stay together until their own nodes exceed `block_nodes`."""
    sizes: dict[int, int] = {}
    for group in group_of.values():
        if group is not None:
            sizes[group] = sizes.get(group, 0) + 1
    chunk_of_row, current, filled, seen = [], {}, {}, set()
    for path, end in zip(paths, prompt_ends, strict=True):
        fresh = [node for node in path if group_of[node] is not None and node not in seen]
        seen.update(fresh)
        crowded = sizes.get(end, 0) > block_nodes and filled.get(end, 0) + len(fresh) > block_nodes
        if end not in current or (crowded and filled[end]):
            current[end] = len(set(chunk_of_row)) if chunk_of_row else 0
            filled[end] = 0
        filled[end] += len(fresh)
        chunk_of_row.append(current[end])
    return chunk_of_row


def _level(parents: list[int], blocks: list[list[int]]) -> AttentionLevel:
    contexts = [_context(parents, nodes) for nodes in blocks]
    longest_q = max(map(len, blocks))
    longest_s = max(len(context) + len(nodes) for context, nodes in zip(contexts, blocks, strict=True))
    queries = np.zeros((len(blocks), longest_q), dtype=np.int64)
    real = np.zeros((len(blocks), longest_q), dtype=bool)
    keys = np.zeros((len(blocks), longest_s), dtype=np.int64)
    allowed = np.zeros((len(blocks), longest_q, longest_s), dtype=bool)
    for number, (context, nodes) in enumerate(zip(contexts, blocks, strict=True)):
        column = {node: place for place, node in enumerate([*context, *nodes])}
        sees: dict[int, np.ndarray] = {}
        for node, place in column.items():
            row = sees[parents[node]].copy() if parents[node] in column else np.zeros(longest_s, dtype=bool)
            row[place] = True
            sees[node] = row
        queries[number, : len(nodes)] = nodes
        real[number, : len(nodes)] = True
        keys[number, : len(column)] = list(column)
        allowed[number, : len(nodes)] = np.stack([sees[node] for node in nodes])
        allowed[number, len(nodes) :, 0] = True  # a padded query needs one key, or its softmax is 0 / 0
    return AttentionLevel(*(torch.from_numpy(part) for part in (queries, real, keys, ~allowed)))


def _context(parents: list[int], nodes: list[int]) -> list[int]:
    """Return the ancestors of a block that lie outside it, parents first."""
    inside, context = set(nodes), set()
    for node in nodes:
        above = parents[node]
        while above >= 0 and above not in inside and above not in context:
            context.add(above)
            above = parents[above]
    return sorted(context)
