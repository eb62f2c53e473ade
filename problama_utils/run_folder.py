"""What a training leaves on disk while it runs, written so that a reader never sees half a row.

    log.csv            one row per optimiser step, under TRL's metric names
    timing.csv         TRL's step_time, kept apart: everything else in the folder repeats bit for bit
    heldout.csv        right, wrong and unjudged answers to fixed held-out problems, every few steps
    completions.jsonl  one group of completions per step, with its rewards
    plan.json          what is running; gone when run.json is there
    run.json           what ran, where, for how long
    adapter/           the trained adapter
    checkpoints/       while the run lasts
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LOG_FILE, RUN_FILE, ADAPTER_FOLDER = "log.csv", "run.json", "adapter"
PLAN_FILE, TIMING_FILE, HELDOUT_FILE, COMPLETIONS_FILE = "plan.json", "timing.csv", "heldout.csv", "completions.jsonl"
CHECKPOINTS = "checkpoints"
CLOCK = "step_time"  # the one metric of TRL that no two runs share
PRODUCTS = (LOG_FILE, TIMING_FILE, HELDOUT_FILE, COMPLETIONS_FILE, RUN_FILE, PLAN_FILE)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a CSV file, replacing it in one step; a value that a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record to a JSON file, replacing it in one step."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def write_metrics(folder: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """Write `log.csv` and `timing.csv` from the trainer's log history, which its checkpoints carry along."""
    # The closing summary has no reward. A checkpoint sorts its keys, so the order of columns must not depend on it.
    rows = [{"step": row["step"], "reward": row["reward"], **dict(sorted(row.items()))}
            for row in history if "reward" in row]
    timing = [{"step": row["step"], CLOCK: row.pop(CLOCK)} for row in rows if CLOCK in row]
    write_table(folder / LOG_FILE, rows)
    write_table(folder / TIMING_FILE, timing)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records as JSON lines, in one write."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; a last line that is still being written is left out."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole if line]


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rewind(folder: Path, step: int) -> None:
    """Drop what was written after `step`, before a run goes on from the checkpoint taken there."""
    measured = [row for row in read_table(folder / HELDOUT_FILE) if int(row["step"]) <= step]
    write_table(folder / HELDOUT_FILE, measured)
    lines = [line for line in read_lines(folder / COMPLETIONS_FILE) if line["step"] <= step]
    part = folder / (COMPLETIONS_FILE + ".part")
    part.unlink(missing_ok=True)
    append_lines(part, lines)
    os.replace(part, folder / COMPLETIONS_FILE)


def empty(folder: Path) -> None:
    """Remove everything that an earlier run has left in `folder`, and nothing else."""
    for name in PRODUCTS:
        (folder / name).unlink(missing_ok=True)
    for name in (CHECKPOINTS, ADAPTER_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Rename `folder` to the next free `<name>-unfinished-<n>` and return that."""
    n = 1
    while (aside := folder.with_name(f"{folder.name}-unfinished-{n}")).exists():
        n += 1
    folder.rename(aside)
    return aside


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Return what the unfinished run in `folder` was set up to do, or None where there is none."""
    try:
        return json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
