"""A model whose numbers are none gives no answer: every way of asking it ends in a sentence, never in a choice."""

import copy
import math
from itertools import product

import pytest
import torch

from problama_utils import CourseError
from problama_utils.config import get_profile
from problama_utils.engine.sampling import Sampling, sample_completions
from problama_utils.evaluation import scoring as evaluation
from problama_utils.model import completions, likelihood
from problama_utils.model.completions import complete
from problama_utils.model.likelihood import likeliest, text_log_likelihoods
from problama_utils.model.loading import load_policy
from problama_utils.tasks.piqa import load_piqa
from problama_utils.tasks.science import load_science

SCIENCE = list(load_science("test", source="embedded"))[:2]
PHYSICAL = [dict(row) for row in list(load_piqa(source="embedded"))[:2]]
CHATS = [[{"role": "user", "content": "a bee"}], [{"role": "user", "content": "a wasp, or two"}]]
PROMPTS = [[5, 6, 7], [5, 6, 7], [5, 9]]


def weight(name, value, everywhere=True):
    def apply(model):
        tensor = dict(model.named_parameters())[name]
        with torch.no_grad():
            tensor.fill_(value) if everywhere else tensor.view(-1)[3:4].fill_(value)
    return apply


def last_token_only(model):
    """One output of the head: a single bad logit beside many good ones."""
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.lm_head.weight[-1] = math.nan


BROKEN = {
    "NaN in a projection": weight("model.layers.0.self_attn.q_proj.weight", math.nan),
    "one NaN in a projection": weight("model.layers.1.mlp.up_proj.weight", math.nan, everywhere=False),
    "infinity in a projection": weight("model.layers.1.mlp.down_proj.weight", math.inf),
    "minus infinity in a projection": weight("model.layers.0.mlp.down_proj.weight", -math.inf, everywhere=False),
    "NaN in a norm": weight("model.norm.weight", math.nan),
    "infinity in a norm": weight("model.norm.weight", math.inf),
    "NaN in the embeddings": weight("model.embed_tokens.weight", math.nan),
    "weights that overflow": weight("model.norm.weight", 3e38),
    "one bad token of the head": last_token_only,
}

WAYS = {
    "likelihoods": lambda m, t: text_log_likelihoods(m, t, [("a", " bee"), ("b", " wasp")]),
    "greedy rollouts": lambda m, t: sample_completions(m, PROMPTS, Sampling(3, greedy=True)),
    "sampled rollouts": lambda m, t: sample_completions(m, PROMPTS, Sampling(3)),
    "rollouts with filters": lambda m, t: sample_completions(m, PROMPTS, Sampling(3, top_k=5, top_p=0.9,
                                                                                 temperature=0.7)),
    "rollouts with a minimum": lambda m, t: sample_completions(m, PROMPTS, Sampling(3, stop_token_ids=(2,),
                                                                                    min_new_tokens=2)),
    "greedy completions": lambda m, t: complete(m, t, CHATS, max_new_tokens=3),
    "sampled completions": lambda m, t: complete(m, t, CHATS, max_new_tokens=3, temperature=1.0),
    "science letters": lambda m, t: evaluation.score_questions(m, t, "science", SCIENCE, policy="x", ways="letters"),
    "science choices": lambda m, t: evaluation.score_questions(m, t, "science", SCIENCE, policy="x", ways="likelihood"),
    "science both": lambda m, t: evaluation.score_questions(m, t, "science", SCIENCE, policy="x", system=False),
    "physical letters": lambda m, t: evaluation.score_questions(m, t, "piqa", PHYSICAL, policy="x", few_shot=True),
    "physical, judged": lambda m, t: evaluation.score_task(m, t, "piqa", PHYSICAL, policy="x"),
}  # fmt: skip
OWN = {way: ask for way, ask in WAYS.items() if "rollouts" not in way}  # those that other models and GPUs use as well


