"""Advantages: hand-computed values, GAE's two limits, group-relative properties, what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from problama_utils.grpo.advantages import generalised_advantages, group_advantages

REWARDS = torch.tensor([[0.0, 0.0, 1.0]])
VALUES = torch.tensor([[0.5, 0.25, 0.75]])
reward_groups = st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=2, max_size=8)


def random_rollouts(seed=0, rows=5, tokens=7):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(rows, tokens, generator=generator, dtype=torch.float64)
    return rewards, torch.randn(rows, tokens, generator=generator, dtype=torch.float64)


def test_td_errors_by_hand_are_gae_with_lambda_0():
    assert generalised_advantages(REWARDS, VALUES, lam=0.0).tolist() == [[-0.25, 0.5, 0.25]]
    assert generalised_advantages(REWARDS, VALUES, gamma=0.5, lam=0.0).tolist() == [[-0.375, 0.125, 0.25]]


def test_gae_by_hand():
    # δ = (-0.25, 0.5, 0.25), γλ = 0.5: A_3 = 0.25, A_2 = 0.5 + 0.125, A_1 = -0.25 + 0.3125
    assert generalised_advantages(REWARDS, VALUES, lam=0.5).tolist() == [[0.0625, 0.625, 0.25]]


def test_gae_with_lambda_1_is_the_monte_carlo_return_minus_the_value():
    rewards, values = random_rollouts(seed=1)
    got = generalised_advantages(rewards, values, 0.9, 1.0)
    for row in range(len(rewards)):
        for t in range(7):
            monte_carlo = sum(0.9 ** (k - t) * rewards[row, k] for k in range(t, 7))
            assert got[row, t] == pytest.approx(float(monte_carlo - values[row, t]), abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_gae_is_the_faded_sum_of_td_errors(lam):
    rewards, values = random_rollouts(seed=2)
    weights = torch.tensor([[(0.97 * lam) ** (k - t) if k >= t else 0.0 for k in range(7)] for t in range(7)])
    deltas = rewards + 0.97 * torch.nn.functional.pad(values[:, 1:], (0, 1)) - values
    expected = deltas @ weights.double().T
    torch.testing.assert_close(generalised_advantages(rewards, values, 0.97, lam), expected)


def test_a_perfect_value_function_leaves_only_the_surprise():
    # A state that always ends with reward 1: V = 1 everywhere, nothing is better than expected.
    assert generalised_advantages(REWARDS, torch.ones(1, 3)).abs().max() == 0


def test_one_one_zero_zero_gives_0866_or_1_or_a_half():
    rewards = torch.tensor([1, 1, 0, 0])
    unbiased, population = (group_advantages(rewards, d, eps=0.0) for d in ("unbiased", "population"))
    torch.testing.assert_close(unbiased, torch.tensor([1.0, 1, -1, -1]) * 3**0.5 / 2)
    torch.testing.assert_close(population, torch.tensor([1.0, 1, -1, -1]))
    assert group_advantages(rewards, "none").tolist() == [0.5, 0.5, -0.5, -0.5]


def test_the_two_deviations_are_those_of_torch_and_numpy():
    rewards = torch.tensor([0.0, 0.5, 2.0, 2.5, 2.5], dtype=torch.float64)
    centred = rewards - rewards.mean()
    torch.testing.assert_close(group_advantages(rewards, "unbiased", eps=0), centred / rewards.std())
    torch.testing.assert_close(group_advantages(rewards, "population", eps=0), centred / np.std(rewards.numpy()))


@pytest.mark.parametrize("deviation", ["unbiased", "population", "none"])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 1e6])
def test_an_equal_group_teaches_exactly_nothing(deviation, reward):
    for eps in (0.0, 1e-4):
        assert torch.equal(group_advantages(torch.full((2, 7), reward), deviation, eps), torch.zeros(2, 7))


@given(group=reward_groups, shift=st.integers(-20, 20), deviation=st.sampled_from(["unbiased", "population", "none"]))
@settings(deadline=None)
def test_advantages_sum_to_zero_and_ignore_a_shift(group, shift, deviation):
    rewards = torch.tensor(group, dtype=torch.float64)
    advantages = group_advantages(rewards, deviation)
    assert abs(advantages.sum().item()) < 1e-9
    torch.testing.assert_close(group_advantages(rewards + shift, deviation), advantages, rtol=1e-9, atol=1e-9)


@given(group=reward_groups, scale=st.integers(1, 50))
@settings(deadline=None)
def test_dividing_by_the_deviation_forgets_the_scale_and_not_dividing_keeps_it(group, scale):
    rewards = torch.tensor(group, dtype=torch.float64)
    torch.testing.assert_close(
        group_advantages(rewards * scale, eps=1e-12), group_advantages(rewards, eps=1e-12), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(group_advantages(rewards * scale, "none"), group_advantages(rewards, "none") * scale)


@given(groups=st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=1, max_size=4))
@settings(deadline=None)
def test_groups_do_not_see_each_other(groups):
    together = group_advantages(torch.tensor(groups, dtype=torch.float64))
    alone = torch.stack([group_advantages(torch.tensor(g, dtype=torch.float64)) for g in groups])
    torch.testing.assert_close(together, alone)


def test_inputs_are_not_changed():
    rewards, values = random_rollouts()
    copies = rewards.clone(), values.clone()
    generalised_advantages(rewards, values, 0.9, 0.9)
    group_advantages(rewards)
    assert torch.equal(rewards, copies[0]) and torch.equal(values, copies[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_advantages(torch.tensor([[1.0]])), "at least 2 completions"),
        (lambda: group_advantages(torch.tensor(1.0)), "at least 2 completions"),
        (lambda: group_advantages(torch.tensor([1.0, float("nan")])), "NaN"),
        (lambda: group_advantages(torch.tensor([1.0, 0.0]), "sample"), "unbiased"),
        (lambda: generalised_advantages(REWARDS, VALUES, lam=1.5), "lam is 1.5"),
        (lambda: generalised_advantages(REWARDS, VALUES[:, :2]), "same shape"),
    ],
)
def test_impossible_inputs_are_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
