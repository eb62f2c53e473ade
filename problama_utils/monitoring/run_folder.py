"""What a training leaves on disk while it runs, written so that a reader never sees half a row.

    log.csv            one row per optimiser step, under TRL's metric names
    timing.csv         TRL's step_time, kept apart: everything else in the folder repeats bit for bit
    heldout.csv        right, wrong and unjudged answers to fixed held-out problems, every few steps
    completions.jsonl  one group of completions per step, with its rewards
    plan.json          what is running; gone when run.json is there
    run.json           what ran, where, for how long
    adapter/           the trained adapter
    checkpoints/       while the run lasts
    .previous-run/     the finished run that a new one replaces, until the new one is finished too

Beside it, `.<name>.lock` is held by the process that trains into the folder, and removed when it ends. What else lies
in a run folder is the reader's: it is neither read nor removed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from problama_utils import CourseError

LOG_FILE, RUN_FILE, ADAPTER_FOLDER = "log.csv", "run.json", "adapter"
PLAN_FILE, TIMING_FILE, HELDOUT_FILE, COMPLETIONS_FILE = "plan.json", "timing.csv", "heldout.csv", "completions.jsonl"
CHECKPOINTS, PREVIOUS = "checkpoints", ".previous-run"
CLOCK = "step_time"  # the one metric of TRL that no two runs share
PRODUCTS = (RUN_FILE, LOG_FILE, TIMING_FILE, HELDOUT_FILE, COMPLETIONS_FILE, PLAN_FILE)  # in the order of removal
ELSEWHERE = "choose another folder (out=..., or PROBLAMA_RUNS for all runs)"
LEAST_ROOM = 50e6  # bytes; no adapter of a real model and its checkpoint take less


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimiser step after which a checkpoint was taken: `checkpoint-12` → 12."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def own_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that trainings have left in `folder`, newest first; what has other names is not ours."""
    found = [path for path in (folder.iterdir() if folder.is_dir() else ())
             if re.fullmatch(r"checkpoint-[1-9][0-9]*", path.name) and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=checkpoint_step, reverse=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in `folder`, and the folder itself unless it holds something else."""
    for checkpoint in own_checkpoints(folder):
        shutil.rmtree(checkpoint, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step, so that a full disk leaves the old one whole, and nothing beside it.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a CSV file, replacing it in one step; a value that a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record to a JSON file, replacing it in one step."""
    write_whole(path, json.dumps(record, indent=1) + "\n")


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


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return list(csv.DictReader(file))


def go_on(folder: Path, step: int, plan: Mapping[str, Any]) -> None:
    """Make the folder ready for its run to go on after `step`: drop what was written later or cannot be read."""
    with _writing(folder):
        try:
            measured = [row for row in read_table(folder / HELDOUT_FILE) if None not in row and _until(row, step)]
        except csv.Error:
            measured = []
        write_table(folder / HELDOUT_FILE, measured)
        path = folder / COMPLETIONS_FILE
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        write_whole(path, "".join(f"{line}\n" for line in text.split("\n")[:-1] if _until(line, step)))
        write_json(folder / PLAN_FILE, plan)


def _until(row: Any, step: int) -> bool:
    try:
        return int((json.loads(row) if isinstance(row, str) else row)["step"]) <= step
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def place(out: Any) -> tuple[Path, Path]:
    """Return the run folder as it was named and where it really lies, after making sure that a run can be written.

    Nothing is made or changed.

    Raises:
        CourseError: no path, something else has its name or that of one of its files, it or the folder it lies in
            cannot be written to, the disk is full, or another training is writing there.
    """
    try:
        named = Path(out).expanduser()
        folder = named.resolve()  # one folder, one lock, by any path
        above = nearest(folder)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # too long, a byte 0, a loop of links, no such user
        raise CourseError(f"The run folder cannot be {str(out)[:80]!r} ({str(error)[:80]}): {ELSEWHERE}.") from error
    if not str(out).strip() or folder == folder.parent:
        raise CourseError(f"The run folder cannot be {str(out)!r}: {ELSEWHERE}.")
    with _writing(folder):
        folders = [above, *(folder / name for name in (ADAPTER_FOLDER, CHECKPOINTS, PREVIOUS))]
        for path in [*folders, *(folder / name for name in PRODUCTS)]:
            kind, right = ("folder", path.is_dir()) if path in folders else ("file", path.is_file())
            if (path.exists() or path.is_symlink()) and not right:
                raise CourseError(f"{str(path)!r} is no {kind}, so no run can be written there: move it away or "
                                  f"{ELSEWHERE}.")
        for path in (above, folder.parent, folder / CHECKPOINTS):
            if path.exists() and not os.access(path, os.W_OK | os.X_OK):
                raise CourseError(f"Nothing can be written to {str(path)!r} (read-only, or another user's): "
                                  f"{ELSEWHERE}.")
        check_room(folder, LEAST_ROOM)
        if lock_file(folder).exists():
            with suppress(PermissionError), _held(folder, 0):  # of another user: he who can write there can lock too
                pass
    return named, folder


def check_room(folder: Path, needed: float) -> None:
    """Raise `CourseError` where the disk that `folder` lies on, or will lie on, has fewer than `needed` bytes left."""
    free = shutil.disk_usage(nearest(folder)).free
    if free < needed:
        raise CourseError(f"The disk of {str(folder)!r} has {free / 1e6:,.0f} MB left, but the adapter and one "
                          f"checkpoint take about {needed / 1e6:,.0f} MB: free some space, or {ELSEWHERE}.")


def nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def lock_file(folder: Path) -> Path:
    """Return the lock of a run folder: beside it, so that it stays where it is when the folder is renamed."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this training alone; the system frees the lock of a process that was killed.

    Raises:
        CourseError: another training holds it (the message says which and since when), or it cannot be written.
    """
    path = lock_file(folder)
    with ExitStack() as held:
        with _writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(_held(folder, 1.0))  # seconds, for somebody who only looks whether it is held
        try:
            yield
        finally:  # while it is held: who has opened the file meanwhile sees that its name is gone, and opens it anew
            with suppress(OSError):
                path.unlink()


@contextmanager
def _held(folder: Path, seconds: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file(folder))
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise CourseError(_busy(folder)) from None
    try:
        yield
    finally:
        lock.release()


def owner() -> dict[str, Any]:
    """Return who trains here, for those who come second: process, host, start."""
    return {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _busy(folder: Path) -> str:
    holder = (read_plan(folder) or {}).get("owner")
    known = isinstance(holder, dict) and {"pid", "host", "since"} <= holder.keys()
    who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if known else "another process"
    return (f"Another training is writing to {str(folder)!r} ({who}): wait until it ends, stop it, or choose another "
            f"folder (out=...). If no such process runs any more, remove {lock_file(folder).name} beside the folder.")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what a disk says into a sentence."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # filelock's word for a drive that knows no locks
        reason = getattr(error, "strerror", None) or error
        raise CourseError(f"The run folder {str(folder)!r} cannot be written ({reason}): free some space, or "
                          f"{ELSEWHERE}.") from error


def is_finished(folder: Path) -> bool:
    """Tell whether `folder` holds a whole run: `run.json` is written last and removed first."""
    return (folder / RUN_FILE).exists()


def start(folder: Path, plan: Mapping[str, Any]) -> None:
    """Make the folder ready for a new run; a finished one in it is kept under `.previous-run` until `finish`.

    At every moment one whole run is there. Its files are linked (or copied, where links are unknown) to a folder that
    then gets its name in one step, and only then removed.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        previous, part = folder / PREVIOUS, folder / (PREVIOUS + ".part")
        unfinished = (folder / PLAN_FILE).exists() and not is_finished(folder)
        there = [folder / name for name in (*PRODUCTS, ADAPTER_FOLDER) if (folder / name).exists()]
        if there and not unfinished and (is_finished(folder) or not previous.exists()):
            _remove(part)
            part.mkdir()
            for path in there:
                if path.is_dir():
                    shutil.copytree(path, part / path.name, copy_function=_link)
                else:
                    _link(path, part / path.name)
            _remove(previous)  # the run that this one has replaced, where a kill came before it was removed
            os.replace(part, previous)
        remove_checkpoints(folder / CHECKPOINTS)
        for name in (*PRODUCTS, ADAPTER_FOLDER):
            _remove(folder / name)
            _remove(folder / f"{name}.part")  # what a kill leaves of one that was written
        write_json(folder / PLAN_FILE, plan)


def finish(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json`, which makes the run a finished one, and remove what was kept until then."""
    write_json(folder / RUN_FILE, record)
    (folder / PLAN_FILE).unlink(missing_ok=True)
    remove_checkpoints(folder / CHECKPOINTS)
    for name in (PREVIOUS, PREVIOUS + ".part"):
        _remove(folder / name)


def kept(folder: Path) -> str:
    """Return a sentence that says where the finished run is that a new one was to replace, "" where there is none."""
    if is_finished(folder) or not (folder / PREVIOUS).exists():
        return ""
    return f"The run that was there before is kept in {str(folder / PREVIOUS)!r}."


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a mounted drive that knows no links
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(folder: Path) -> Path:
    """Rename `folder` to the next free `<name>-unfinished-<n>` and return that; a finished run kept in it stays."""
    with _writing(folder):
        n = 1
        while (aside := folder.with_name(f"{folder.name}-unfinished-{n}")).exists():
            n += 1
        folder.rename(aside)
        if (aside / PREVIOUS).exists():
            folder.mkdir()
            (aside / PREVIOUS).rename(folder / PREVIOUS)
    return aside


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Return what the unfinished run in `folder` was set up to do; {} where that cannot be read, None without one."""
    try:
        plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {} if own_checkpoints(folder / CHECKPOINTS) else None
    except (OSError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) and {"task", "profile", "seed"} <= plan.keys() else {}
