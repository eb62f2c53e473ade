"""What the lane's tests run in processes of their own: `lane.py SCENARIO HOME RESULT` writes a JSON record.

    train     the course on unsloth's GPU classes: load, attach, train, stop, resume, save, reload, measure
    plain     the same adapter on transformers and peft, without unsloth: what the measurements are compared with
    defaults  the defaults of unsloth's GRPOConfig that differ from TRL's

`lane.py kernel -f FILE` is a Jupyter kernel instead: a notebook's Python with the pretended card.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pretend_card

SEED = 11


def card_profile() -> Any:
    from problama_utils.config import get_profile

    return get_profile("colab-t4")


def profile() -> Any:
    """colab-t4 with the embedded model in the 8B's place, three small steps, no 4 bits (their kernels need a card)."""
    card = card_profile()
    riddles = dataclasses.replace(
        card.riddles, max_steps=3, dataset_size=6, difficulty=1, num_generations=4, max_completion_length=12,
        learning_rate=3e-4, warmup_steps=0, few_shot=True, save_every=1, heldout_every=2, heldout_size=4)  # fmt: skip
    return dataclasses.replace(card, model_name="embedded", load_in_4bit=False, riddles=riddles)


def measurements(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Greedy completions of prompts of many lengths, and log-likelihoods of science choices."""
    from problama_utils.evaluation import scoring as evaluation
    from problama_utils.tasks.riddles import load_riddles
    from problama_utils.tasks.science import load_science

    riddles = list(load_riddles("heldout", difficulty=1))[:16]
    questions = list(load_science("test"))[:6]
    answers = evaluation.score_task(model, tokenizer, "riddles", riddles, policy="lane", max_new_tokens=12)
    return {"completions": list(answers.completion), "correct": int(answers.correct.sum()),
            "scores": evaluation.choice_scores(model, tokenizer, questions, system=True)}  # fmt: skip


def load(seed: int = SEED) -> tuple[Any, Any]:
    from problama_utils.model.loading import load_policy

    return load_policy(profile(), seed=seed)


def on_the_pretend_card() -> None:
    """unsloth first, as everywhere; then the course, whose own CPU paths are closed to a model that stands here."""
    pretend_card.insert()
    import unsloth  # noqa: F401

    pretend_card.bring_to_the_cpu()
    from problama_utils.engine import layers as llama_layers

    def refuse(model: Any) -> None:
        raise llama_layers.UnsupportedModelError("this model stands for one on a card")

    llama_layers.llama_parts = refuse


def train(home: Path) -> dict[str, Any]:
    on_the_pretend_card()
    from problama_utils.model.loading import attach_lora, load_adapters, speaking_as
    from problama_utils.monitoring import run_folder
    from problama_utils.training import callbacks as progress
    from problama_utils.training.run import TrainingInterrupted, run_grpo

    record: dict[str, Any] = {}
    model, tokenizer = load()
    policy = attach_lora(model, profile(), seed=SEED)
    record["padding_side"] = tokenizer.padding_side
    record["before"] = measurements(policy, tokenizer)
    watched = progress.RunWriter.on_train_begin

    def note(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        record["config"] = {name: str(getattr(args, name)) for name in ("optim", "use_vllm", "fp16", "bf16", "use_cpu")}
        record["optimizer"] = type(getattr(given["optimizer"], "optimizer", given["optimizer"])).__module__
        watched(self, args, state, control, **given)

    progress.RunWriter.on_train_begin = note
    whole = run_grpo("riddles", profile(), seed=SEED, out=home / "whole", policy=(policy, tokenizer), strict=False)
    record["trained"] = measurements(policy, tokenizer)

    def interrupt(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        watched(self, args, state, control, **given)
        if state.global_step == 0:
            os.kill(os.getpid(), signal.SIGINT)  # what "Interrupt kernel" sends; the step is finished first

    progress.RunWriter.on_train_begin = interrupt
    parts = home / "parts"
    try:
        run_grpo("riddles", profile(), seed=SEED, out=parts, strict=False)
    except TrainingInterrupted as error:
        record["stopped"] = str(error)
        checkpoint = parts / run_folder.CHECKPOINTS / "checkpoint-1"
        record["checkpoint"] = {str(path.relative_to(checkpoint)): path.stat().st_size
                                for path in checkpoint.rglob("*") if path.is_file()}  # fmt: skip
    run_grpo("riddles", profile(), seed=SEED, out=parts, strict=False)
    for name, folder in (("whole", whole), ("parts", parts)):
        record[f"log_{name}"] = run_folder.read_table(folder / run_folder.LOG_FILE)
        record[f"heldout_{name}"] = run_folder.read_table(folder / run_folder.HELDOUT_FILE)
        record[f"files_{name}"] = sorted(path.name for path in folder.iterdir())
    model, tokenizer = load()
    both = {name: folder / run_folder.ADAPTER_FOLDER for name, folder in (("parts", parts), ("whole", whole))}
    model = load_adapters(model, both)
    for name, key in (("whole", "reloaded"), (None, "switched_off")):
        with speaking_as(model, name) as policy:
            record[key] = measurements(policy, tokenizer)
    return record


def plain(home: Path) -> dict[str, Any]:
    from problama_utils.model.loading import load_adapter, load_policy

    model, tokenizer = load_policy(dataclasses.replace(profile(), backend="transformers"), seed=SEED)
    model = model.float()
    record = {"base": measurements(model, tokenizer)}
    record["tuned"] = measurements(load_adapter(model, home / "whole" / "adapter"), tokenizer)
    record["unsloth"] = "unsloth" in sys.modules
    return record


def defaults(home: Path) -> dict[str, Any]:
    import inspect

    import trl
    from trl import GRPOConfig

    stock = inspect.signature(GRPOConfig.__init__).parameters
    on_the_pretend_card()
    from UnslothGRPOTrainer import UnslothGRPOConfig

    theirs = inspect.signature(UnslothGRPOConfig.__init__).parameters
    from problama_utils.training.run import grpo_config

    trl.GRPOConfig = dict
    named = grpo_config(profile().riddles, profile(), seed=SEED, out=home)
    return {"named": sorted(named), "differ": {name: str(found.default) for name, found in theirs.items()
                       if name in stock and str(found.default) != str(stock[name].default)}}  # fmt: skip


def notebook_profile() -> Any:
    """The card's profile with little to do: three steps a task, four problems, no checkpoint but the last."""
    short = profile()
    less = dict(max_steps=3, dataset_size=4, difficulty=1, num_generations=4, max_completion_length=16,
                learning_rate=3e-4, warmup_steps=0, save_every=3, heldout_every=0, heldout_size=2)  # fmt: skip
    tasks = {name: dataclasses.replace(getattr(card_profile(), name), **less) for name in ("riddles", "piqa")}
    return dataclasses.replace(short, **tasks, eval_questions=4)


def kernel() -> None:
    """A notebook's Python: the card is there from the start, unsloth is imported where the notebook does it."""
    from ipykernel.kernelapp import launch_new_instance

    from problama_utils import config

    short = notebook_profile()
    config.PROFILES[short.name] = short
    pretend_card.insert()
    sys.meta_path.insert(0, pretend_card.AfterImport("unsloth", on_the_pretend_card))
    launch_new_instance(sys.argv[2:])


if __name__ == "__main__" and sys.argv[1] == "kernel":
    kernel()
elif __name__ == "__main__":
    name, home, result = sys.argv[1:4]
    record = {"train": train, "plain": plain, "defaults": defaults}[name](Path(home))
    Path(result).write_text(json.dumps(record, indent=1), encoding="utf-8")
