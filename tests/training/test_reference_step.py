"""The loop that notebook 03 shows trains what TRL trains, and the notebook shows the package's own text."""

import ast
import dataclasses
import inspect

import nbformat
import pytest
import torch

from problama_utils.config import GRPOSettings, course_root, get_profile
from problama_utils.grpo import by_hand
from problama_utils.model.loading import attach_lora, load_policy
from problama_utils.training import comparison
from problama_utils.training.problems import training_problems

SEED = 1  # see conftest.seed
SETTINGS = GRPOSettings(max_steps=1, dataset_size=4, prompts_per_step=2, num_generations=4, max_completion_length=6,
                        learning_rate=1e-3, warmup_steps=0, few_shot=False)


@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
def test_one_step_of_the_plain_loop_is_one_step_of_trl(beta, seed, tiny_model_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    settings = dataclasses.replace(SETTINGS, beta=beta)
    profile = dataclasses.replace(get_profile("cpu"), riddles=settings, max_seq_length=2048)

    def policy():
        model, tokenizer = load_policy(profile, seed=seed)
        return attach_lora(model.float(), profile, seed=seed), tokenizer

    (theirs, tokenizer), (ours, _) = policy(), policy()
    problems = training_problems("riddles", settings, seed=seed)
    # random text earns nothing from the slides' rewards, so another function of the text takes their place
    monkeypatch.setattr(comparison, "total_reward",
                        lambda completions, **_: [float(sum(text[0]["content"].encode()) % 3) for text in completions])
    step = comparison.trl_step(theirs, tokenizer, problems, settings, profile, seed=seed, out=tmp_path)
    assert len(set(step.rewards)) > 1  # groups with spread, or nothing would be compared
    before = {name: weight.detach().clone() for name, weight in ours.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(ours.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    loss = by_hand.reference_step(ours, step.prompts, step.completions, step.rewards, settings, optimizer)
    assert loss == pytest.approx(step.loss, abs=1e-6)
    trained = dict(theirs.named_parameters())
    moved = 0.0
    for name, weight in ours.named_parameters():
        if weight.requires_grad:
            assert torch.allclose(weight, trained[name], atol=0.02 * settings.learning_rate), name
            moved = max(moved, (weight - before[name]).abs().max().item())
    assert moved > 0.9 * settings.learning_rate


def test_notebook_03_shows_the_loop_as_it_is_and_it_has_at_most_60_lines():
    notebook = nbformat.read(course_root() / "notebooks" / "03_riddle_training.ipynb", as_version=4)
    shown = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.FunctionDef):
                    shown[node.name] = ast.unparse(node)
    names = ("completion_logprobs", "reference_step")
    sources = [inspect.getsource(getattr(by_hand, name)) for name in names]
    assert sum(len(source.splitlines()) for source in sources) <= 60
    for name, source in zip(names, sources, strict=True):
        assert shown[name] == ast.unparse(ast.parse(source).body[0]), name
