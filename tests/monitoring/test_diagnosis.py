"""Every cause is provoked by a real training of TRL's trainer, on a policy taught to fail in that way, and named.

The small policies are Llamas of a few thousand weights that were taught what to write by plain supervised steps: tags
or none, right or wrong, long or short. What GRPO then makes of them is no made-up log.
"""

import dataclasses
import math
import string

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from problama_utils import CourseError
from problama_utils.config import GRPOSettings, course_root, get_profile
from problama_utils.monitoring.curves import diagnose, read_log
from problama_utils.monitoring.diagnosis import RULES, find_causes
from problama_utils.monitoring.evidence import METRICS, Evidence, numbers_only
from problama_utils.monitoring.run_folder import LOG_FILE, RUN_FILE, write_json

SEED = 3  # see conftest.seed
SMALL = GRPOSettings(max_steps=12, dataset_size=1, prompts_per_step=1, num_generations=16, max_completion_length=40,
                     learning_rate=1e-3, warmup_steps=0, few_shot=False, temperature=1.0, heldout_size=1,
                     heldout_every=0)
# A trend is the last third of the steps against the first: what is over after a few steps, or drowns in the noise of 16
# completions, is seen under one seed and not under the next. At this rate a change takes about half of the run.
TREND = {"learning_rate": 3e-4, "max_steps": 24, "num_generations": 32}
WRONG = "<answer>nobody knows</answer>"
RIGHT = "<answer>{answer}</answer>"  # filled in from the one problem that the small policies are asked


@pytest.fixture(scope="module")
def problem(seed):
    from problama_utils.training.problems import training_problems

    return training_problems("riddles", SMALL, seed=seed)[0]


