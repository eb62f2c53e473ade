"""Our sampler draws what the model says: greedy like `generate`, frequencies like the softmax, early leavers gone."""

import pytest
import torch
from scipy.stats import chi2
from tiny_llamas import EOS, PAD, VOCABULARY, tiny_llama, with_lora

from problama_utils.engine.sampling import Sampling, draw, filtered_logprobs, sample_completions

ONCE_IN_A_MILLION = 1e-6
PROMPTS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 10, 11, 12], [3]]


def generate(model, prompts, **settings):
    """transformers' own greedy completions, cut after the first stop token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=PAD, **settings)
    stops = set(settings["eos_token_id"])
    completions = []
    for row in out[:, longest:].tolist():
        end = next((place for place, token in enumerate(row) if token in stops), len(row) - 1)
        completions.append(row[: end + 1])
    return completions


def next_distribution(model, tokens, temperature=1.0):
    with torch.no_grad():
        return (model(torch.tensor([tokens])).logits[0, -1].float() / temperature).softmax(-1)


def chi_square_p(counts, expected):
    """Pearson's test; tokens expected fewer than 5 times count as one."""
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    keep = wanted > 0
    statistic = ((observed[keep] - wanted[keep]) ** 2 / wanted[keep]).sum()
    return chi2.sf(float(statistic), int(keep.sum()) - 1)


@pytest.mark.parametrize("stops", [(EOS,), (EOS, 0, 4, 8, 12, 16)])
@pytest.mark.parametrize("adapted", [False, True])
def test_greedy_completions_are_those_of_generate_token_for_token(stops, adapted, seed):
    model = with_lora(tiny_llama(1 + seed)) if adapted else tiny_llama(1 + seed)
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    expected = generate(model, prompts, max_new_tokens=12, eos_token_id=list(stops))
    ours = sample_completions(model, prompts, Sampling(12, stop_token_ids=stops, greedy=True))
    assert [rollout.token_ids for rollout in ours] == expected
    assert [rollout.stopped for rollout in ours] == [ids[-1] in stops for ids in expected]


def test_a_minimum_length_is_kept_as_generate_keeps_it(seed):
    model, stops = tiny_llama(2 + seed), [EOS, *range(0, 30, 2)]
    expected = generate(model, PROMPTS, max_new_tokens=8, min_new_tokens=4, eos_token_id=stops)
    ours = sample_completions(model, PROMPTS, Sampling(8, stop_token_ids=tuple(stops), min_new_tokens=4, greedy=True))
    assert [rollout.token_ids for rollout in ours] == expected
    assert min(len(rollout.token_ids) for rollout in ours) >= 5


def test_groups_larger_than_a_block_and_mixed_orders_change_nothing(seed):
    model = tiny_llama(3 + seed)
    sampling = Sampling(6, stop_token_ids=(EOS, 1, 2, 3), greedy=True)
    alone = {tuple(p): sample_completions(model, [p], sampling)[0].token_ids for p in PROMPTS}
    mixed = PROMPTS * 11  # 11 of each, not side by side
    together = sample_completions(model, mixed, sampling)
    assert [rollout.token_ids for rollout in together] == [alone[tuple(prompt)] for prompt in mixed]


def test_sampled_first_and_second_tokens_follow_the_model(seed):
    """Chi-square at p > 1e-6 each: a right sampler fails once in 500,000 seeds, and 16,000 draws find a wrong one."""
    model, prompt, draws = tiny_llama(4, tie_word_embeddings=False), [5, 6, 7], 16_000
    torch.manual_seed(seed)
    rollouts = sample_completions(model, [prompt] * draws, Sampling(2, temperature=1.5))
    tokens = torch.tensor([rollout.token_ids for rollout in rollouts])
    p = next_distribution(model, prompt, 1.5)
    assert chi_square_p(torch.bincount(tokens[:, 0], minlength=VOCABULARY).float(), p * draws) > ONCE_IN_A_MILLION
    first = int(p.argmax())
    after = tokens[tokens[:, 0] == first, 1]
    assert len(after) > 1200
    p_after = next_distribution(model, [*prompt, first], 1.5)
    assert chi_square_p(torch.bincount(after, minlength=VOCABULARY).float(), p_after * len(after)) > ONCE_IN_A_MILLION


