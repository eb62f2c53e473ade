"""The small game: exact evaluation, fair start, reproducible runs, a verdict that follows its rule."""

import itertools

import pytest
import torch

from problama_utils.figures import four_rollouts
from problama_utils.grpo.head_to_head import (
    TARGETS,
    TOKENS,
    VOCABULARY,
    Comparison,
    Settings,
    compare,
    evaluate,
    features,
    mean_and_interval,
    network,
    reward,
    sample,
    token_logprobs,
    train,
)  # fmt: skip


def trained_policy(seed):
    return train(Settings("grpo", seed=seed, updates=6, learning_rate=0.01)).policy


def test_an_untrained_policy_is_uniform_for_every_seed():
    counts = [sum(1 for w in itertools.product(range(VOCABULARY), repeat=TOKENS) if sum(w) == t) for t in TARGETS]
    chance = sum(counts) / len(TARGETS) / VOCABULARY**TOKENS
    for seed in range(3):
        policy = network(VOCABULARY, 64, torch.Generator().manual_seed(seed))
        assert evaluate(policy) == pytest.approx((chance, 0.0), abs=1e-5)


def test_exact_success_agrees_with_sampling(seed):
    policy, n = trained_policy(seed), 20_000
    targets = torch.tensor(TARGETS).repeat(n // len(TARGETS))
    tokens = sample(policy, targets, torch.Generator().manual_seed(seed))
    exact, _ = evaluate(policy)
    error = (exact * (1 - exact) / len(targets)) ** 0.5
    assert abs(reward(targets, tokens).mean().item() - exact) < 5 * error  # false alarm once in 1.7 million


def test_exact_kl_is_positive_after_training_and_success_has_risen(seed):
    run = train(Settings("grpo", seed=seed, updates=25, learning_rate=0.01))
    assert run.kl[0] == pytest.approx(0, abs=1e-5) and run.kl[-1] > 0.5
    assert run.success[-1] > 3 * run.success[0]


def test_the_networks_see_only_the_past(seed):
    policy = trained_policy(seed)
    # two passes, not two rows of one: rows of one matrix product may be added up in different orders
    first, second = (token_logprobs(policy, features(torch.tensor([7]), torch.tensor([tokens])),
                                    torch.ones(1, 4, dtype=torch.long))[0] for tokens in ([1, 2, 3, 4], [1, 2, 0, 0]))
    assert torch.equal(first[:3], second[:3]) and not torch.equal(first[3], second[3])


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_seed_fixes_a_run_and_both_methods_start_alike(method, seed):
    runs = [train(Settings(method, seed=seed, updates=3)) for _ in range(2)]
    assert runs[0].success == runs[1].success
    assert runs[0].success[0] == train(Settings("grpo", seed=seed, updates=1)).success[0]


def test_ppo_trains_about_twice_the_numbers_and_adam_keeps_two_more_for_each(seed):
    ppo, grpo = (train(Settings(method, seed=seed, updates=1)) for method in ("ppo", "grpo"))
    assert ppo.parameters == grpo.parameters + (33 + 1) * 64 + 64 + 1
    assert [run.optimiser_bytes for run in (ppo, grpo)] == [2 * 4 * run.parameters for run in (ppo, grpo)]
    assert grpo.dead_groups and not ppo.dead_groups


def test_a_strong_leash_keeps_the_policy_at_home(seed):
    free, held = (train(Settings("grpo", seed=seed, updates=25, learning_rate=0.01, beta=b)).kl[-1] for b in (0.0, 1.0))
    assert held < free / 5


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ((0.1, 0.11, 0.09, 0.1), "PPO is ahead of GRPO"),
        ((-0.1, -0.11, -0.09, -0.1), "GRPO is ahead of PPO"),
        ((0.1, -0.1, 0.09, -0.05), "no difference"),
        ((0.1, 0.1, 0.11), "no claim"),
    ],
)
def test_the_verdict_follows_the_rule_of_two_standard_errors(differences, words):
    assert Comparison("PPO", "GRPO", differences).verdict.startswith(words)


def test_runs_are_compared_in_pairs_of_one_seed(seed):
    ppo, grpo = ([train(Settings(m, seed=s, updates=1)) for s in (seed, seed + 1)] for m in ("ppo", "grpo"))
    assert compare(ppo, grpo, lambda run: run.settings.seed).differences == (0, 0)
    with pytest.raises(ValueError, match="same seeds"):
        compare(ppo, grpo[::-1])
    mean, low, high = mean_and_interval(ppo)
    assert len(mean) == 2 and all(a <= b <= c for a, b, c in zip(low, mean, high, strict=True))


@pytest.mark.parametrize(("change", "message"), [(dict(method="a2c"), "ppo"), (dict(rollouts=65), "groups of 8")])
def test_impossible_settings_are_refused_in_words(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


def test_the_group_of_fours_exact_success_is_the_sum_over_all_its_completions():
    logits = four_rollouts.old_policy()
    end, table = 3, torch.softmax(logits, -1)
    total, mass = 0.0, 0.0
    for words in itertools.product(range(4), repeat=3):
        stop = words.index(end) + 1 if end in words else 3
        if words[stop:] != (end,) * (3 - stop):
            continue  # the same completion with another padding
        chance, row = 1.0, 0
        for word in words[:stop]:
            chance, row = chance * table[row, word].item(), 1 + word
        mass += chance
        total += chance * four_rollouts.rewards((" ".join(four_rollouts.WORDS[w] for w in words[:stop]),)).item()
    assert mass == pytest.approx(1) and four_rollouts.success(logits) == pytest.approx(total)


def test_figures_are_the_same_bytes_each_time_and_the_gae_curve_bends(tmp_path, seed):
    from problama_utils.figures import curves as figures
    from problama_utils.figures import loops as diagrams

    written = [figures.save(diagrams.training_using_ppo(), tmp_path / name, "ppo") for name in "ab"]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(*written, strict=True)] == [True, True]
    measured = figures.gae_bias_variance(episodes=4000, seed=seed)
    assert torch.all(measured["bias2"].diff() < 0.01) and torch.all(measured["variance"].diff() > -0.01)
    assert 0 < measured["error2"].argmin() < len(measured["lambda"]) - 1