@pytest.fixture(scope="module")
def taught(tiny_model_dir, tmp_path_factory, problem):
    """Return a function: texts → folder of a small policy that writes each of them about equally often.

    With half as many steps it garbles one text in ten, and unlearns that instead of what the test is about; at a rate
    that stays as high to the end, one seed in sixteen is just then recovering from a leap and writes nothing of it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = {}

    def teach(*texts, steps=400):
        if texts in folders:
            return folders[texts]
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).train()
        asked = tokenizer.apply_chat_template(problem["prompt"], add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(asked)["input_ids"])
        written = [text.format(**problem) for text in texts]
        batch = tokenizer([f"{asked}{text}<|im_end|>" for text in written], padding=True, padding_side="right",
                          return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, :start] = -100
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
        decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, 2 - 2 * step / steps))
        for _ in range(steps):
            model(**batch, labels=labels).loss.backward()
            optimiser.step()
            decay.step()
            optimiser.zero_grad()
        folders[texts] = tmp_path_factory.mktemp("taught")
        model.save_pretrained(folders[texts])
        tokenizer.save_pretrained(folders[texts])
        return folders[texts]

    return teach


@pytest.fixture
def train(taught, seed, tmp_path, monkeypatch):
    """Return a function: what the policy writes, and changes to the settings → run folder after a real training."""
    from problama_utils.training.run import run_grpo

    def run(*texts, **changes):
        monkeypatch.setenv("PROBLAMA_MODEL", str(taught(*texts)))
        profile = dataclasses.replace(get_profile("cpu"), riddles=dataclasses.replace(SMALL, **changes),
                                      max_seq_length=2048)
        return run_grpo("riddles", profile, seed=seed, out=tmp_path / "run", strict=False)

    return run


def first_cause(folder):
    """The verdict, which must also be found in the bare table: a log that was sent by mail has no settings."""
    diagnosis = diagnose(folder)
    assert find_causes(read_log(folder)).verdict == diagnosis.verdict
    return diagnosis.verdict


def test_a_training_that_learns_is_healthy(train):
    assert first_cause(train(RIGHT, WRONG, **TREND | {"max_steps": 36})) == "healthy"


def test_a_training_with_four_new_tokens_is_truncated_and_told_how_many_to_give(train):
    folder = train(RIGHT, WRONG, max_completion_length=4)
    assert first_cause(folder) == "completions truncated"
    assert "max_completion_length 4 → 16" in diagnose(folder).findings[0].cure


def test_a_training_of_a_policy_that_never_writes_tags_cannot_reach_the_format(train):
    folder = train("I do not know.", "{answer}")
    assert first_cause(folder) == "format unreachable" and "few_shot=True" in diagnose(folder).findings[0].cure


def test_a_training_of_a_policy_that_knows_all_answers_has_nothing_to_learn(train):
    assert first_cause(train(RIGHT, temperature=0.5)) == "everything already right"


def test_a_training_of_one_wrong_answer_at_a_low_temperature_has_groups_without_variance(train):
    folder = train(WRONG, temperature=0.3)
    assert first_cause(folder) == "groups without variance"
    assert "temperature 0.3 → 0.6 and num_generations 16 → 32" in diagnose(folder).findings[0].cure


def test_a_training_at_a_learning_rate_of_1_breaks_the_policy(train):
    assert first_cause(train(RIGHT, WRONG, learning_rate=1.0)) == "learning rate too high"


def test_a_training_at_a_learning_rate_of_1e_9_does_not_move(train):
    assert first_cause(train(RIGHT, WRONG, learning_rate=1e-9)) == "learning rate too low"


def test_a_training_with_beta_50_is_held_by_the_kl_penalty_even_where_beta_must_be_read_off_the_log(train):
    assert first_cause(train(RIGHT, WRONG, beta=50.0)) == "KL holding on"


def test_a_training_that_can_only_gain_the_tags_learned_the_form(train):
    assert first_cause(train(WRONG, "nobody knows", **TREND)) == "only the form was learned"


def test_a_training_paid_by_length_alone_is_hacked_and_trls_own_state_file_is_enough_to_see_it(
    taught, seed, tmp_path, monkeypatch
):
    from problama_utils.model.loading import attach_lora, load_policy
    from problama_utils.rewards.slides import SLIDE_REWARDS
    from problama_utils.training.problems import training_problems
    from problama_utils.training.run import grpo_config
    from problama_utils.training.trainer import make_trainer

    long = " ".join(string.ascii_lowercase) + " " + RIGHT  # 26 words first: next to nothing is paid for brevity
    short_paid = dataclasses.replace(SMALL, max_completion_length=112, **TREND)
    monkeypatch.setenv("PROBLAMA_MODEL", str(taught(long, WRONG)))
    profile = dataclasses.replace(get_profile("cpu"), max_seq_length=2048)
    model, tokenizer = load_policy(profile, seed=seed)
    config = grpo_config(short_paid, profile, seed=seed, out=tmp_path)
    config.reward_weights = [0.0, 1.0, 0.0]  # only the short response is paid; the other two are watched
    config.save_strategy = "no"
    trainer = make_trainer(model=attach_lora(model, profile, seed=seed), reward_funcs=list(SLIDE_REWARDS), args=config,
                           train_dataset=training_problems("riddles", SMALL, seed=seed), processing_class=tokenizer)
    trainer.train()
    trainer.save_state()
    folder = next(path.parent for path in tmp_path.rglob("trainer_state.json"))
    assert diagnose(folder).verdict == "reward hacked by length"


def test_a_training_of_four_steps_is_too_short_to_tell(train):
    assert first_cause(train(RIGHT, WRONG, max_steps=4)) == "too short to tell"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"max_completion_length": 4, "few_shot": True, "learning_rate": 1e-5}, "completions truncated"),
        ({"max_completion_length": 48, "system": "Answer with one short sentence."}, "format unreachable"),
        ({"learning_rate": 1.0, "few_shot": True}, "learning rate too high"),
    ],
)
def test_a_training_of_the_embedded_model_that_fails_is_told_why(changes, cause, seed, tmp_path):
    from problama_utils.tasks.riddles import RIDDLES
    from problama_utils.training.run import run_grpo

    settings = {"max_completion_length": 16, "num_generations": 4, "max_steps": 6, "dataset_size": 4, "difficulty": 1,
                "system": RIDDLES.system, **changes}
    asked = dataclasses.replace(RIDDLES, system=settings.pop("system"))  # a prompt that names no tags gets none
    profile = dataclasses.replace(get_profile("cpu"), riddles=dataclasses.replace(SMALL, **settings))
    assert first_cause(run_grpo(asked, profile, seed=seed, out=tmp_path, strict=False)) == cause


def test_the_shipped_riddle_runs_are_healthy():
    folders = [path.parent for path in (course_root() / "assets/runs").rglob("riddles*/**/log.csv")]
    assert folders and {diagnose(folder).verdict for folder in folders} == {"healthy"}


def test_a_riddle_run_is_never_compared_with_chance_but_a_run_between_two_options_is(tmp_path):
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"step": range(1, 31), "rewards/soft_format_reward/mean": np.linspace(0.3, 0.5, 30),
                        "rewards/correct_answer_reward/mean": np.linspace(0.4, 1.0, 30) + rng.normal(0, 0.1, 30)})
    log["reward"] = log.sum(axis=1) - log["step"]
    log.to_csv(tmp_path / LOG_FILE, index=False)
    verdicts = {}
    for task in ("riddles", "piqa"):
        write_json(tmp_path / RUN_FILE, {"task": task, "profile": {task: {}}})
        verdicts[task] = diagnose(tmp_path).verdict
    assert verdicts == {"riddles": "healthy", "piqa": "only the form was learned"}


def rows(**metrics):
    return pd.DataFrame(metrics, index=range(1, 13))


def test_a_gap_is_a_gap_but_nan_to_the_end_and_any_infinity_are_broken_numbers():
    numbers = np.linspace(1.0, 2.0, 12)
    gap, ends, infinite = numbers.copy(), numbers.copy(), numbers.copy()
    gap[[0, 5]], ends[9:], infinite[4] = math.nan, math.nan, math.inf
    steps = [Evidence(numbers_only(rows(loss=column))).unmendable("loss") for column in (gap, ends, infinite)]
    assert steps == [None, 10, 5]
    assert find_causes(rows(loss=ends, reward=numbers)).verdict == "learning rate too high"
    assert "step 10" in find_causes(rows(loss=ends, reward=numbers)).findings[0].evidence
    assert find_causes(rows(loss=np.full(12, math.nan), reward=numbers)).verdict == "learning rate too high"


def test_a_change_is_the_difference_of_thirds_in_units_of_its_standard_error():
    change = Evidence(numbers_only(rows(reward=[0, 1, 0, 1, 9, 9, 9, 9, 1, 2, 1, 2]))).change("reward")
    # each third has variance 1/3 over 4 steps: error = sqrt(2 · (1/3) / 4)
    assert (change.first, change.last) == (0.5, 1.5) and change.error == pytest.approx(math.sqrt(1 / 6))
    assert change.risen and not change.fallen  # 1.0 > 2 · 0.408


def test_a_correlation_takes_the_steps_that_have_both_and_none_where_nothing_varies():
    log = numbers_only(rows(reward=[1, 2, 3, math.nan] * 3, kl=[-1, -2, -3, 9] * 3, loss=[1] * 12))
    run = Evidence(log)
    assert run.correlation("reward", "kl") == pytest.approx(-1.0)
    assert math.isnan(run.correlation("reward", "loss")) and math.isnan(run.correlation("reward", "entropy"))


def test_beta_is_known_from_the_settings_or_else_read_off_loss_and_kl():
    log = numbers_only(rows(loss=np.linspace(0.04, 0.4, 12), kl=np.linspace(1.0, 10.0, 12)))
    assert Evidence(log).beta == pytest.approx(0.04) and Evidence(log, {"beta": 0.5}).beta == 0.5
    assert math.isnan(Evidence(log[["loss"]]).beta)


def test_without_a_logged_kl_a_gradient_that_exploded_is_evidence_enough():
    steep = rows(reward=[1.0, 0.9] * 6, loss=[0.1] * 12, grad_norm=[0.3] * 9 + [500.0] * 3)
    assert find_causes(steep).verdict == "learning rate too high" and "500" in find_causes(steep).findings[0].evidence
    assert find_causes(steep, {"beta": 100.0}).verdict == "flat"


def test_a_policy_that_stands_still_is_blamed_on_the_rate_unless_beta_is_heavy_or_the_rate_is_good():
    still = {"reward": [1.0, 1.1] * 6, "loss": [0.0] * 12, "kl": [1e-4] * 12}
    low, good = (rows(**still, learning_rate=[rate] * 12) for rate in (3e-5, 1e-3))
    verdicts = [find_causes(log, {"beta": beta}).verdict for log in (low, good) for beta in (0.04, 5.0)]
    assert verdicts == ["learning rate too low", "KL holding on", "flat", "KL holding on"]


def test_what_a_log_lacks_is_said_and_not_guessed():
    diagnosis = find_causes(rows(reward=np.linspace(0, 1, 12), something_new=range(12)))
    assert diagnosis.verdict == "healthy" and len(diagnosis.skipped) == len(RULES)
    assert "Not checked: completions truncated (the log has no completions/clipped_ratio)" in str(diagnosis)


def test_the_text_holds_verdict_figures_and_cure():
    cut = find_causes(rows(**{"reward": [0.0] * 12, "completions/clipped_ratio": [1.0] * 12}),
                      {"max_completion_length": 5})
    assert str(cut).startswith("completions truncated: total reward 0 → 0")
    assert "100% of completions" in str(cut) and "max_completion_length 5 → 16" in str(cut)


def test_a_reward_that_falls_without_a_known_cause_is_not_called_healthy():
    assert find_causes(rows(reward=np.linspace(2, 1, 12))).verdict == "falling"
    assert find_causes(rows(reward=[1.0, 1.1] * 6)).verdict == "flat"


def test_a_folder_without_a_log_and_an_empty_log_are_told_in_a_sentence(tmp_path):
    with pytest.raises(CourseError, match="run the training notebook"):
        diagnose(tmp_path)
    assert find_causes(pd.DataFrame()).verdict == "too short to tell"
    (tmp_path / LOG_FILE).write_text("")
    with pytest.raises(CourseError, match="is empty"):
        diagnose(tmp_path)


cells = st.one_of(st.floats(), st.none(), st.text(max_size=3), st.integers(), st.booleans())
numbers = st.one_of(st.floats(0, 3), st.just(math.nan))
known_or_not = st.sampled_from([*METRICS, "step", "epoch", ""])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), steps=st.integers(0, 40), wild=st.booleans())
def test_no_log_however_broken_raises(data, steps, wild):
    names = data.draw(st.lists(known_or_not if wild else st.sampled_from(METRICS), max_size=len(METRICS)))
    draw = st.lists(cells if wild else numbers, min_size=steps, max_size=steps)
    log = pd.DataFrame(list(zip(*(data.draw(draw) for _ in names), strict=True)), columns=names)
    chosen = data.draw(st.sampled_from([None, {}, {"beta": "much", "temperature": None}, GRPOSettings(max_steps=1,
                                        dataset_size=1), {"beta": 2.0, "max_completion_length": 0}]))
    diagnosis = find_causes(log, chosen, chance=data.draw(st.sampled_from([None, 0.5])))
    known = {rule.cause for rule in RULES} | {"healthy", "flat", "falling", "too short to tell"}
    assert diagnosis.verdict in known and str(diagnosis)
