"""Sample G completions per prompt: each distinct prompt is read once, its keys and values serve the whole group.

The stock way copies every prompt G times and lengthens its cache by concatenation at every token. Here the prompts are
packed as one prefix tree (what they share is computed once), a group attends to one copy of its prompt's cache, new
keys and values go into memory that is allocated once, and rows that have finished leave the batch.

A token is drawn by inverting the cumulative distribution: one uniform number per row, from torch's global generator
unless another is given, so a run that restores the generator's state repeats its rollouts.

Letters: P distinct prompts, B rows, S prompt tokens, T new tokens, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from problama_utils.engine.decoding import DecodingWeights
from problama_utils.engine.gradients import turn
from problama_utils.engine.layers import not_finite, rotary_tables, tree_hidden
from problama_utils.engine.tree import pack_rows

BLOCK_ROWS = 8  # rows that share one key buffer: more would spend their time on masked keys
BINS = 256  # the vocabulary is searched in two steps: which bin of 256 tokens, then which token


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the filters apply in the order temperature, top-k, top-p, as in transformers."""

    max_new_tokens: int
    temperature: float = 1.0  # logits are divided by it
    top_k: int = 0  # 0 = all tokens
    top_p: float = 1.0  # 1.0 = all tokens
    stop_token_ids: tuple[int, ...] = ()  # the completion ends with the first of them
    min_new_tokens: int = 0  # no stop token before this many
    greedy: bool = False  # the most likely token; nothing is drawn

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature > 0, "above 0 (for the most likely token set greedy=True)"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} = {getattr(self, name)!r}, but it must be {rule}.")


@dataclass(frozen=True)
class Rollout:
    """One completion."""

    token_ids: list[int]  # with its stop token, if it has one
    logprobs: list[float]  # of each token under the distribution it was drawn from, nats
    stopped: bool  # False = cut at max_new_tokens


def sample_completions(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    generator: torch.Generator | None = None,
    weights: DecodingWeights | None = None,
) -> list[Rollout]:
    """Return one completion for each of B prompts; repeat a prompt G times for a group.

    Args:
        model: a `LlamaForCausalLM`, plain, 4-bit or with LoRA; used as it is (mode, active adapter).
        prompts: B token lists; equal ones share their work in any order.
        sampling: how tokens are chosen.
        generator: source of randomness, on the CPU; None takes torch's global one.
        weights: the model's projections laid out for decoding, to be kept between calls; None lays them out here.

    Raises:
        UnsupportedModelError: not a Llama.
        ValueError: an empty prompt.
        CourseError: the logits are no finite numbers, so the model's weights are broken.
    """
    weights = DecodingWeights(model) if weights is None else weights
    with torch.no_grad(), torch.autocast(weights.parts.norm.weight.device.type, enabled=False):
        weights.refresh()
        decoder = _Decoder(weights, [tuple(prompt) for prompt in prompts], sampling, generator)
        try:
            return decoder.run()
        except FloatingPointError as error:
            raise not_finite(model, str(error)) from None


