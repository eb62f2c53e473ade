"""Shared-prefix packing says the same as plain padding: same rows, same log-probabilities, same gradients."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llamas import PAD, SEVEN, tiny_llama, with_lora

from problama_utils.engine.layers import UnsupportedModelError, llama_parts, tree_hidden, tree_logprobs
from problama_utils.engine.tree import pack_padded, pack_rows, pad_rows, tree_mask

few_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6)  # three tokens only: prefixes coincide all the time
some_rows = st.lists(st.tuples(few_tokens, few_tokens), min_size=1, max_size=10)


def group_batch(seed, prompts, group, longest=6, shared=7):
    """`prompts` prompts with a common beginning and different lengths, `group` completions of 1 to `longest` tokens."""
    random.seed(seed)
    trunk = [random.randrange(PAD) for _ in range(shared)]
    rows = []
    for _ in range(prompts):
        prompt = trunk + [random.randrange(PAD) for _ in range(random.randint(1, 5))]
        rows += [(prompt, [random.randrange(4) for _ in range(random.randint(1, longest))]) for _ in range(group)]
    return [list(part) for part in zip(*rows, strict=True)]


def padded_logprobs(model, prompts, completions, temperature):
    """The reference: stock modules on padded rows."""
    batch = pad_rows(prompts, completions, PAD)
    ids, mask, width = batch.input_ids_BL, batch.attention_mask_BL, batch.completion_length
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1].float() / temperature
    everything = logits.log_softmax(-1)
    real = mask[:, -width:]
    logprobs = everything.gather(-1, ids[:, -width:, None])[..., 0] * real
    return logprobs, -(everything.exp() * everything).sum(-1) * real


def worst_gradient_difference(model, first, second):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
    pairs = zip(
        torch.autograd.grad((first * weights).sum(), parameters),
        torch.autograd.grad((second * weights).sum(), parameters),
        strict=True,
    )
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


def test_padding_puts_prompts_left_and_completions_right_of_one_border():
    batch = pad_rows([[5, 6, 7], [8]], [[1], [2, 3]], PAD)
    assert batch.input_ids_BL.tolist() == [[5, 6, 7, 1, PAD], [PAD, PAD, 8, 2, 3]]
    assert batch.attention_mask_BL.tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert batch.completion_length == 2


def test_padding_refuses_a_completion_without_its_prompt():
    with pytest.raises(ValueError, match="1 prompts for 2 completions"):
        pad_rows([[1]], [[2], [3]], PAD)


def test_packing_refuses_an_empty_prompt():
    with pytest.raises(ValueError, match="prompt is empty"):
        pack_rows([[1], []], [[2], [3]])


@given(some_rows)
@settings(max_examples=60, deadline=None)
def test_every_row_can_be_read_off_the_tree_and_nothing_stands_twice(rows):
    prompts, completions = zip(*rows, strict=True)
    tree = pack_rows(prompts, completions)
    for path, prompt, completion in zip(tree.paths, prompts, completions, strict=True):
        assert [int(tree.tokens_N[node]) for node in path] == [*prompt, *completion]
        assert tree.positions_N[list(path)].tolist() == list(range(len(path)))
    prefixes = {tuple([*p, *c][:end]) for p, c in rows for end in range(1, len(p) + len(c) + 1)}
    assert tree.size == len(prefixes)


@given(some_rows, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_the_attention_blocks_add_up_to_the_tree_mask_with_every_query_in_one_block(rows, block_nodes):
    tree = pack_rows(*zip(*rows, strict=True), block_nodes=block_nodes)
    seen = torch.zeros(tree.size, tree.size, dtype=torch.bool)
    times = torch.zeros(tree.size, dtype=torch.long)
    for level in tree.levels:
        for block, query in level.query_is_real_KQ.nonzero().tolist():
            node = level.queries_KQ[block, query]
            times[node] += 1
            seen[node, level.keys_KS[block][~level.blocked_KQS[block, query]]] = True
    assert times.tolist() == [1] * tree.size
    assert torch.equal(seen, tree_mask(tree))


@given(some_rows, st.randoms())
@settings(max_examples=30, deadline=None)
def test_shuffled_rows_give_the_same_tree(rows, chance):
    """Otherwise bf16 rounding would show a KL between two passes that are the same."""
    shuffled = list(rows)
    chance.shuffle(shuffled)
    first, second = (pack_rows(*zip(*order, strict=True)) for order in (rows, shuffled))
    assert torch.equal(first.tokens_N, second.tokens_N)
    assert torch.equal(first.parents_N, second.parents_N)


def test_values_return_to_the_rows_that_share_a_node_and_padding_is_zero():
    tree = pack_rows([[5], [5]], [[7, 8], [7]])
    values = torch.tensor([0.5, 0.25])[: tree.scored_nodes_C.numel()]
    expected = {7: 0.5, 8: 0.25}
    tokens = tree.tokens_N[tree.scored_nodes_C].tolist()
    values = torch.tensor([expected[token] for token in tokens])
    assert tree.to_rows(values).tolist() == [[0.5, 0.25], [0.5, 0.0]]


@pytest.mark.parametrize("gaps", ["left", "right", "between"])
def test_padding_on_any_side_packs_to_the_same_tree(gaps):
    ids = {"left": [[9, 9, 5, 6, 7, 8]], "right": [[5, 6, 9, 9, 7, 8]], "between": [[5, 9, 9, 6, 7, 8]]}[gaps]
    mask = {"left": [[0, 0, 1, 1, 1, 1]], "right": [[1, 1, 0, 0, 1, 1]], "between": [[1, 0, 0, 1, 1, 1]]}[gaps]
    tree = pack_padded(torch.tensor(ids), torch.tensor(mask), 2)
    assert tree.tokens_N.tolist() == [5, 6, 7, 8]
    assert tree.score_index_BT.tolist() == [[0, 1]]


def test_a_masked_completion_reports_to_its_own_columns():
    """`mask_truncated_completions` blanks whole rows; a gap inside a completion keeps its column too."""
    tree = pack_padded(torch.tensor([[5, 7, 9, 8], [5, 7, 7, 7]]), torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]), 3)
    assert tree.score_index_BT.tolist() == [[0, -1, 1], [-1, -1, -1]]


@pytest.mark.parametrize(("prompts", "group", "block_nodes"), [(1, 1, 256), (3, 5, 256), (3, 5, 6), (2, 64, 40)])
def test_packed_log_probabilities_entropies_and_gradients_are_the_padded_ones(prompts, group, block_nodes):
    model = with_lora(tiny_llama())
    rows = group_batch(group, prompts, group)
    stock, stock_entropy = padded_logprobs(model, *rows, 0.9)
    tree = pack_rows(*rows, block_nodes=block_nodes)
    ours, entropy = tree_logprobs(llama_parts(model), tree, 0.9)
    assert torch.allclose(ours, stock, atol=1e-4, rtol=0)
    assert torch.allclose(entropy, stock_entropy, atol=1e-4, rtol=0)
    assert worst_gradient_difference(model, stock, ours) < 1e-3


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"], ["k_proj", "up_proj", "lm_head"]])
def test_any_choice_of_adapted_projections_gives_the_stock_gradients(targets):
    model = with_lora(tiny_llama(tie_word_embeddings=False), targets=targets)
    rows = group_batch(1, 2, 3)
    ours, _ = tree_logprobs(llama_parts(model), pack_rows(*rows), 1.0)
    assert worst_gradient_difference(model, padded_logprobs(model, *rows, 1.0)[0], ours) < 1e-3


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}])
def test_other_kinds_of_lora_are_left_to_their_own_modules(settings):
    model = with_lora(tiny_llama(), targets=SEVEN[:3], **settings)
    rows = group_batch(2, 2, 3)
    ours, _ = tree_logprobs(llama_parts(model), pack_rows(*rows), 1.0)
    stock, _ = padded_logprobs(model, *rows, 1.0)
    assert torch.allclose(ours, stock, atol=1e-4, rtol=0)
    assert worst_gradient_difference(model, stock, ours) < 1e-3


def test_a_fully_trainable_model_gets_the_stock_gradients_for_every_weight():
    model = tiny_llama(heads=4, kv_heads=4)
    rows = group_batch(3, 2, 3)
    ours, _ = tree_logprobs(llama_parts(model), pack_rows(*rows), 1.0)
    assert worst_gradient_difference(model, padded_logprobs(model, *rows, 1.0)[0], ours) < 1e-3


def test_the_entropy_can_carry_gradients():
    model = with_lora(tiny_llama())
    rows = group_batch(4, 2, 3)
    _, entropy = tree_logprobs(llama_parts(model), pack_rows(*rows), 0.7, entropy_gradient=True)
    assert worst_gradient_difference(model, padded_logprobs(model, *rows, 0.7)[1], entropy) < 1e-3


def test_a_switched_off_adapter_gives_the_base_model():
    base = tiny_llama()
    rows = group_batch(5, 2, 3)
    expected, _ = padded_logprobs(base, *rows, 1.0)
    model = with_lora(base)
    with model.disable_adapter():
        ours, _ = tree_logprobs(llama_parts(model), pack_rows(*rows))
    assert torch.allclose(ours, expected, atol=1e-4, rtol=0)


def test_scaled_rotary_positions_are_the_models_own():
    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    model = with_lora(tiny_llama(rope_parameters=scaling))
    rows = group_batch(6, 2, 3)
    ours, _ = tree_logprobs(llama_parts(model), pack_rows(*rows))
    assert torch.allclose(ours, padded_logprobs(model, *rows, 1.0)[0], atol=1e-4, rtol=0)


def test_bf16_is_as_close_to_fp32_as_the_stock_modules_are(seed):
    """Bound: 1.3 times the stock modules' own bf16 error, for the log-probabilities and for the whole gradient.

    The ratio of two rounding errors scatters by a quarter from one policy to the next, so 32 policies are averaged.
    """

    def with_gradient(some_model, logprobs):
        some_model.zero_grad()
        logprobs.sum().backward()
        parameters = [parameter for parameter in some_model.parameters() if parameter.requires_grad]
        assert all(parameter.grad.dtype == torch.float32 for parameter in parameters)
        return logprobs.detach(), torch.cat([parameter.grad.flatten() for parameter in parameters])

    def error_ratios(draw):
        rows = group_batch(draw, 3, 6)
        exact_model = with_lora(tiny_llama(draw, hidden=64))
        model = with_lora(tiny_llama(hidden=64).to(torch.bfloat16))
        model.load_state_dict(exact_model.state_dict())
        exact_model.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
        exact = with_gradient(exact_model, padded_logprobs(exact_model, *rows, 0.9)[0])
        stock = with_gradient(model, padded_logprobs(model, *rows, 0.9)[0])
        ours = with_gradient(model, tree_logprobs(llama_parts(model), pack_rows(*rows), 0.9)[0])
        return [(our - wanted).norm() / (theirs - wanted).norm()
                for our, theirs, wanted in zip(ours, stock, exact, strict=True)]

    ratios = torch.tensor([error_ratios(100 * seed + draw) for draw in range(32)])
    assert ratios.log().mean(0).exp().max() <= 1.3


def test_keys_and_values_are_handed_out_per_node():
    model = tiny_llama()
    caches = []
    tree = pack_rows([[1, 2], [1, 3]], [[], []])
    tree_hidden(llama_parts(model), tree, caches)
    assert [tuple(part.shape) for part in caches[0]] == [(3, 2, 8)] * 2
    assert len(caches) == 2


def test_other_architectures_are_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"):
        llama_parts(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9)))


def test_the_figure_shows_as_many_cells_as_the_counts_say():
    from problama_utils.training import packing as batching_figure

    rows = group_batch(8, 3, 4)
    padded, packed = batching_figure._cells(*rows)
    real = sum(len(prompt) + len(completion) for prompt, completion in zip(*rows, strict=True))
    assert (padded != batching_figure.PADDING).sum() == real < padded.size
    assert (packed != batching_figure.ABSENT).sum() == pack_rows(*rows).size
    assert f"{pack_rows(*rows).size:,} tokens" in batching_figure.draw_packing(*rows).axes[1].get_title()
