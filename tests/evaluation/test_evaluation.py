"""Scoring: one record per question, nothing depends on batching, the fast way answers as `generate`, bad input is told.
"""

import pytest

from benchmarks import arc_study
from problama_utils import CourseError
from problama_utils.config import get_profile
from problama_utils.evaluation.records import COLUMNS, RecordFile, read_records
from problama_utils.evaluation.scoring import (
    lettered,
    score_questions,
    score_task,
    share_with_interval,
    text_log_likelihoods,
)
from problama_utils.model import completions
from problama_utils.model.completions import complete
from problama_utils.tasks.piqa import load_piqa
from problama_utils.tasks.riddles import load_riddles
from problama_utils.tasks.science import load_science

SCIENCE = list(load_science("test", source="embedded"))[:3]
ROW = {"id": "1", "question": "Q?", "choices": ["zz", "aa", "qq"], "labels": ["A", "B", "C"], "answer": "B"}


@pytest.fixture(scope="module")
def talker(policy):
    """The tiny model with weights large enough that it says different things, and stops."""
    import copy

    import torch

    model = copy.deepcopy(policy[0])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(12.0 if weight.dim() > 1 else 1.0)
    return model, policy[1]


def test_our_sampler_answers_greedily_what_generate_answers(talker, monkeypatch):
    chats = [[{"role": "user", "content": text}] for text in ("x", "What is it?", "b" * 40, "Why", "x")]
    ours = complete(*talker, chats, max_new_tokens=12, batch_size=2)
    monkeypatch.setattr(completions, "llama_for_cpu", lambda model: None)
    assert complete(*talker, chats, max_new_tokens=12, batch_size=3) == ours
    assert len(set(ours)) == 4 and all(ours)  # two chats are equal


def test_a_completion_ends_where_generate_would_end_it(policy):
    # the embedded model's generation config and its tokenizer could name different ends; either stops
    model, tokenizer = policy
    chat = [[{"role": "user", "content": "hello"}]]
    first = tokenizer(complete(model, tokenizer, chat, max_new_tokens=4)[0])["input_ids"][0]
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, [2, first]
    try:
        assert completions.llama_for_cpu(model) is not None
        assert len(tokenizer(complete(model, tokenizer, chat, max_new_tokens=4)[0])["input_ids"]) == 1
    finally:
        model.generation_config.eos_token_id = before


def test_completions_come_back_in_the_order_of_the_chats(policy):
    chats = [[{"role": "user", "content": "x" * n}] for n in (5, 60, 20)]
    together = complete(*policy, chats, max_new_tokens=4, batch_size=2)
    assert together == [complete(*policy, [chat], max_new_tokens=4)[0] for chat in chats]


@pytest.mark.parametrize("fast", [True, False])
def test_sampling_is_repeatable_by_its_seed(policy, monkeypatch, fast, seed):
    if not fast:
        monkeypatch.setattr(completions, "llama_for_cpu", lambda model: None)
    chat = [[{"role": "user", "content": "hello"}]] * 3
    draws = [complete(*policy, chat, max_new_tokens=6, temperature=1.0, seed=s) for s in (seed, seed, seed + 1)]
    assert draws[0] == draws[1] != draws[2]


def test_prompts_are_the_same_for_every_policy_and_differ_with_the_system_prompt(policy):
    a, b, c = (score_questions(*policy, "science", SCIENCE, policy=name, system=system, max_new_tokens=2)
               for name, system in (("x", True), ("y", True), ("x", False)))
    assert a.prompt_hash.tolist() == b.prompt_hash.tolist() and not set(a.prompt_hash) & set(c.prompt_hash)


def test_every_question_leaves_one_record_with_a_verdict(policy):
    physical, riddles = (list(load("heldout", source="embedded"))[:3] for load in (load_piqa, load_riddles))
    tables = [score_questions(*policy, "science", SCIENCE, policy="p", max_new_tokens=2),
              score_questions(*policy, "piqa", physical, policy="p", few_shot=True, max_new_tokens=2),
              score_task(*policy, "piqa", physical, policy="p", max_new_tokens=2),
              score_task(*policy, "riddles", riddles, policy="p", max_new_tokens=2)]
    assert [len(table) for table in tables] == [3, 3, 3, 3]
    assert set(tables[3].verdict) <= {"right", "wrong", "unjudged"}
    assert tables[1].completion.tolist() == tables[2].completion.tolist(), "the same prompts and greedy answers"
    assert set(tables[1].right) <= {"A", "B"} and tables[1].chance.tolist() == [0.5] * 3


