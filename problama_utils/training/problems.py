"""What a training reads: the problems of a task as TRL wants them, in the order in which the steps take them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from problama_utils import CourseError
from problama_utils.config import GRPOSettings, Profile
from problama_utils.tasks.base import Task
from problama_utils.tasks.registry import get_task

if TYPE_CHECKING:
    from datasets import Dataset


def task_settings(task: Task, profile: Profile) -> GRPOSettings:
    """Return the settings with which a task is trained: its own, else the profile's of its name.

    Raises:
        CourseError: it has none of its own and the profile knows none.
    """
    settings = task.settings or getattr(profile, task.name, None)
    if not isinstance(settings, GRPOSettings):
        raise CourseError(f"There are no training settings for task {task.name!r}: profile {profile.name!r} has those "
                          "of riddles and piqa; give the task its own, Task(..., settings=GRPOSettings(...)).")
    return settings


def training_problems(task: str | Task, settings: GRPOSettings, *, seed: int) -> Dataset:
    """Return the problems to train on, in the columns that TRL and the rewards read.

    Args:
        settings: how many problems, of which difficulty, with or without the two examples.
        seed: of the choice of `settings.dataset_size` problems.

    Returns:
        A dataset with what `Task.asked` gives: `id`, `prompt` (chat messages), `answer`, and `aliases` (riddles) or
        `labels` and `choices` (piqa). Its `info.description` says which source they come from.
    """
    task = get_task(task)
    return _as_asked(task, _rows(task, "train", settings).shuffle(seed=seed), settings.dataset_size, settings.few_shot)


def heldout_problems(task: str | Task, settings: GRPOSettings, *, size: int | None = None) -> Dataset:
    """Return the held-out problems that every run is measured on while it trains: `settings.heldout_size`, or `size`.

    They are the same for every seed (the first of the file that have the run's difficulty, or of a source without
    levels the first of all), and no training sees them.
    """
    task = get_task(task)
    size = settings.heldout_size if size is None else size
    return _as_asked(task, _rows(task, "heldout", settings), size, settings.few_shot)


def _rows(task: Task, split: str, settings: GRPOSettings) -> Dataset:
    from datasets import Dataset

    rows = task.load(split, **({"difficulty": settings.difficulty} if settings.difficulty else {}))
    if not len(rows):
        raise CourseError(f"Task {task.name!r} has no rows in split {split!r}: its loader must return some for 'train' "
                          "and for 'heldout'.")
    return rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows))


def _as_asked(task: Task, rows: Dataset, size: int, few_shot: bool) -> Dataset:
    from datasets import Dataset

    if size:
        rows = rows.select(range(min(size, len(rows))))
    asked = Dataset.from_list([task.asked(row, few_shot=few_shot) for row in rows])
    asked.info.description = rows.info.description
    return asked


def training_order(lengths: Sequence[int], settings: GRPOSettings, *, seed: int) -> list[int]:
    """Return which problem is at each place of a run: `max_steps` · P indices.

    Every pass over the problems is a new shuffle, cut to whole steps. The first step takes the P longest prompts, so
    that a machine whose memory is too small fails at once and not after an hour. TRL is told not to shuffle again:
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
