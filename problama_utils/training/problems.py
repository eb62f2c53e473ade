"""What a training reads: the problems of a task as TRL wants them, in the order in which the steps take them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.config import GRPOSettings, Profile
from problama_utils.tasks import prompts
from problama_utils.tasks.problems import load_physical, load_riddles

if TYPE_CHECKING:
    from datasets import Dataset

TASKS = ("riddles", "piqa")


def task_settings(task: str, profile: Profile) -> GRPOSettings:
    """Return the profile's settings of a task.

    Raises:
        CourseError: there is no such task.
    """
    if task not in TASKS:
        raise CourseError(f"There is no task {task!r}. Choose one of: {', '.join(TASKS)}.")
    return getattr(profile, task)


def training_problems(task: str, settings: GRPOSettings, *, seed: int) -> Dataset:
    """Return the problems to train on, in the columns that TRL and the rewards read.

    Args:
        task: "riddles" or "piqa".
        settings: how many problems, of which difficulty, with or without the two examples.
        seed: of the choice of `settings.dataset_size` problems.

    Returns:
        A dataset with `prompt` (chat messages), `answer`, and `aliases` (riddles) or `labels` and `choices` (piqa). Its
        `info.description` says which source they come from.
    """
    rows = _load(task)("train", difficulty=settings.difficulty or None).shuffle(seed=seed)
    return _as_dataset(task, rows, settings.dataset_size, settings.few_shot)


def heldout_problems(task: str, settings: GRPOSettings, *, size: int | None = None) -> Dataset:
    """Return the held-out problems that every run is measured on while it trains: `settings.heldout_size`, or `size`.

    They are the same for every seed (the first of the file that have the run's difficulty, or of a source without
    levels the first of all), and no training sees them.
    """
    rows = _load(task)("heldout", difficulty=settings.difficulty or None)
    return _as_dataset(task, rows, settings.heldout_size if size is None else size, settings.few_shot)


def _load(task: str) -> Any:
    return load_riddles if task == "riddles" else load_physical


def _as_dataset(task: str, rows: Dataset, size: int, few_shot: bool) -> Dataset:
    from datasets import Dataset

    if size:
        rows = rows.select(range(min(size, len(rows))))
    asked = Dataset.from_list([_asked(task, row, few_shot) for row in rows])
    asked.info.description = rows.info.description
    return asked


def _asked(task: str, row: Mapping[str, Any], few_shot: bool) -> dict[str, Any]:
    """Return one problem as TRL and the rewards read it."""
    if task == "riddles":
        return {"id": row["id"], "prompt": prompts.riddle_messages(row, few_shot=few_shot),
                "answer": row["answer"], "aliases": row["aliases"]}
    return {"id": row["id"], "prompt": prompts.piqa_messages(row, few_shot=few_shot),
            "answer": prompts.piqa_letter(row), "labels": ["A", "B"], "choices": [row["sol1"], row["sol2"]]}


def training_order(lengths: Sequence[int], settings: GRPOSettings, *, seed: int) -> list[int]:
    """Return which problem stands at each place of a run: `max_steps` · P indices.

    Every pass over the problems is a new shuffle, cut to whole steps. The first step takes the P longest prompts, so
    that a machine whose memory is too small says so at once and not after an hour. TRL is told not to shuffle again:
    the order is data, the same under every trainer and after every restart.

    Args:
        lengths: N prompt lengths in tokens; N at least P.
        settings: `max_steps` and `prompts_per_step` (P).
        seed: of the shuffles.

    >>> from problama_utils.config import get_profile
    >>> from dataclasses import replace
    >>> tiny = replace(get_profile("cpu").riddles, max_steps=2, prompts_per_step=2)
    >>> sorted(training_order([5, 9, 7, 3], tiny, seed=0)[:2])
    [1, 2]
    """
    per_step, places = settings.prompts_per_step, settings.max_steps * settings.prompts_per_step
    longest = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:per_step]
    shuffles = random.Random(seed)
    order: list[int] = []
    while len(order) < places:
        one_pass = list(range(len(lengths)))
        shuffles.shuffle(one_pass)
        if not order:
            one_pass = longest + [i for i in one_pass if i not in longest]
        order += one_pass[: len(one_pass) // per_step * per_step]
    return order[:places]