def test_a_record_holds_both_ways_of_answering_and_is_the_same_from_disk(policy, tmp_path):
    both = score_questions(*policy, "science", SCIENCE, policy="p", max_new_tokens=3)
    known, told = (score_questions(*policy, "science", SCIENCE, policy="p", ways=way, max_new_tokens=3)
                   for way in ("likelihood", "letters"))
    assert set(known.columns) | set(told.columns) == set(both.columns) >= set(COLUMNS)
    assert not {"completion", "unread"} & set(known.columns) and not {"scores", "chance"} & set(told.columns)
    for alone in (known, told):
        assert alone.equals(both[alone.columns])
    RecordFile(tmp_path / "own_p.csv").append(both.to_dict("records"))
    read = read_records(tmp_path).drop(columns="data")
    assert read.columns.tolist() == both.columns.tolist()
    for name in both.columns.drop("scores"):  # of which three decimals are kept
        assert read[name].tolist() == both[name].tolist(), name


@pytest.mark.parametrize("ways", ["letter", [], ["letters", "guess"], ""])
def test_an_unknown_way_of_asking_is_refused(policy, ways):
    with pytest.raises(CourseError, match="letters, likelihood"):
        score_questions(*policy, "science", SCIENCE, policy="p", ways=ways)


def test_a_task_without_options_is_refused_as_questions_and_no_questions_at_all_too(policy):
    with pytest.raises(CourseError, match="0 choices"):
        score_questions(*policy, "riddles", list(load_riddles("heldout", source="embedded"))[:1], policy="p")
    with pytest.raises(CourseError, match="no questions"):
        score_questions(*policy, "science", [], policy="p")


def test_the_likeliest_choice_wins_whatever_its_letter(policy):
    scores = text_log_likelihoods(*policy, [("Question: Q?\nAnswer:", f" {choice}") for choice in ROW["choices"]])
    chosen = score_questions(*policy, "science", [ROW], policy="p", system=False, ways="likelihood").chosen[0]
    assert chosen == "ABC"[scores.index(max(scores))]


def saying(monkeypatch, text):
    from problama_utils.evaluation import scoring as evaluation

    monkeypatch.setattr(evaluation, "complete", lambda model, tokenizer, chats, **how: [text] * len(chats))


def five(row):
    return {**row, "choices": [*row["choices"], "ww", "vv"], "labels": list("ABCDE"), "answer": "E"}


QUESTIONS = [  # reason, question, what the policy says, expected strict letter, lenient letter, right answer
    ("three choices", ROW, "<answer>B</answer>", "B", "B", "B"),
    ("five choices", five(ROW), "<answer>E</answer>", "E", "E", "E"),
    ("digit labels become letters", {**ROW, "labels": ["1", "2", "3"], "answer": "2"}, "<answer>b</answer>", "B", "B",
     "B"),
    ("five digit labels", {**five(ROW), "labels": list("12345"), "answer": "4"}, "<answer>D</answer>", "D", "D", "D"),
    ("empty completion", ROW, "", None, None, "B"),
    ("empty tags", ROW, "<answer></answer>", None, None, "B"),
    ("a letter that is no label", ROW, "<answer>D</answer>", None, None, "B"),
    ("a letter on a line of its own", ROW, "B\nBecause iron rusts", None, "B", "B"),
    ("announced on the next line", ROW, "The answer is:\n\nB: aa", None, "B", "B"),
    ("the letter A as every other", ROW, "A is correct", None, "A", "B"),
    ("a letter of an option's text", {**ROW, "choices": ["bulb C", "bulb A", "none"]}, "bulb A", None, None, "B"),
    ("a letter before an option's text", {**ROW, "choices": ["bulb C", "bulb A", "none"]}, "B: bulb A", None, "B", "B"),
    ("a vitamin", ROW, "It has vitamin C.", None, None, "B"),
    ("two letters", ROW, "<answer>B or a</answer>", None, None, "B"),
    ("look-alikes", ROW, "<answer>\u0412</answer>", "B", "B", "B"),
    ("two look-alikes", ROW, "<answer>\u0412 \u0410</answer>", None, None, "B"),
    ("a label of longer questions", ROW, "E", None, None, "B"),
    ("a word for an answer", ROW, "<answer>aa</answer>", None, None, "B"),
    ("a letter without tags", ROW, "B: aa", None, "B", "B"),
]


@pytest.mark.parametrize(("reason", "row", "says", "strict", "lenient", "right"), QUESTIONS,
                         ids=[question[0] for question in QUESTIONS])
def test_odd_questions_and_answers_are_scored_as_their_row_says(policy, monkeypatch, reason, row, says, strict, lenient,
                                                                right):
    saying(monkeypatch, says)
    record = score_questions(*policy, "science", [row], policy="p", system=False).iloc[0]
    assert (record.strict, record.lenient, record.right) == (strict or "", lenient or "", right)
    assert len(record.scores) == len(row["choices"]) and record.chosen in "ABCDE"[: len(row["choices"])]
    assert (record.unparsed, record.unread) == (strict is None, lenient is None)


