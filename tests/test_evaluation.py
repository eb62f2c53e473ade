"""Scoring: one record per question, likelihoods equal to a plain computation, nothing depends on batching."""

import pytest
import torch

from problama_utils.config import get_profile
from problama_utils.evaluation import (
    complete,
    score_physical,
    score_physical_likelihood,
    score_riddles,
    score_science,
    score_science_likelihood,
    share_with_interval,
    text_log_likelihoods,
)
from problama_utils.models import load_policy
from problama_utils.problems import load_physical, load_riddles, load_science


@pytest.fixture(scope="module")
def policy(tiny_model_dir):
    import os

    os.environ["PROBLAMA_MODEL"] = str(tiny_model_dir)
    try:
        model, tokenizer = load_policy(get_profile("cpu"), seed=0)
    finally:
        del os.environ["PROBLAMA_MODEL"]
    return model.float(), tokenizer


PAIRS = [("Question: a\nAnswer:", " bee"), ("A much longer context, to pad against:", " x"), ("q", " a wasp, too")]


def test_log_likelihoods_equal_a_plain_computation_one_by_one(policy):
    model, tokenizer = policy
    for (context, continuation), found in zip(PAIRS, text_log_likelihoods(model, tokenizer, PAIRS), strict=True):
        head = len(tokenizer(context).input_ids)
        ids = tokenizer(context + continuation, return_tensors="pt").input_ids
        logprobs = model(ids).logits[0].log_softmax(-1)
        plain = sum(logprobs[t - 1, ids[0, t]].item() for t in range(head, ids.shape[1]))
        assert found == pytest.approx(plain, abs=1e-4)


def test_log_likelihoods_do_not_depend_on_the_batch_size(policy):
    one, all_at_once = (text_log_likelihoods(*policy, PAIRS, batch_size=size) for size in (1, 8))
    assert one == pytest.approx(all_at_once, abs=1e-4)


def test_completions_come_back_in_the_order_of_the_chats(policy):
    chats = [[{"role": "user", "content": "x" * n}] for n in (5, 60, 20)]
    together = complete(*policy, chats, max_new_tokens=4, batch_size=2)
    assert together == [complete(*policy, [chat], max_new_tokens=4)[0] for chat in chats]


def test_sampling_is_repeatable_by_its_seed(policy):
    chat = [[{"role": "user", "content": "hello"}]] * 3
    draws = [complete(*policy, chat, max_new_tokens=6, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_prompts_are_the_same_for_every_policy_and_differ_with_the_system_prompt(policy):
    rows = list(load_science("test").select(range(3)))
    a, b, c = (score_science(*policy, rows, policy=name, system=system, max_new_tokens=2)
               for name, system in (("x", True), ("y", True), ("x", False)))
    assert a.prompt_hash.tolist() == b.prompt_hash.tolist() and not set(a.prompt_hash) & set(c.prompt_hash)


def test_every_question_leaves_one_record_with_a_verdict(policy):
    science, physical = (list(load("test" if load is load_science else "heldout").select(range(3)))
                         for load in (load_science, load_physical))
    riddles = list(load_riddles("heldout").select(range(3)))
    tables = [score_science_likelihood(*policy, science, policy="p"),
              score_physical_likelihood(*policy, physical, policy="p"),
              score_physical(*policy, physical, policy="p", max_new_tokens=2),
              score_riddles(*policy, riddles, policy="p", max_new_tokens=2)]
    assert [len(table) for table in tables] == [3, 3, 3, 3]
    assert set(tables[3].verdict) <= {"right", "wrong", "unjudged"}


def test_the_likeliest_choice_wins_whatever_its_letter(policy):
    row = {"id": "1", "question": "Q?", "choices": ["zz", "aa", "qq"], "labels": ["A", "B", "C"], "answer": "B"}
    scores = text_log_likelihoods(*policy, [("Question: Q?\nAnswer:", f" {choice}") for choice in row["choices"]])
    chosen = score_science_likelihood(*policy, [row], policy="p").chosen[0]
    assert chosen == "ABC"[int(torch.tensor(scores).argmax())]


def test_a_share_is_written_with_its_interval_and_n():
    import pandas as pd

    assert share_with_interval(pd.Series([True] * 25 + [False] * 75)) == "25.0 % (18 to 34 %, n = 100)"