def filtered_logprobs(logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the log-probabilities to draw from, -inf where temperature, top-k and top-p leave nothing.

    Ties at the k-th value all stay, and top-p keeps the smallest set that reaches its mass (at least one token), both
    as in transformers.
    """
    logits = logits_BV.float()
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if sampling.top_p < 1.0:
        values, order = logits.sort(-1)  # ascending, so a cumulative sum tells what lies below a token
        remove = values.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        remove[:, -1] = False
        logits = logits.masked_fill(remove.scatter(-1, order, remove), float("-inf"))
    return logits.log_softmax(-1)


def draw(logprobs_BV: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw one token per row by inverting the cumulative distribution, in two steps of about √V each.

    Exact up to the rounding of fp64 sums; one uniform number per row instead of V exponential ones.
    """
    rows, vocabulary = logprobs_BV.shape
    p = logprobs_BV.exp()
    if vocabulary % BINS:
        p = F.pad(p, (0, BINS - vocabulary % BINS))
    p = p.view(rows, -1, BINS)
    bins = p.sum(-1, dtype=torch.float64).cumsum(-1)
    u = torch.rand(rows, 1, dtype=torch.float64, generator=generator).to(p.device) * bins[:, -1:]
    chosen = torch.searchsorted(bins, u, right=True).clamp_(max=bins.shape[1] - 1)
    below = torch.where(chosen > 0, bins.gather(1, (chosen - 1).clamp_(min=0)), 0.0)
    inside = p[torch.arange(rows, device=p.device), chosen[:, 0]].double().cumsum(-1)
    token = torch.searchsorted(inside, (u - below).clamp_(min=0), right=True)
    # rounding can push u past the last token with mass: step back to it
    last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
    return (chosen * BINS + torch.minimum(token, last))[:, 0]


class _Decoder:
    """One call's state: caches, the rows still running, and what each row has said.

    Rows of one prompt form blocks of at most BLOCK_ROWS. A block has one key buffer: its prompt's S tokens, then, step
    by step, one token of each of its rows. A row's mask lets it see the prompt and every BLOCK_ROWS-th key after it.
    """

    def __init__(
        self,
        weights: DecodingWeights,
        prompts: list[tuple[int, ...]],
        sampling: Sampling,
        generator: torch.Generator | None,
    ):
        self.weights, self.parts, self.sampling, self.generator = weights, weights.parts, sampling, generator
        self.device = self.parts.norm.weight.device
        self.said: list[list[int]] = [[] for _ in prompts]
        self.logprobs: list[list[float]] = [[] for _ in prompts]
        self.stops = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=self.device)
        self.distinct = sorted(set(prompts))
        self._seat([self.distinct.index(prompt) for prompt in prompts])

    def run(self) -> list[Rollout]:
        logits = self._prefill()
        for step in range(self.sampling.max_new_tokens):
            tokens = self._choose(logits, step)
            going = torch.nonzero(~torch.isin(tokens, self.stops))[:, 0]
            if not going.numel() or step + 1 == self.sampling.max_new_tokens:
                break
            if going.numel() < tokens.numel():
                self.rows, self.slots, self.lengths = self.rows[going.cpu()], self.slots[going], self.lengths[going]
            logits = self._forward(tokens[going], step)
        ends = set(self.sampling.stop_token_ids)
        return [
            Rollout(ids, logprobs, ids[-1] in ends) for ids, logprobs in zip(self.said, self.logprobs, strict=True)
        ]

    def _seat(self, prompt_of_row: list[int]) -> None:
        """Give every row a block and a place in it: `slots` is block · width + place."""
        members: list[list[int]] = [[] for _ in self.distinct]
        for row, prompt in enumerate(prompt_of_row):
            members[prompt].append(row)
        self.width = min(BLOCK_ROWS, max(map(len, members)))
        blocks = [
            (prompt, rows[start : start + self.width])
            for prompt, rows in enumerate(members)
            for start in range(0, len(rows), self.width)
        ]
        self.prompt_of_block = torch.tensor([prompt for prompt, _ in blocks])
        self.rows = torch.tensor([row for _, rows in blocks for row in rows])
        self.slots = torch.tensor(
            [block * self.width + place for block, (_, rows) in enumerate(blocks) for place in range(len(rows))],
            device=self.device,
        )

    def _prefill(self) -> torch.Tensor:
        """Read the distinct prompts as one tree, lay out the key buffers; return the next-token logits (B, V)."""
        parts, steps = self.parts, self.sampling.max_new_tokens
        tree = pack_rows(self.distinct, [()] * len(self.distinct))
        caches: list[tuple[torch.Tensor, torch.Tensor]] = []
        hidden = tree_hidden(parts, tree, caches)
        lengths = torch.tensor([len(prompt) for prompt in self.distinct])
        self.longest = int(lengths.max())
        paths = torch.zeros(len(lengths), self.longest, dtype=torch.long)
        for row, path in enumerate(tree.paths):
            paths[row, : len(path)] = torch.tensor(path)
        blocks = len(self.prompt_of_block)
        index = paths[self.prompt_of_block].reshape(-1).to(self.device)
        shape = (blocks, self.longest, parts.kv_heads, parts.head_dim)
        room = (blocks, parts.kv_heads, self.longest + steps * self.width, parts.head_dim)
        self.caches = []
        for cache in caches:
            buffers = [part.new_zeros(room) for part in cache]
            for buffer, part in zip(buffers, cache, strict=True):
                buffer[:, :, : self.longest] = part.index_select(0, index).view(shape).transpose(1, 2)
            self.caches.append(buffers)
        self.bias = self._bias(lengths, steps, hidden.dtype)
        prompt_of_row = self.prompt_of_block.to(self.device)[self.slots // self.width]
        self.lengths = lengths.to(self.device)[prompt_of_row]
        self.cos, self.sin = rotary_tables(parts, torch.arange(self.longest + steps, device=self.device))
        ends = torch.tensor([path[-1] for path in tree.paths], device=self.device)
        return self.weights.head(hidden.index_select(0, ends[prompt_of_row]))[0]

    def _bias(self, lengths: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
        """Return 0 or -inf per block, place and key: (blocks, 1, width · H/H_kv, S + T · width)."""
        own = torch.eye(self.width, dtype=torch.bool).repeat(1, steps)[None]
        own = own.expand(len(self.prompt_of_block), -1, -1)
        prompt = torch.arange(self.longest) < lengths[self.prompt_of_block, None]
        allowed = torch.cat([prompt[:, None].expand(-1, self.width, -1), own], -1)
        bias = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
        repeat = self.parts.heads // self.parts.kv_heads
        return bias.repeat_interleave(repeat, 1)[:, None].to(self.device)

    def _choose(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        sampling = self.sampling
        if step < sampling.min_new_tokens and self.stops.numel():
            logits = logits.index_fill(1, self.stops, float("-inf"))
        logprobs = filtered_logprobs(logits, sampling)
        # One NaN or +inf among a row's logits makes NaN of all its log-probabilities, so one column tells.
        if logprobs[:, 0].isnan().any():
            row = self.rows[logprobs[:, 0].isnan().cpu()][0]
            raise FloatingPointError(f"NaN or infinite at token {step + 1} of completion {row + 1}")
        tokens = logprobs.argmax(-1) if sampling.greedy else draw(logprobs, self.generator)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        for row, token, logprob in zip(self.rows.tolist(), tokens.tolist(), chosen, strict=True):
            self.said[row].append(token)
            self.logprobs[row].append(logprob)
        return tokens

    def _forward(self, tokens: torch.Tensor, step: int) -> torch.Tensor:
        """Run one token per row; return the next logits (B, V)."""
        parts, positions = self.parts, self.lengths + step
        cos, sin = self.cos[positions], self.sin[positions]
        heads = parts.heads + parts.kv_heads
        hidden = parts.embed(tokens)
        for layer, module, caches in zip(self.weights.layers, parts.layers, self.caches, strict=True):
            norm_1, qkv, out, norm_2, gate_up, down = layer
            q, k, v = qkv(_norm(hidden, norm_1))
            turned = turn(torch.cat([q, k], 1).view(-1, heads, parts.head_dim), cos, sin)
            q, k = turned.split((parts.heads, parts.kv_heads), 1)
            mixed = self._attend(q * module.self_attn.scaling, k, v.reshape(k.shape), caches, step)
            hidden = hidden + out(mixed)[0]
            gate, up = gate_up(_norm(hidden, norm_2))
            hidden = hidden + down(module.mlp.act_fn(gate) * up)[0]
        return self.weights.head(_norm(hidden, parts.norm))[0]

    def _attend(self, q, k, v, caches: list[torch.Tensor], step: int) -> torch.Tensor:
        """Write the step's keys and values, attend within the blocks; (B, H, d) → (B, H·d)."""
        kv_heads, dim, blocks = self.parts.kv_heads, self.parts.head_dim, len(self.prompt_of_block)
        begin, end = self.longest + step * self.width, self.longest + (step + 1) * self.width
        for buffer, new in zip(caches, (k, v), strict=True):
            buffer[:, :, begin:end] = self._to_blocks(new).view(blocks, self.width, kv_heads, dim).transpose(1, 2)
        keys, values = (buffer[:, :, :end].flatten(0, 1) for buffer in caches)
        grid = self._to_blocks(q).view(blocks, self.width, kv_heads, -1, dim).transpose(1, 2)
        scores = torch.bmm(grid.reshape(blocks * kv_heads, -1, dim), keys.transpose(1, 2))
        scores.view(blocks, kv_heads, -1, end).add_(self.bias[..., :end])
        mixed = torch.bmm(torch.softmax(scores, -1), values)
        mixed = mixed.view(blocks, kv_heads, self.width, -1).transpose(1, 2).reshape(blocks * self.width, -1)
        return mixed if len(self.slots) == len(mixed) else mixed.index_select(0, self.slots)

    def _to_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """(B, …) → (blocks · width, …); places without a running row hold zeros, which nobody else sees."""
        places = len(self.prompt_of_block) * self.width
        if len(self.slots) == places:
            return x
        return x.new_zeros(places, *x.shape[1:]).index_copy_(0, self.slots, x)


def _norm(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