@pytest.mark.parametrize("vocabulary", [7, 256, 1000])
def test_draws_follow_the_given_probabilities_and_never_hit_an_excluded_token(vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(vocabulary, generator=generator).mul_(2)
    logprobs[::3] = float("-inf")
    logprobs[-1] = float("-inf")
    logprobs = logprobs.log_softmax(-1)
    tokens = torch.cat([draw(logprobs.expand(500, -1), generator) for _ in range(160)])
    counts = torch.bincount(tokens, minlength=vocabulary).float()
    assert counts[logprobs == float("-inf")].sum() == 0
    assert chi_square_p(counts, logprobs.exp() * 80_000) > ONCE_IN_A_MILLION


def test_a_certain_token_is_always_drawn():
    logprobs = torch.full((3, 600), float("-inf"))
    logprobs[torch.arange(3), torch.tensor([0, 299, 599])] = 0.0
    assert all(draw(logprobs).tolist() == [0, 299, 599] for _ in range(50))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.6), (0.9, 8, 0.8)]
)
def test_filters_leave_what_transformers_leaves(temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    ours = filtered_logprobs(logits, Sampling(1, temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.allclose(ours, expected.log_softmax(-1), atol=1e-5)


def test_a_seed_repeats_its_rollouts_and_another_gives_others(seed):
    model, sampling = tiny_llama(5), Sampling(8, temperature=1.5)

    def run(seed):
        return [r.token_ids for r in sample_completions(model, PROMPTS, sampling, generator=generator(seed))]

    def generator(seed):
        return torch.Generator().manual_seed(seed)

    assert run(seed) == run(seed)
    assert run(seed) != run(seed + 1)


def test_the_global_generator_is_the_default_source(seed):
    """A checkpoint restores its state, so a resumed run repeats the rollouts of an uninterrupted one."""
    model, sampling = tiny_llama(5), Sampling(8, temperature=1.5)
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    first = sample_completions(model, PROMPTS, sampling)
    torch.set_rng_state(state)
    assert sample_completions(model, PROMPTS, sampling) == first


def test_reported_log_probabilities_are_those_of_a_forward_pass(seed):
    model = with_lora(tiny_llama(6 + seed))
    for prompt, rollout in zip(PROMPTS, sample_completions(model, PROMPTS, Sampling(6, temperature=0.8)), strict=True):
        for place, (token, logprob) in enumerate(zip(rollout.token_ids, rollout.logprobs, strict=True)):
            p = next_distribution(model, [*prompt, *rollout.token_ids[:place]], 0.8)
            assert float(p[token].log()) == pytest.approx(logprob, abs=1e-4)


def test_finished_rows_leave_the_batch(seed):
    model, fed = tiny_llama(7), []
    torch.manual_seed(seed)
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: fed.append(args[0].numel()))
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    rollouts = sample_completions(model, prompts, Sampling(10, temperature=2.0, stop_token_ids=tuple(range(10))))
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    assert min(lengths) < max(lengths) - 2
    # what is fed after the prompts: every token but each row's last
    assert sum(fed[1:]) == sum(length - 1 for length in lengths)


def test_shared_prompt_tokens_are_read_once():
    model, fed = tiny_llama(7), []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: fed.append(args[0].numel()))
    sample_completions(model, [[5, 6, 7]] * 8 + [[5, 6, 8]] * 8, Sampling(1))
    assert fed == [4]  # 5, 6, and one token of each prompt


def test_four_bit_weights_are_decoded_through_their_own_modules():
    bnb = pytest.importorskip("bitsandbytes")
    model = tiny_llama(8, heads=4, kv_heads=4, hidden=64)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    shape = (linear.in_features, linear.out_features)
                    four_bit = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=torch.float32, quant_type="nf4")
                    four_bit.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                    setattr(parent, name, four_bit.to("cpu"))
    expected = generate(model, PROMPTS, max_new_tokens=6, eos_token_id=[EOS])
    ours = sample_completions(model, PROMPTS, Sampling(6, stop_token_ids=(EOS,), greedy=True))
    assert [rollout.token_ids for rollout in ours] == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"temperature": 0.0}, "greedy=True"), ({"top_p": 0.0}, "top_p = 0.0"), ({"top_k": -1}, "top_k = -1")],
)
def test_impossible_settings_are_refused_with_the_cure(setting, message):
    with pytest.raises(ValueError, match=message):
        Sampling(4, **setting)
