"""Log-likelihoods of answers: what a policy finds likely, independent of the form of its answers.

The choices of a question share its text, and questions share a system prompt. On a CPU a Llama reads a batch of them as
one prefix tree (`engine.tree`), so that what is shared is computed once, and the head computes only the positions that
predict an answer's token. Other models, and GPUs, take padded rows.

Tokens are cut as in lm-evaluation-harness 0.4.13 (`_encode_pair`): context and whole text are tokenised, the answer's
tokens are those of the whole behind as many as the context has; white space at the context's end goes to the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from problama_utils import CourseError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_AT_ONCE = 3072  # upper bound of a batch's tree nodes; larger ones are no faster on a CPU and take more memory
HEAD_ROWS = 256  # rows of logits held at once: 50 MB in fp32 for a vocabulary of 49,152
PADDED_ROWS = 32  # rows of a padded batch

Pair = tuple[list[int], list[int]]  # token ids of context and continuation


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """Return the token ids of a context and of its continuation, cut as in lm-evaluation-harness.

    Raises:
        ValueError: a context without a character (its first token would be predicted from nothing).
    """
    if not context.strip():
        raise ValueError("The context is empty: there is nothing to predict the continuation from.")
    # with the tokenizer's own beginning-of-sequence token unless the text already has it
    begins = bool(tokenizer.bos_token) and context.startswith(tokenizer.bos_token)
    whole, head = (tokenizer(text, add_special_tokens=not begins)["input_ids"]
                   for text in (context + continuation, context.rstrip()))
    return head, whole[len(head) :]


def text_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[float]:
    """Return log p(continuation | context) in nats for each `(context, continuation)` pair, summed over its tokens.

    Pairs with one context share its computation. The model is left in evaluation mode.

    Raises:
        CourseError: a sum is no finite number, so the model's weights are broken.
    """
    import torch

    encoded = [encode_pair(tokenizer, context, continuation) for context, continuation in pairs]
    model.eval()
    parts = llama_for_cpu(model)
    scores = [0.0] * len(pairs)
    for rows in _batches(encoded):
        batch = [encoded[row] for row in rows]
        with torch.inference_mode():
            found = _padded_scores(model, batch) if parts is None else _tree_scores(parts, batch)
        for row, score in zip(rows, found, strict=True):
            if not math.isfinite(score):
                from problama_utils.engine.layers import not_finite

                raise not_finite(model, f"the log-likelihood of text {row + 1} of {len(pairs)} is {score}")
            scores[row] = score
    return scores


def llama_for_cpu(model: PreTrainedModel):
    """Return the model's `LlamaParts` where the shared-prefix code is the faster way (a Llama on a CPU), else None."""
    from problama_utils.engine.layers import UnsupportedModelError, llama_parts

    if model.device.type != "cpu":
        return None
    try:
        return llama_parts(model)
    except UnsupportedModelError:
        return None


def per_character(scores: Sequence[float], choices: Sequence[str]) -> list[float]:
    """Return scores divided by the choices' lengths in characters, as the harness does for `acc_norm`."""
    return [score / max(1, len(choice)) for score, choice in zip(scores, choices, strict=True)]


def likeliest(scores: Sequence[float]) -> int:
    """Return the index of the highest score; of equal ones the first, as numpy's argmax does.

    Raises:
        CourseError: a score is no finite number; comparing NaN would choose the first option and look like an answer.
    """
    if not all(map(math.isfinite, scores)):
        raise CourseError(f"The scores {list(scores)} are not all finite numbers, so none of them is the highest: the "
                          "model or adapter that gave them is broken, load another one.")
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def _batches(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Cut the pairs into batches of similar length, those of one context side by side."""
    order = sorted(range(len(pairs)), key=lambda row: (len(pairs[row][0]), pairs[row][0], len(pairs[row][1])))
    batch: list[int] = []
    filled, previous = 0, None
    for row in order:
        context, continuation = pairs[row]
        new = len(continuation) + (len(context) if context != previous else 0)
        if batch and filled + new > TOKENS_AT_ONCE and context != previous:
            yield batch
            batch, filled = [], 0
        batch.append(row)
        filled, previous = filled + new, context
    if batch:
        yield batch


def _tree_scores(parts, batch: Sequence[Pair]) -> list[float]:
    """Score a batch as one prefix tree; an answer's last token predicts nothing, so it is not even computed."""
    import torch

    from problama_utils.engine.layers import tree_hidden
    from problama_utils.engine.tree import pack_rows

    tree = pack_rows([context for context, _ in batch], [continuation[:-1] for _, continuation in batch])
    hidden = tree_hidden(parts, tree)
    nodes, targets, owner = [], [], []
    for row, ((context, continuation), path) in enumerate(zip(batch, tree.paths, strict=True)):
        nodes += path[len(context) - 1 :][: len(continuation)]
        targets += continuation
        owner += [row] * len(continuation)
    used, where = torch.tensor(nodes).unique(return_inverse=True)
    logprobs = _target_logprobs(parts.head, hidden[used.to(hidden.device)], where, torch.tensor(targets))
    sums = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, torch.tensor(owner), logprobs.double())
    return sums.tolist()


def _target_logprobs(head, rows_RD: torch.Tensor, row_of_C: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """Return log p of C target tokens, each predicted by one of R hidden states; softmax in fp32."""
    import torch

    logprobs = torch.empty(len(targets_C))
    for first in range(0, len(rows_RD), HEAD_ROWS):
        logits = head(rows_RD[first : first + HEAD_ROWS]).float()
        here = torch.nonzero((row_of_C >= first) & (row_of_C < first + HEAD_ROWS))[:, 0]
        row = row_of_C[here] - first
        logprobs[here] = (logits[row, targets_C[here]] - logits.logsumexp(-1)[row]).cpu()
    return logprobs


def _padded_scores(model: PreTrainedModel, batch: Sequence[Pair]) -> list[float]:
    """Score a batch row by row of a padded matrix, through the model's own forward pass."""
    import torch

    scores = []
    for start in range(0, len(batch), PADDED_ROWS):
        rows = batch[start : start + PADDED_ROWS]
        width = max(len(context) + len(continuation) for context, continuation in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for row, (context, continuation) in enumerate(rows):  # right padding: causal attention never looks there
            ids[row, : len(context) + len(continuation)] = torch.tensor([*context, *continuation])
        first = min(len(context) for context, _ in rows)  # logits before the shortest context's end are never read
        logits = model(ids.to(model.device), logits_to_keep=width - first + 1).logits
        for row, (context, continuation) in enumerate(rows):
            begin = len(context) - first
            log_p = logits[row, begin : begin + len(continuation)].float().log_softmax(-1)
            target = torch.tensor(continuation, device=log_p.device)
            scores.append(log_p.gather(-1, target[:, None]).sum().item())
    return scores