def through_transformers(monkeypatch):
    monkeypatch.setattr(likelihood, "llama_for_cpu", lambda model: None)
    monkeypatch.setattr(completions, "llama_for_cpu", lambda model: None)


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("way", WAYS)
def test_a_broken_model_is_refused_on_our_own_path(policy, kind, way):
    model, tokenizer = copy.deepcopy(policy[0]), policy[1]
    BROKEN[kind](model)
    with pytest.raises(CourseError, match="not finite numbers.*load another adapter or checkpoint"):
        WAYS[way](model, tokenizer)


# torch's attention on a CPU drops a NaN query from its maximum, and a short text comes out finite after all
HIDDEN = {("likelihoods", "NaN in a projection")}


@pytest.mark.parametrize(("way", "kind"), [pair for pair in product(OWN, BROKEN) if pair not in HIDDEN])
def test_a_broken_model_is_refused_through_transformers(policy, kind, way, monkeypatch):
    through_transformers(monkeypatch)
    model, tokenizer = copy.deepcopy(policy[0]), policy[1]
    BROKEN[kind](model)
    with pytest.raises(CourseError, match="not finite numbers"):
        OWN[way](model, tokenizer)


@pytest.mark.parametrize("way", OWN)
def test_a_sound_model_answers_the_same_with_the_check(policy, way, monkeypatch):
    ours = OWN[way](*policy)
    through_transformers(monkeypatch)
    stock = OWN[way](*policy)
    assert len(ours) == len(stock)
    if "greedy" in way or "letters" in way:
        assert list(ours) == list(stock)


def test_the_sentence_names_the_first_broken_weight(policy):
    model = copy.deepcopy(policy[0])
    weight("model.layers.1.mlp.up_proj.weight", math.nan, everywhere=False)(model)
    with pytest.raises(CourseError, match="model.layers.1.mlp.up_proj.weight"):
        complete(model, policy[1], CHATS)


def test_a_broken_adapter_is_named_as_well(policy):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(policy[0]), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_B" in name:
                values.fill_(math.nan)
    for way, ask in WAYS.items():
        with pytest.raises(CourseError, match="lora_B"):
            pytest.fail(f"{way} gave {ask(model, policy[1])}")


def test_a_row_that_breaks_late_is_named(policy, monkeypatch):
    from problama_utils.engine import sampling as rollouts

    real, calls = rollouts.filtered_logprobs, []

    def third_is_bad(logits, sampling):
        calls.append(1)
        if len(calls) == 3:
            logits = logits.clone()
            logits[1, 40] = math.inf
        return real(logits, sampling)

    monkeypatch.setattr(rollouts, "filtered_logprobs", third_is_bad)
    with pytest.raises(CourseError, match="token 3 of completion"):
        sample_completions(policy[0], PROMPTS, Sampling(5, greedy=True))


def test_tokens_that_are_switched_off_are_no_fault(policy, monkeypatch):
    through_transformers(monkeypatch)
    model, tokenizer = copy.deepcopy(policy[0]), policy[1]
    model.generation_config.suppress_tokens = [5, 6]
    assert len(complete(model, tokenizer, CHATS, max_new_tokens=2)) == 2


@pytest.mark.parametrize("kind", sorted(set(BROKEN) - {"weights that overflow", "one bad token of the head"}))
def test_a_model_folder_with_broken_weights_is_refused_when_it_is_loaded(policy, tmp_path, monkeypatch, kind):
    model = copy.deepcopy(policy[0])
    BROKEN[kind](model)
    model.save_pretrained(tmp_path)
    policy[1].save_pretrained(tmp_path)
    monkeypatch.setenv("PROBLAMA_MODEL", str(tmp_path))
    with pytest.raises(CourseError, match="NaN or infinite values in its weight 'model"):
        load_policy(get_profile("cpu"))


@pytest.mark.parametrize("scores", [
    [math.nan, -1.0], [-1.0, math.nan], [math.nan, math.nan], [-math.inf, -1.0], [math.inf, -1.0],
    [-1.0, -2.0, math.nan, -3.0],
])  # fmt: skip
def test_no_choice_is_likeliest_among_numbers_that_are_none(scores):
    with pytest.raises(CourseError, match="not all finite"):
        likeliest(scores)