def test_both_options_of_a_pair_are_known_to_its_reader(policy, monkeypatch):
    pair = {"id": "1", "goal": "?", "sol1": "light bulb B", "sol2": "light bulb A", "label": 1}
    for says, letter in (("<answer>bulb B</answer>", None), ("<answer>B: light bulb A</answer>", "B")):
        saying(monkeypatch, says)
        row = score_questions(*policy, "piqa", [pair], policy="p", few_shot=True).iloc[0]
        assert row.strict == letter or letter is None and row.unparsed and row.unread


REFUSED = [
    ("an answer that is no label", {**ROW, "answer": "D"}, "one of them the answer"),
    ("a letter key with digit labels", {**ROW, "labels": ["1", "2", "3"]}, "one of them the answer"),
    ("one choice", {**ROW, "choices": ["zz"], "labels": ["A"], "answer": "A"}, "1 choices"),
    ("a label twice", {**ROW, "labels": ["A", "B", "B"]}, "'B', 'B'"),
    ("a choice without a label", {**ROW, "labels": ["A", "B"]}, "a label each"),
]


@pytest.mark.parametrize(("reason", "row", "sentence"), REFUSED, ids=[r[0] for r in REFUSED])
def test_a_question_that_cannot_be_scored_is_refused_in_one_sentence(reason, row, sentence):
    with pytest.raises(CourseError, match=sentence) as error:
        lettered(row)
    assert "'1'" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def adapter(policy, tmp_path_factory, tiny_model_dir):
    """A run folder with an adapter of the tiny model, as a training leaves it."""
    import copy
    import json

    from problama_utils.model.loading import attach_lora

    folder = tmp_path_factory.mktemp("runs") / "riddles_seed5"
    tuned = attach_lora(copy.deepcopy(policy[0]), get_profile("cpu"), seed=0)
    tuned.save_pretrained(folder / "adapter")
    (folder / "run.json").write_text(json.dumps({"task": "riddles", "seed": 5, "model": tiny_model_dir.name}))
    return folder


def test_an_adapter_is_found_and_named_after_its_task_and_seed(adapter):
    for place in (adapter.parent, adapter, adapter / "adapter"):
        assert [found.label for found in arc_study.find_policies([place])] == ["base", "riddles/5"]


def test_an_adapter_for_another_base_model_is_refused_in_one_sentence(adapter, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("PROBLAMA_MODEL", raising=False)
    other = tmp_path / "another-llama"
    other.symlink_to(tiny_model_dir)  # same shapes: only the name tells
    with pytest.raises(CourseError, match=r"trained on '.*', but the base model here is 'another-llama'"):
        arc_study.open_policy(arc_study.Policy("riddles/5", adapter / "adapter"), str(other))


def test_an_adapter_of_other_shapes_is_refused_even_without_a_name(adapter, tmp_path, monkeypatch):
    import json
    import shutil

    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    monkeypatch.delenv("PROBLAMA_MODEL", raising=False)
    nameless = tmp_path / "adapter-without-run"
    shutil.copytree(adapter / "adapter", nameless)
    config = json.loads((nameless / "adapter_config.json").read_text())
    source = config["base_model_name_or_path"]
    (nameless / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    wide = LlamaConfig.from_pretrained(source, hidden_size=64)
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "wide")
    with pytest.raises(CourseError, match="does not fit this model"):
        arc_study.open_policy(arc_study.Policy("x", nameless), str(tmp_path / "wide"))


def test_a_damaged_file_of_an_earlier_start_stops_the_study_before_a_model_is_loaded(tmp_path, monkeypatch):
    RecordFile(tmp_path / "own_base.csv").append([])
    (tmp_path / "own_base.csv").write_bytes(b"not,a,record\n")
    monkeypatch.setattr(arc_study, "open_policy", lambda *a: pytest.fail("loaded"))
    with pytest.raises(CourseError, match="not a file of records"):
        arc_study.measure(arc_study.Policy("base"), {"own": SCIENCE}, tmp_path)


def test_examples_in_the_docstrings_run():
    import doctest

    from problama_utils.evaluation import records
    from problama_utils.evaluation import scoring as evaluation

    assert [doctest.testmod(module).failed for module in (evaluation, records)] == [0, 0]


def test_a_share_is_written_with_its_interval_and_n():
    import pandas as pd

    assert share_with_interval(pd.Series([True] * 25 + [False] * 75)) == "25.0 % (18 to 34 %, n = 100)"
