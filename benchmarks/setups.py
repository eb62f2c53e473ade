"""The set-ups tried before those of the profile `cpu` were chosen: one training each, judged on training data.

    python benchmarks/setups.py                 names
    python benchmarks/setups.py piqa-words      train that set-up with seed 3407 and print its row (3 to 8 minutes)

A set-up is judged on 96 problems of the *training* split, of the run's difficulty, that the run did not train on: the
held-out split plays no part in the choice. `assets/runs/setups.csv` holds the rows, `assets/runs/setups/` the logs.
They were made on 2026-11-23 at commit d955694, before runs ordered their problems: a rerun gives other figures.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from problama_utils.config import GRPOSettings, get_profile
from problama_utils.model.loading import attach_lora, load_policy
from problama_utils.monitoring import curves as monitoring
from problama_utils.rewards import slides as rewards
from problama_utils.tasks.piqa import PIQA
from problama_utils.tasks.registry import get_task
from problama_utils.training.callbacks import heldout_counts
from problama_utils.training.problems import training_problems
from problama_utils.training.run import run_grpo

SEED, UNSEEN = 3407, 96
WORDS_PROMPT = ("Choose the option that works. Reply with its words inside tags, like this: "
                "<answer>words of the option</answer>")
LETTER_RUN = {"dataset_size": 96, "temperature": 1.0, "max_completion_length": 12}
WORDS = {"dataset_size": 96, "temperature": 1.0, "max_completion_length": 32}
SETUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "riddles-16-T0.9": ("riddles", {"dataset_size": 16, "temperature": 0.9}),
    "riddles-64-T0.7": ("riddles", {"dataset_size": 64, "temperature": 0.7}),
    "riddles-64-T1.0": ("riddles", {"dataset_size": 64, "temperature": 1.0, "learning_rate": 2e-4}),
    "riddles-256-T0.9": ("riddles", {"dataset_size": 256, "temperature": 0.9}),
    "piqa-letters-T1.0": ("piqa", {**LETTER_RUN, "max_steps": 48, "learning_rate": 1e-4}),
    "piqa-letters-G16": ("piqa", {**LETTER_RUN, "num_generations": 16}),
    "piqa-cold-start": ("piqa", {**LETTER_RUN, "max_steps": 36, "learning_rate": 1e-4}),
    "piqa-words": ("piqa", {**WORDS, "max_steps": 36}),
    "piqa-words-long": ("piqa", {**WORDS, "max_steps": 72, "learning_rate": 3e-4}),
}
COLD_START_STEPS, COLD_START_ROWS = 24, 8


def short_words_reward(completions: Sequence[rewards.Completion], **columns: Any) -> list[float | None]:
    """The slides' reward for brevity with more words allowed: a whole option is no long answer."""
    return [rewards.brevity(rewards.completion_text(completion), full=30, none=60) for completion in completions]


# Two options, of which the right one's text is asked for instead of its letter.
PIQA_WORDS = dataclasses.replace(
    PIQA, system=WORDS_PROMPT, answer=lambda row: (row["sol1"], row["sol2"])[row["label"]],
    columns=lambda row: {"aliases": []}, chance=None,
    rewards=(rewards.correct_answer_reward, short_words_reward, rewards.soft_format_reward),
)  # fmt: skip


def cold_start(model: Any, tokenizer: Any, problems: Any) -> None:
    """Train the adapter on the right answers for a few steps, as DeepSeek-R1 does before its reinforcement learning."""
    import torch

    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-4)
    rows, choice = list(problems), random.Random(SEED)
    for _ in range(COLD_START_STEPS):
        optimizer.zero_grad()
        for row in choice.sample(rows, COLD_START_ROWS):
            head = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
            text = f"{head}<answer>{row['answer']}</answer>{tokenizer.eos_token}"
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            labels = ids.clone()
            labels[:, : len(tokenizer(head, add_special_tokens=False)["input_ids"])] = -100
            (model(input_ids=ids, labels=labels).loss / COLD_START_ROWS).backward()
        optimizer.step()


def right_answers(model: Any, tokenizer: Any, problems: Any, settings: GRPOSettings) -> int:
    """Return how many problems the policy answers rightly, greedily and strictly read."""
    return heldout_counts(model, tokenizer, PIQA, problems, settings.max_completion_length)["right"]


def run(name: str, folder: Path) -> dict[str, Any]:
    """Train one set-up and return its row."""
    from datasets import Dataset

    name_of_task, changes = SETUPS[name]
    task = PIQA_WORDS if name.startswith("piqa-words") else get_task(name_of_task)
    profile = get_profile("cpu")
    settings = dataclasses.replace(getattr(profile, task.name), **changes)
    task = dataclasses.replace(task, settings=settings)
    problems = training_problems(task, settings, seed=SEED)
    others = [row for row in task.load("train", difficulty=settings.difficulty) if row["id"] not in set(problems["id"])]
    unseen = Dataset.from_list([task.asked(row, few_shot=True) for row in others[-UNSEEN:]])
    model, tokenizer = load_policy(profile, seed=SEED)
    model = attach_lora(model, profile, seed=SEED)
    before = right_answers(model, tokenizer, unseen, settings)
    if name == "piqa-cold-start":
        cold_start(model, tokenizer, problems)
    run_grpo(task, profile, seed=SEED, out=folder, policy=(model, tokenizer))
    first, last = monitoring.first_and_last(monitoring.read_log(folder), "reward", 10)
    return {"set-up": name, "total, first 10": round(first, 2), "total, last 10": round(last, 2),
            "unseen right before": before, "unseen right after": right_answers(model, tokenizer, unseen, settings),
            "of": len(unseen)}


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in SETUPS:
        raise SystemExit("Name one of: " + ", ".join(SETUPS))
    print(run(sys.argv[1], Path("build/setups") / sys.argv[1]))


if __name__ == "__main__":
    main()
