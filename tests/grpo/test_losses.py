"""Losses: hand-computed values, the clip's four sign cases, KL estimators against exact KL, equality with TRL."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from problama_utils.grpo.losses import aggregate, clip_fractions, grpo_loss, kl_estimate, ppo_clip_objective, value_loss

AGGREGATIONS = ["sequence", "token", "constant"]


def objective_and_slope(ratio, advantage):
    """The objective at one ratio, and its derivative with respect to the ratio."""
    ratio = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    value = ppo_clip_objective(ratio.log(), torch.zeros((), dtype=torch.float64), torch.tensor(advantage))
    value.backward()
    return value.item(), ratio.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (0.5, 2.0, 1.0, 2.0),  # good token made rarer: unclipped, pulled back up
        (1.5, 2.0, 2.4, 0.0),  # good token made more likely than 1 + ε: held
        (0.5, -2.0, -1.6, 0.0),  # bad token made rarer than 1 − ε: held
        (1.5, -2.0, -3.0, -2.0),  # bad token made more likely: unclipped, pushed down
        (1.1, 2.0, 2.2, 2.0),  # inside the range both signs learn
        (0.9, -2.0, -1.8, -2.0),
    ],
)
def test_clip_in_every_sign_case(ratio, advantage, value, slope):
    assert objective_and_slope(ratio, advantage) == pytest.approx((value, slope))


@given(log_ratio=st.floats(-3, 3), advantage=st.floats(-5, 5))
@settings(deadline=None)
def test_clipping_never_flatters_the_objective(log_ratio, advantage):
    value, _ = objective_and_slope(math.exp(log_ratio), advantage)
    assert value <= math.exp(log_ratio) * advantage + 1e-5


def test_value_loss_by_hand():
    values, returns = torch.tensor([[0.0, 2.0, 5.0]]), torch.tensor([[1.0, 0.0, 9.0]])
    assert value_loss(values, returns, torch.tensor([[1, 1, 0]])).item() == pytest.approx((1 + 4) / 2)
    assert value_loss(values, returns).item() == pytest.approx((1 + 4 + 16) / 3)


# KL estimators: everything is summed exactly over a small vocabulary, so nothing here is left to chance.
def policy_and_reference(seed, vocabulary=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, vocabulary, generator=generator, dtype=torch.float64)
    return logits[0].requires_grad_(), torch.log_softmax(logits[1], -1)


def exact_kl(logp, logq):
    return (logp.exp() * (logp - logq)).sum()


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_have_the_exact_kl_as_mean_and_k2_has_not(seed):
    logits, ref = policy_and_reference(seed)
    logp = torch.log_softmax(logits, -1).detach()
    means = {k: (logp.exp() * kl_estimate(logp, ref, k)).sum().item() for k in ("k1", "k2", "k3")}
    kl = exact_kl(logp, ref).item()
    assert means["k1"] == pytest.approx(kl) and means["k3"] == pytest.approx(kl)
    assert abs(means["k2"] - kl) > 1e-3
    assert (kl_estimate(logp, ref, "k3") >= 0).all() and (kl_estimate(logp, ref, "k2") >= 0).all()
    assert (kl_estimate(logp, ref, "k1") < 0).any()


@pytest.mark.parametrize("seed", range(5))
def test_gradients_of_the_estimators_are_zero_reverse_kl_and_forward_kl(seed):
    logits, ref = policy_and_reference(seed)
    logp = torch.log_softmax(logits, -1)

    def gradient(scalar):
        return torch.autograd.grad(scalar, logits, retain_graph=True)[0]

    means = {k: gradient((logp.exp().detach() * kl_estimate(logp, ref, k)).sum()) for k in ("k1", "k2", "k3")}
    torch.testing.assert_close(means["k1"], torch.zeros_like(logits))
    torch.testing.assert_close(means["k2"], gradient(exact_kl(logp, ref)))
    torch.testing.assert_close(means["k3"], gradient((ref.exp() * (ref - logp)).sum()))
    assert (means["k3"] - means["k2"]).abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_the_corrected_kl_is_exact_in_value_and_gradient_even_off_policy(seed):
    logits, ref = policy_and_reference(seed)
    logp = torch.log_softmax(logits, -1)
    old = torch.log_softmax(torch.randn(5, generator=torch.Generator().manual_seed(99), dtype=torch.float64), -1)
    # Every token is a completion of its own, weighed by the chance that the old policy samples it.
    corrected = sum(
        old.exp()[v]
        * grpo_loss(
            logp[v].view(1, 1), old[v].view(1, 1), torch.zeros(1, dtype=torch.float64), torch.ones(1, 1),
            ref_logprobs=ref[v].view(1, 1), beta=1.0, kl_correction=True,
        )
        for v in range(5)
    )  # fmt: skip
    exact = exact_kl(logp, ref)
    assert corrected.item() == pytest.approx(exact.item())
    torch.testing.assert_close(*(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (corrected, exact)))


def test_all_estimators_vanish_at_the_reference_and_unknown_ones_are_refused():
    logp = torch.tensor([-0.3, -2.0])
    assert all(kl_estimate(logp, logp, k).abs().max() == 0 for k in ("k1", "k2", "k3"))
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(logp, logp, "k4")


# The GRPO loss
def batch(seed, rows=4, tokens=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logp, old, ref = (
        -(torch.rand(rows, tokens, generator=generator, dtype=dtype) * 3 + 0.05) for _ in range(3)
    )
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    mask = (torch.arange(tokens)[None] < lengths[:, None]).long()
    return logp.requires_grad_(), old, ref, torch.randn(rows, generator=generator, dtype=dtype), mask


def test_the_three_aggregations_by_hand():
    per_token = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert aggregate(per_token, mask, "sequence").item() == pytest.approx((2 + 10) / 2)
    assert aggregate(per_token, mask, "token").item() == pytest.approx(16 / 4)
    assert aggregate(per_token, mask, "constant", max_tokens=5).item() == pytest.approx(16 / 10)
    with pytest.raises(ValueError, match="max_tokens"):
        aggregate(per_token, mask, "constant")
    with pytest.raises(ValueError, match="mean"):
        aggregate(per_token, mask, "mean")


def test_grpo_loss_by_hand():
    # Ratios 1.5 and 0.5, A = 1 and −1 (both held by the clip), reference half as likely as the policy: k3 = ln 2 − ½.
    logp = torch.log(torch.tensor([[0.6], [0.2]]))
    old, ref = torch.log(torch.tensor([[0.4], [0.4]])), torch.log(torch.tensor([[0.3], [0.1]]))
    loss = grpo_loss(logp, old, torch.tensor([1.0, -1.0]), torch.ones(2, 1), ref_logprobs=ref, beta=0.1)
    assert loss.item() == pytest.approx(-((1.2 - 0.8) / 2 - 0.1 * (math.log(2) - 0.5)), abs=1e-6)


def test_on_fresh_rollouts_the_loss_is_zero_and_the_gradient_is_not():
    logp, _, _, _, _ = batch(3)
    mask = torch.ones(4, 6)
    loss = grpo_loss(logp, logp.detach(), torch.tensor([1.0, 1, -1, -1], dtype=torch.float64), mask)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    torch.testing.assert_close(logp.grad[0], torch.full((6,), -1 / 24, dtype=torch.float64))


@given(
    seed=st.integers(0, 10_000),
    poison=st.sampled_from([float("nan"), float("-inf"), float("inf"), 50.0]),
    aggregation=st.sampled_from(AGGREGATIONS),
)
@settings(max_examples=60, deadline=None)
def test_masked_tokens_never_matter(seed, poison, aggregation):
    logp, old, ref, advantages, mask = batch(seed)
    options = dict(beta=0.04, aggregation=aggregation, max_tokens=6)
    clean = grpo_loss(logp, old, advantages, mask, ref_logprobs=ref, **options)
    (clean_gradient,) = torch.autograd.grad(clean, logp)
    hole = mask == 0
    dirty_logp = logp.detach().masked_fill(hole, poison).requires_grad_()
    dirty_old, dirty_ref = old.masked_fill(hole, poison), ref.masked_fill(hole, poison)
    dirty = grpo_loss(dirty_logp, dirty_old, advantages, mask, ref_logprobs=dirty_ref, **options)
    (dirty_gradient,) = torch.autograd.grad(dirty, dirty_logp)
    assert dirty.item() == clean.item()
    assert torch.equal(dirty_gradient, clean_gradient)


def test_a_constant_length_weighs_a_token_alike_in_short_and_long_completions():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    advantages = torch.tensor([1.0, 1.0], dtype=torch.float64)
    for aggregation, ratio in [("sequence", 4.0), ("token", 1.0), ("constant", 1.0)]:
        logp = torch.full((2, 4), -1.0, dtype=torch.float64, requires_grad=True)
        grpo_loss(logp, logp.detach(), advantages, mask, aggregation=aggregation, max_tokens=4).backward()
        assert (logp.grad[1, 0] / logp.grad[0, 0]).item() == pytest.approx(ratio)


def test_half_precision_is_computed_in_single_precision():
    logp, old, _, advantages, mask = batch(1)
    loss = grpo_loss(logp.detach().bfloat16(), old.bfloat16(), advantages.bfloat16(), mask)
    assert loss.dtype == torch.float32


def test_clip_fractions_count_only_held_tokens():
    ratio = torch.tensor([[1.5, 0.5, 1.0, 9.0], [1.5, 0.5, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])
    low, high = clip_fractions(ratio.log(), torch.zeros(2, 4), torch.tensor([1.0, -1.0]), mask)
    assert (low, high) == pytest.approx((1 / 6, 1 / 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(beta=0.1), "ref_logprobs"),
        (dict(mask=torch.ones(4, 5)), "same shape"),
        (dict(aggregation="constant"), "max_tokens"),
    ],
)
def test_impossible_inputs_are_refused_in_words(change, message):
    logp, old, _, advantages, mask = batch(0)
    inputs = dict(logprobs=logp, old_logprobs=old, advantages=advantages, mask=mask) | change
    with pytest.raises(ValueError, match=message):
        grpo_loss(**inputs)
