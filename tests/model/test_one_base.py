"""One base model in memory, several adapters on it: each speaks exactly as if it had been loaded alone."""

import itertools

import pytest
import torch

from problama_utils import CourseError
from problama_utils.config import get_profile
from problama_utils.model.completions import complete
from problama_utils.model.likelihood import text_log_likelihoods
from problama_utils.model.loading import attach_lora, load_adapter, load_adapters, load_policy, speaking_as

CHATS = [[{"role": "user", "content": text}] for text in ("a bee", "what is it?")]
PAIRS = [("Question: a bee?\nAnswer:", " yes"), ("Question: a bee?\nAnswer:", " no, a wasp")]
NAMES = ("riddle-tuned", "PIQA-tuned", "third one")


@pytest.fixture(scope="module")
def profile(tiny_model_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
        yield get_profile("cpu")


@pytest.fixture(scope="module")
def adapters(profile, tmp_path_factory):
    """Three folders of adapters that say different things."""
    folders = {}
    for seed, name in enumerate(NAMES):
        model = attach_lora(load_policy(profile)[0], profile, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.data.normal_(generator=generator)
        folders[name] = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folders[name])
    return folders


def said(model, tokenizer):
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, 8]])).logits
    return (logits.tolist(), complete(model, tokenizer, CHATS, max_new_tokens=6),
            text_log_likelihoods(model, tokenizer, PAIRS))


@pytest.fixture(scope="module")
def alone(profile, adapters):
    """What each says in a model of its own; None is the base model."""
    model, tokenizer = load_policy(profile)
    found = {None: said(model, tokenizer)}
    for name, folder in adapters.items():
        found[name] = said(load_adapter(load_policy(profile)[0], folder), tokenizer)
    assert len({str(answer) for answer in found.values()}) == len(found)
    return found


@pytest.mark.parametrize("order", itertools.permutations((None, *NAMES[:2])), ids=str)
@pytest.mark.parametrize("loaded", [NAMES, NAMES[::-1]], ids=["in order", "reversed"])
def test_each_speaks_as_if_it_were_alone_in_any_order(order, loaded, profile, adapters, alone):
    model, tokenizer = load_policy(profile)
    model = load_adapters(model, {name: adapters[name] for name in loaded})
    assert said(model, tokenizer) == alone[loaded[0]]  # the first is active
    for name in (*order, *order):
        with speaking_as(model, name) as policy:
            assert said(policy, tokenizer) == alone[name]
        assert said(model, tokenizer) == alone[loaded[0]]
        assert not any(weight.requires_grad for weight in model.parameters())


def test_one_within_another_and_after_an_error(profile, adapters, alone):
    model, tokenizer = load_policy(profile)
    model = load_adapters(model, adapters)
    with speaking_as(model, NAMES[1]):
        with speaking_as(model, None), pytest.raises(CourseError), speaking_as(model, "nobody"):
            pass
        with pytest.raises(RuntimeError, match="power"), speaking_as(model, NAMES[2]):
            raise RuntimeError("the power went out")
        assert said(model, tokenizer) == alone[NAMES[1]]
    assert said(model, tokenizer) == alone[NAMES[0]]


def test_no_weight_of_the_base_is_held_twice(profile, adapters):
    base = load_policy(profile)[0]
    weights = sum(weight.numel() for weight in base.parameters())
    model = load_adapters(base, adapters)
    own = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    assert own == weights and model.base_model.model is base


@pytest.mark.parametrize("name", [None, "default"])
def test_a_policy_in_training_stays_trainable(name, profile):
    model = attach_lora(load_policy(profile)[0], profile)
    before = [key for key, weight in model.named_parameters() if weight.requires_grad]
    with speaking_as(model, name):
        pass
    assert before == [key for key, weight in model.named_parameters() if weight.requires_grad] != []


def test_a_bare_base_model_speaks_for_itself(profile):
    model, _ = load_policy(profile)
    with speaking_as(model, None) as policy:
        assert policy is model
    with pytest.raises(CourseError, match="there are none"), speaking_as(model, "default"):
        pass


@pytest.mark.parametrize("name", ["", " ", "riddles.v2", ".", "lora_A", None, 7, "a.b.c", "x.", "my lora_B"])
def test_a_name_that_peft_cannot_take_is_refused_before_anything_is_loaded(name, profile, adapters):
    model, _ = load_policy(profile)
    with pytest.raises(CourseError, match="cannot be called"):
        load_adapters(model, {"good": adapters[NAMES[0]], name: adapters[NAMES[1]]})
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("folders", [{}, {"good": "nowhere"}])
def test_nothing_to_load_is_a_sentence_and_the_model_stays_bare(folders, profile, adapters):
    model, _ = load_policy(profile)
    with pytest.raises(CourseError, match=r"\.$"):
        load_adapters(model, {**({"first": adapters[NAMES[0]]} if folders else {}), **folders})
    assert not hasattr(model, "peft_config") and not any("lora_" in key for key, _ in model.named_modules())


def test_a_model_with_an_adapter_is_refused(profile, adapters):
    model = load_adapters(load_policy(profile)[0], {"one": adapters[NAMES[0]]})
    with pytest.raises(CourseError, match="has an adapter already"):
        load_adapters(model, {"two": adapters[NAMES[1]]})
