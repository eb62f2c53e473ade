"""Kill a training with SIGKILL at random moments, make the same call again, compare what is left: `identical 5/5`.

    python benchmarks/resume.py                 five kills of a short riddle training on the embedded model
    python benchmarks/resume.py --kills 2 --seed 7

And start two trainings in one folder: the second is refused in one sentence, the first ends as if nothing had been.

Compared byte for byte with an uninterrupted run: log, held-out counts, completions and adapter. (`timing.csv` and the
minutes in `run.json` are the clock's, and differ.)
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMPARED = ("log.csv", "heldout.csv", "completions.jsonl", "adapter/adapter_model.safetensors")
STEPS, SAVE_EVERY = 8, 2


def train(folder: Path) -> None:
    """The call that is killed and repeated: riddles as in the profile `cpu`, fewer and shorter steps."""
    from problama_utils.config import get_profile
    from problama_utils.training.run import run_grpo

    profile = get_profile("cpu")
    every = {"save_every": SAVE_EVERY, "heldout_every": 3, "heldout_size": 4}
    short = dataclasses.replace(profile.riddles, max_steps=STEPS, prompts_per_step=2, **every)
    run_grpo("riddles", dataclasses.replace(profile, riddles=short), seed=3407, out=folder)


def start(folder: Path) -> subprocess.Popen[str]:
    """Start `train` in a process of its own."""
    command = [sys.executable, __file__, "--child", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> list[str]:
    """Wait for a training to end well and return what it said about resuming."""
    said = child.communicate()[1]
    if child.returncode:
        raise SystemExit(f"the training failed (exit status {child.returncode}):\n{said[-2000:]}")
    return [line for line in said.splitlines() if line.startswith("No Problama:")]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in COMPARED}


def wait_for_first_row(folder: Path, child: subprocess.Popen[str]) -> None:
    """Wait until the first step is logged, so that a kill meets the training and not the imports."""
    while not (folder / "log.csv").exists() and child.poll() is None:
        time.sleep(0.05)


def two_at_once(folder: Path, expected: dict[str, bytes]) -> bool:
    """Start a second training in a folder that one is writing to; tell whether it is refused and the first unharmed."""
    first = start(folder)
    wait_for_first_row(folder, first)
    second = start(folder)
    refused = second.communicate()[1].strip().splitlines()[-1:]
    finish(first)
    same = [name for name in COMPARED if contents(folder)[name] == expected[name]]
    print(f"two at once: the second ends with {second.returncode}, {' '.join(refused)!r}; the first has {len(same)} of "
          f"{len(COMPARED)} files identical", flush=True)
    return bool(second.returncode) and "Another training" in " ".join(refused) and len(same) == len(COMPARED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train(options.child)
        return 0
    moments = random.Random(options.seed)
    identical = 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        child = start(whole)
        wait_for_first_row(whole, child)
        began = time.perf_counter()
        finish(child)
        span = time.perf_counter() - began
        expected = contents(whole)
        print(f"uninterrupted: {STEPS} steps, {span:.0f} s after the first", flush=True)
        for kill in range(1, options.kills + 1):
            folder = Path(scratch) / f"killed-{kill}"
            child = start(folder)
            wait_for_first_row(folder, child)
            time.sleep(moments.uniform(0, 0.9) * span)
            child.send_signal(signal.SIGKILL)
            child.communicate()
            rows = len((folder / "log.csv").read_text(encoding="utf-8").splitlines()) - 1
            said = finish(start(folder))
            same = [name for name in COMPARED if contents(folder)[name] == expected[name]]
            identical += len(same) == len(COMPARED)
            print(f"kill {kill}: after {rows} logged steps; {said[-1][13:] if said else 'started anew.'} "
                  f"{len(same)} of {len(COMPARED)} files identical", flush=True)
        unharmed = two_at_once(Path(scratch) / "shared", expected)
    print(f"identical {identical}/{options.kills}")
    return 0 if identical == options.kills and unharmed else 1


if __name__ == "__main__":
    raise SystemExit(main())
