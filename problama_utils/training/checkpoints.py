"""Checkpoints that can be trusted: sealed when complete, checked before use, skipped when the disk is full.

transformers writes a checkpoint file by file, so one that was interrupted looks like a whole one. Here a checkpoint
counts only once a manifest with the SHA-256 of every file is beside them; the manifest is written last.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from problama_utils import tell
from problama_utils.engine.layers import first_broken_weight
from problama_utils.model.manifests import damaged_files, write_manifest
from problama_utils.monitoring.run_folder import own_checkpoints

KEPT = 2  # the newest may turn out damaged; then there is one before it


def newest_whole(folder: Path, *, remove: bool = True) -> Path | None:
    """Return the newest whole checkpoint in `folder`, or None; damaged ones are named on stderr and removed.

    With `remove=False` this only looks: nothing is said and nothing removed.
    """
    for checkpoint in own_checkpoints(folder):
        if not damaged_files(checkpoint):
            return checkpoint
        if remove:
            tell(f"{checkpoint.name} is damaged or was never finished: trying the one before, else the start.")
            shutil.rmtree(checkpoint, ignore_errors=True)
    return None


class NotFinite(Exception):
    """A number of a training is NaN or infinite; the message is "<quantity> is <value> at step <n>"."""


class SafeCheckpoints:
    """Mixed into a transformers Trainer: seals what it saves, survives a full disk, loads every adapter.

    Weights that are no numbers are not saved, and of the older checkpoints only those are removed that are ours:
    transformers would also take `checkpoint-12.bak` and `checkpoint-best` for old ones.
    """

    def _save_checkpoint(self: Any, *args: Any, **kwargs: Any) -> None:
        from safetensors import SafetensorError

        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if name := first_broken_weight(self.accelerator.unwrap_model(self.model), trained=True):
            raise NotFinite(f"the weight {name} is not finite at step {self.state.global_step}")
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(*args, **kwargs)
            write_manifest(checkpoint)
            for old in own_checkpoints(checkpoint.parent)[limit:] if limit else ():
                shutil.rmtree(old, ignore_errors=True)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk says
            shutil.rmtree(checkpoint, ignore_errors=True)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            tell(f"{checkpoint.name} could not be saved ({reason[:120]}): training goes on, the checkpoint before it "
                "stays. Free some disk space.")
        finally:
            self.args.save_total_limit = limit

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        """Write none: TRL would put one beside the checkpoints at each save, where nobody publishes anything."""

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load every adapter of a checkpoint: transformers 5.17 takes those in subfolders, such as TRL's copy `ref`
        for the reference policy, for all there are, and would go on from a fresh policy."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        policy = self.accelerator.unwrap_model(self.model if model is None else model)
        names = list(getattr(policy, "peft_config", {}))
        folder = Path(resume_from_checkpoint)
        if len(names) > 1 and (folder / "adapter_model.safetensors").exists():
            policy.load_adapter(str(folder), policy.active_adapter, is_trainable=True)


def with_safe_checkpoints(trainer: type) -> type:
    """Return the trainer class with `SafeCheckpoints` mixed in, itself where it already is."""
    if issubclass(trainer, SafeCheckpoints):
        return trainer
    return type(f"Resumable{trainer.__name__}", (SafeCheckpoints, trainer), {})


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Set an event at the first Ctrl-C (or a notebook's "Interrupt kernel"); the second interrupts at once.

    In the middle of a step the random state and the optimiser do not belong together, so nothing worth saving exists.
    """
    request = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.is_set():
            raise KeyboardInterrupt
        request.set()
        tell("stopping at the end of this step, then saving (once more to stop without).")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield request
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
