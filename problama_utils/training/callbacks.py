"""What happens between the steps of a training: rows to disk, held-out measurements, a bar, a curve that refreshes.

Nothing here changes the training: no random number is drawn and no weight is touched.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from problama_utils import tell
from problama_utils.monitoring import curves as monitoring
from problama_utils.monitoring import run_folder
from problama_utils.rewards.slides import RewardFunction, completion_text
from problama_utils.tasks.answers import Verdict
from problama_utils.tasks.base import Task
from problama_utils.training.checkpoints import NotFinite

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SECONDS_BETWEEN_WRITES = 1.0  # a GPU makes several steps a second; the files need not
SECONDS_BETWEEN_PICTURES = 3.0


def heldout_counts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, problems: Dataset, max_new_tokens: int
) -> dict[str, int]:
    """Return how many held-out problems a policy answers greedily `right`, `wrong` or `unjudged`, and `n` of them."""
    from problama_utils.model.completions import complete

    was_training = model.training
    texts = complete(model, tokenizer, list(problems["prompt"]), max_new_tokens=max_new_tokens)
    model.train(was_training)
    given = [task.judge(text, row) for row, text in zip(problems, texts, strict=True)]
    return {**{verdict.value: given.count(verdict) for verdict in Verdict}, "n": len(texts)}


class RunWriter(TrainerCallback):
    """Keeps the run folder current; a full disk costs rows for a while, never the run."""

    def __init__(self, folder: Path, max_steps: int, title: str, stop: threading.Event, group: int, started: float):
        from tqdm import tqdm

        self.folder, self.stop = folder, stop
        self.started = started  # of `time.perf_counter`, earlier by the minutes that a run has taken before it went on
        self.bar = tqdm(total=max_steps, desc=title, unit="step", file=sys.stderr)
        self.group = group  # so many completions of each step are kept
        self.seen: tuple[Sequence[str], Sequence[Any]] = ((), ())  # ids and completions of the first group
        self.paid: dict[str, list[float | None]] = {}
        self.waiting: list[dict[str, Any]] = []
        self.written = 0.0
        self.complained = False
        self.unpayable = ""

    def watch(self, function: RewardFunction) -> RewardFunction:
        """Return the reward function unchanged but for a look at what it pays: NaN would be unjudged for TRL, and the
        first group of each step is kept with its rewards."""

        @functools.wraps(function)
        def watched(completions: Sequence[Any], **columns: Any) -> list[float | None]:
            paid = function(completions=completions, **columns)
            ids = columns.get("id") or [""] * len(completions)
            self.seen = ids[: self.group], completions[: self.group]
            self.paid[function.__name__] = [None if one is None else float(one) for one in paid[: self.group]]
            self.unpayable = self.unpayable or _unpayable(function.__name__, paid)
            return paid

        return watched

    def first_group(self) -> list[dict[str, Any]]:
        """Return one record per completion kept: problem, text, each reward under its function's name, their total."""
        return [{"id": name, "completion": completion_text(completion),
                 **{reward: paid[i] for reward, paid in self.paid.items()},
                 "total": sum(paid[i] or 0.0 for paid in self.paid.values())}
                for i, (name, completion) in enumerate(zip(*self.seen, strict=True))]

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar.update(state.global_step)

    def on_log(self, args, state, control, logs=None, optimizer=None, **kwargs):
        if logs and "reward" in logs:
            self.waiting += [{"step": state.global_step, **row} for row in self.first_group()]
            self.bar.set_postfix(reward="unjudged" if logs["reward"] is None else f"{logs['reward']:.2f}")
            self.bar.update(state.global_step - self.bar.n)
            broken = self.unpayable or _not_finite(logs, optimizer)
            if broken or time.monotonic() - self.written >= SECONDS_BETWEEN_WRITES:
                self._write(state)
            if broken:  # before this step is saved or measured
                self.bar.close()
                raise NotFinite(f"{broken} at step {state.global_step}")

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop.is_set():
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        self._write(state)
        with suppress(OSError):  # _write has said that the disk is full; the old plan stays
            if plan := run_folder.read_plan(self.folder):
                plan["minutes"] = (time.perf_counter() - self.started) / 60
                run_folder.write_json(self.folder / run_folder.PLAN_FILE, plan)

    def on_train_end(self, args, state, control, **kwargs):
        self._write(state)
        self.bar.close()

    def _write(self, state: Any) -> None:
        self.written = time.monotonic()
        try:
            run_folder.write_metrics(self.folder, state.log_history)
            run_folder.append_lines(self.folder / run_folder.COMPLETIONS_FILE, self.waiting)
            self.waiting = []
        except OSError as error:
            if not self.complained:
                tell(f"the log cannot be written ({error.strerror}): training goes on and tries again.")
            self.complained = True


