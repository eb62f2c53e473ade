"""Log-likelihoods: equal to a plain forward pass of every choice on its own, however they are batched and shared."""

import pytest
import torch

from problama_utils.evaluation.scoring import choice_scores, likelihood_context
from problama_utils.model import likelihood
from problama_utils.model.likelihood import encode_pair, likeliest, per_character, text_log_likelihoods
from problama_utils.tasks.science import load_science

QUESTIONS = list(load_science("test", source="embedded"))[:6]


def one_by_one(model, tokenizer, context, continuation):
    """The harness's rules, written down plainly: cut the tokens, run the stock model on this one row, add up."""
    stripped = context.rstrip()
    continuation = context[len(stripped):] + continuation
    head = tokenizer(stripped)["input_ids"]
    ids = tokenizer(stripped + continuation)["input_ids"]
    tail = ids[len(head):]
    with torch.no_grad():
        logprobs = model(torch.tensor([head + tail])).logits[0].float().log_softmax(-1)
    return sum(logprobs[len(head) - 1 + t, token].item() for t, token in enumerate(tail))


@pytest.mark.parametrize("system", [False, True])
def test_choice_scores_equal_a_plain_forward_pass_of_each_choice(policy, system):
    found = choice_scores(*policy, QUESTIONS, system=system)
    for row, scores in zip(QUESTIONS, found, strict=True):
        context, delimiter = likelihood_context(policy[1], row["question"], system=system)
        plain = [one_by_one(*policy, context, delimiter + choice) for choice in row["choices"]]
        assert scores == pytest.approx(plain, abs=1e-3)


def test_padded_rows_and_the_prefix_tree_give_the_same_scores(policy, monkeypatch):
    tree = choice_scores(*policy, QUESTIONS, system=False)
    monkeypatch.setattr(likelihood, "llama_for_cpu", lambda model: None)
    for a, b in zip(tree, choice_scores(*policy, QUESTIONS, system=False), strict=True):
        assert a == pytest.approx(b, abs=1e-3)


def test_scores_depend_neither_on_the_batch_nor_on_the_order(policy, monkeypatch):
    pairs = [("Question: a\nAnswer:", " bee"), ("A much longer context, to pad against:", " x"), ("q", " a wasp, too"),
             ("Question: a\nAnswer:", " be")]
    together = text_log_likelihoods(*policy, pairs)
    assert text_log_likelihoods(*policy, pairs[::-1])[::-1] == pytest.approx(together, abs=1e-4)
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", 1)
    assert text_log_likelihoods(*policy, pairs) == pytest.approx(together, abs=1e-4)


def test_a_shared_context_is_computed_once(policy, monkeypatch):
    # the speed rests on this: four choices of one question must not read the question four times
    from problama_utils.engine import tree as batching

    sizes = []
    real = batching.pack_rows
    monkeypatch.setattr(batching, "pack_rows", lambda *a, **k: sizes.append(real(*a, **k).size) or real(*a, **k))
    likelihood._tree_scores(likelihood.llama_for_cpu(policy[0]), [(list(range(3, 53)), [60 + i, 70]) for i in range(4)])
    assert sizes == [50 + 4]  # the context once, and each choice without its last token, which predicts nothing


def test_white_space_at_the_end_of_a_context_goes_to_the_continuation(policy):
    tokenizer = policy[1]
    assert encode_pair(tokenizer, "Answer: ", "x") == encode_pair(tokenizer, "Answer:", " x")
    assert encode_pair(tokenizer, "Answer:\n", "x") == encode_pair(tokenizer, "Answer:", "\nx")


def test_an_empty_context_is_refused(policy):
    with pytest.raises(ValueError, match="nothing to predict"):
        encode_pair(policy[1], "  ", "x")


def test_normalised_scores_divide_by_characters_and_ties_go_to_the_first():
    assert per_character([-6.0, -6.0], ["ab", "abc"]) == [-3.0, -2.0]
    assert per_character([-4.0], ["éé"]) == [-2.0]  # characters, not bytes: the harness's acc_norm
    assert likeliest([-2.0, -1.0, -1.0]) == 1


@pytest.mark.slow
def test_the_harness_itself_gives_the_same_verdicts(policy, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from problama_utils.config import course_root

    monkeypatch.syspath_prepend(str(course_root() / "benchmarks"))
    from arc_harness import make_task, run_harness, sample_scores

    model, tokenizer = policy
    samples, _ = run_harness(model, tokenizer, make_task(QUESTIONS, tmp_path))
    ours = choice_scores(model, tokenizer, QUESTIONS, system=False)
    for row, sample, scores in zip(QUESTIONS, samples, ours, strict=True):
        right = row["labels"].index(row["answer"])
        assert sample_scores(sample) == pytest.approx(scores, abs=1e-3)
        assert sample["acc"] == (likeliest(scores) == right)
        assert sample["acc_norm"] == (likeliest(per_character(scores, row["choices"])) == right)