def _not_finite(logs: Mapping[str, Any], optimizer: Any) -> str:
    """Return "<quantity> is <value>" for the first number of a step that is not finite, "" where all are.

    No total reward (None, NaN) is sound: no completion of the step could be judged. In fp16 the loss is scaled, and a
    step whose gradient overflows is left out and repeated with a smaller scale, which is sound too.
    """
    skipped = bool(getattr(optimizer, "step_was_skipped", False))
    numbers = {"the loss": logs.get("loss"), "the gradient norm": None if skipped else logs.get("grad_norm"),
               "the total reward": None if logs["reward"] != logs["reward"] else logs["reward"]}
    return next((f"{name} is {value}" for name, value in numbers.items()
                 if value is not None and not math.isfinite(value)), "")


def _unpayable(name: str, paid: Sequence[Any]) -> str:
    """Return what is wrong with the rewards of a function; None is sound, it stands for "cannot be judged"."""
    for place, reward in enumerate(paid, start=1):
        if reward is not None and not math.isfinite(reward):
            return f"the reward of {name} for completion {place} is {reward}"
    return ""


class HeldOut(TrainerCallback):
    """Measures the policy on fixed held-out problems before the first step, every few steps and after the last."""

    def __init__(self, folder: Path, measure: Callable[[Any], dict[str, int]], every: int):
        self.folder, self.measure, self.every = folder, measure, every

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self._record(0, model)

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):  # after RunWriter's look at the numbers
        due = state.global_step >= state.max_steps or (self.every and state.global_step % self.every == 0)
        if due and logs and "reward" in logs:  # TRL's closing summary has none
            self._record(state.global_step, model)

    def _record(self, step: int, model: Any) -> None:
        path = self.folder / run_folder.HELDOUT_FILE
        rows = [*run_folder.read_table(path), {"step": step, **self.measure(model)}]
        try:
            run_folder.write_table(path, rows)
        except OSError as error:
            tell(f"the held-out accuracy of step {step} cannot be written ({error.strerror}).")


class LiveCurve(TrainerCallback):
    """Redraws the total reward in place below the training cell of a notebook."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.drawn = 0.0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if time.monotonic() - self.drawn >= SECONDS_BETWEEN_PICTURES:
            self._draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._draw(state)

    def _draw(self, state: Any) -> None:
        import matplotlib.pyplot as plt
        import pandas as pd
        from IPython.display import display

        rows = [row for row in state.log_history if "reward" in row]
        if not rows:
            return
        self.drawn = time.monotonic()
        figure, ax = plt.subplots(figsize=(6, 2.6))
        monitoring.draw_curve(ax, pd.DataFrame(rows).set_index("step"), "reward")
        figure.tight_layout()
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        plt.close(figure)


def someone_watches() -> bool:
    """Tell whether this runs in a notebook that a person looks at, not under nbmake or the course runner."""
    if any(os.environ.get(name) for name in ("PROBLAMA_QUIET", "PYTEST_CURRENT_TEST")):
        return False
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ in ("ZMQInteractiveShell", "Shell")  # Jupyter, Colab
