"""Measure every policy on ARC-Challenge and on the kit's own science questions, and keep a record of each question.

    python benchmarks/arc_study.py --data ../shared/data --adapters runs --out assets/results/arc
    python benchmarks/arc_study.py --regrade assets/results/arc   # the reader has changed: read again what is kept

Policies are the base model and every adapter found under the folders named. Each is asked all questions zero-shot, with
and without the system prompt, and answers in both ways of `evaluation.scoring`. The study may be killed at any time:
the same command continues where it stopped. It leaves one CSV per data set
and policy (`evaluation.records`) and `summary.json`.

Nothing of ARC's text is written: its rows carry ids, letters, scores and a hash, and of a completion only a form that
consists of tags and one letter; anything else is withheld as "…".
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from problama_utils import CourseError
from problama_utils.config import Profile, detect_profile
from problama_utils.evaluation.records import RecordFile, read_records, unescaped
from problama_utils.evaluation.scoring import MAX_NEW_TOKENS, lettered, question_prompts, read_letters, score_questions
from problama_utils.model.adapters import CONFIG as ADAPTER_CONFIG
from problama_utils.model.adapters import read_config
from problama_utils.monitoring.run_folder import ADAPTER_FOLDER, RUN_FILE
from problama_utils.setup.machine import cores, peak_memory_gb
from problama_utils.tasks.datasets import fingerprint
from problama_utils.tasks.reading import LETTERS
from problama_utils.tasks.science import load_science

SUMMARY = "summary.json"
QUESTIONS_AT_ONCE = 96
WITHHELD = "…"
KEPT_CHARACTERS = 60  # of a completion to one of our own questions
_FORM = re.compile(r"(?:</?answer>|[\s().:\[\]\"'*]|(?<![A-Za-z])[A-H](?![A-Za-z]))*", re.IGNORECASE)


@dataclass(frozen=True)
class Policy:
    """What is measured: the base model, or an adapter on it."""

    label: str  # "base", or task/seed such as "riddles/3407"
    adapter: Path | None = None  # the folder with adapter_config.json


def find_policies(places: Iterable[str | Path]) -> list[Policy]:
    """Return the base and every adapter in or below the folders: adapters, run folders or folders of run folders.

    Raises:
        CourseError: a folder without adapters, or two adapters with one label.
    """
    policies = [Policy("base")]
    for place in map(Path, places):
        inside = {path.parent for path in place.rglob(ADAPTER_CONFIG)}
        found = sorted(folder for folder in inside  # no checkpoints, and no copy of the reference inside an adapter
                       if not inside & set(folder.parents) and "checkpoint" not in folder.parent.name)
        if not found:
            raise CourseError(f"There is no adapter in or below {place.name!r} (no {ADAPTER_CONFIG}): name a run "
                              "folder, or a folder of run folders.")
        policies += [Policy(label_of(folder), folder) for folder in found]
    labels = [policy.label for policy in policies]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise CourseError(f"Two adapters are both called {twice!r} (task and seed of their {RUN_FILE}): measure them "
                          "in two studies, or leave one out.")
    return policies


def label_of(folder: Path) -> str:
    """Return task/seed from the run.json beside an adapter folder, or the folder's name where there is none."""
    run = _run_of(folder)
    if run.get("task") and "seed" in run:
        return f"{run['task']}/{run['seed']}"
    return folder.parent.name if folder.name == ADAPTER_FOLDER else folder.name


def _run_of(folder: Path) -> dict[str, Any]:
    for place in (folder, folder.parent):
        try:
            run = json.loads((place / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(run, dict):
            return run
    return {}


def open_policy(policy: Policy, base: str = "") -> tuple[Any, Any]:
    """Return `(model, tokenizer)` of a policy.

    Args:
        policy: see `find_policies`.
        base: "embedded", a hub id or a model folder; "" is the profile's (PROBLAMA_MODEL takes precedence over all).

    Raises:
        CourseError: no such model or adapter, or an adapter that was trained on another base.
    """
    from problama_utils.model.loading import load_adapter, load_policy, model_source

    profile = _profile(base)
    if policy.adapter is not None:
        trained_on, here = base_of(policy.adapter), Path(model_source(profile)).name
        if trained_on and trained_on.lower() != here.lower():
            raise CourseError(f"The adapter {policy.label!r} was trained on {trained_on!r}, but the base model here is "
                              f"{here!r}: give that model with --base, or leave the adapter out.")
    model, tokenizer = load_policy(profile, seed=0)
    return (model if policy.adapter is None else load_adapter(model, policy.adapter)).eval(), tokenizer


def _profile(base: str) -> Profile:
    profile = detect_profile()
    return replace(profile, model_name=base or profile.model_name)


def base_of(adapter: Path) -> str:
    """Return the name of the model that an adapter was trained on, without owner or folder; "" where it is not said."""
    config = read_config(adapter)
    named = _run_of(adapter).get("model") or config.get("base_model_name_or_path") or ""
    return str(named).rstrip("/").replace("\\", "/").split("/")[-1]


def shareable(completion: str, own: bool) -> str:
    """Return what may be kept of a completion: of our own questions its beginning, of others tags and letters only.

    >>> shareable("<answer>B</answer>", own=False), shareable("B: the moon", own=False)
    ('<answer>B</answer>', '…')
    """
    if own:
        return completion[:KEPT_CHARACTERS]
    return completion if len(completion) <= KEPT_CHARACTERS and _FORM.fullmatch(completion) else WITHHELD


def regrade(folder: Path) -> dict[str, dict[str, int]]:
    """Read `strict` and `lenient` again, with today's reader, from the completions that a study has kept.

    A completion that was withheld, or is as long as what is kept of one, may have gone on: its row stays as it is. So
    does a question of ours that has changed since, and a letter of ARC's that only the options' texts, which are not
    kept, could have told from a second one. Nothing is written before every file has been read.

    Returns:
        By file name: `rows`, `kept` (could not be read again), `changed`, and `unread` leniently `before` and `after`.

    Raises:
        CourseError: the folder holds no records, or a damaged file.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise CourseError(f"There are no records in {folder.name!r} to grade again: name the folder of a study, such "
                          "as assets/results/arc.")
    own = {row["id"]: lettered(row) for row in load_science("test", source="embedded")}
    files = [(file, file.rows()) for file in map(RecordFile, paths)]
    counts = {}
    for file, before in files:
        after = [_regraded(row, own if file.path.stem.startswith("own_") else None) for row in before]
        changed = sum(new is not None and new != old for old, new in zip(before, after, strict=True))
        rows = [new or old for old, new in zip(before, after, strict=True)]
        counts[file.path.name] = {"rows": len(rows), "kept": after.count(None), "changed": changed,
                                  "before": sum(not row["lenient"] for row in before),
                                  "after": sum(not row["lenient"] for row in rows)}
        if changed:
            file.replace(rows)
    return counts


def _regraded(row: dict[str, str], own: Mapping[str, Mapping[str, Any]] | None) -> dict[str, str] | None:
    """Return a record with its letters read again, None where that cannot be done."""
    completion, size = unescaped(row["completion"]), len(row["scores"].split())
    if completion == WITHHELD or len(completion) >= KEPT_CHARACTERS:
        return None
    question = {"answer": row["right"], "choices": [""] * size} if own is None else own.get(row["id"])
    if question is None or question["answer"] != row["right"] or len(question["choices"]) != size:
        return None
    letters = read_letters(completion, LETTERS[:size], question["choices"])
    if own is None and any(row[name] and not letter for name, letter in letters.items()):
        return None  # read as one letter beside an option's text, such as "A: C" where option A is carbon's symbol
    return {**row, **letters}


def measure(
    policy: Policy, datasets: Mapping[str, Sequence[Mapping[str, Any]]], out: Path, *, base: str = "",
    bar: Any = None, questions_at_once: int = QUESTIONS_AT_ONCE,
) -> dict[str, Any] | None:
    """Measure what is still missing of a policy; return seconds, questions and memory, None where nothing was missing.

    Args:
        policy: whom to ask.
        datasets: name ("arc" or "own") → science questions.
        out: folder of the record files.
        base: see `open_policy`.
        bar: a tqdm bar to advance by one per question and prompt.
        questions_at_once: questions between two writes.
    """
    begin, asked = time.perf_counter(), 0
    files = {name: RecordFile(out / f"{name}_{policy.label.replace('/', '_')}.csv") for name in datasets}
    wanted = sum(2 * len(rows) for rows in datasets.values())
    model, tokenizer = open_policy(policy, base)
    weights = _weights(model)
    for name, rows in datasets.items():
        for system in (False, True):
            missing = _missing(tokenizer, rows, policy.label, system, files[name])
            _advance(bar, len(rows) - len(missing))
            for part in _parts(missing, questions_at_once):
                found = score_questions(model, tokenizer, "science", part, policy=policy.label, system=system,
                                        weights=weights)
                found["completion"] = [shareable(text, name == "own") for text in found.completion]
                files[name].append(found.to_dict("records"))
                asked += len(part)
                _advance(bar, len(part))
    if not asked:
        return None
    return {"asked": asked, "of": wanted, "seconds": round(time.perf_counter() - begin, 1),
            "peak_memory_gb": round(peak_memory_gb(), 2)}


def _weights(model: Any) -> Any:
    from problama_utils.model.likelihood import llama_for_cpu

    if llama_for_cpu(model) is None:
        return None
    from problama_utils.engine.decoding import DecodingWeights

    return DecodingWeights(model)


def _missing(tokenizer: Any, rows: Sequence[Mapping[str, Any]], label: str, system: bool, file: RecordFile
             ) -> list[Mapping[str, Any]]:
    """Return the rows without a record, short ones first, so that a batch holds equals."""
    rows = [lettered(row) for row in rows]
    missing = []
    for row, (_, digest) in zip(rows, question_prompts(tokenizer, rows, system=system), strict=True):
        if not file.has({"policy": label, "system": system, "id": row["id"], "prompt_hash": digest}):
            missing.append(row)
    return sorted(missing, key=lambda row: len(row["question"]) + sum(map(len, row["choices"])))


def _parts(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _advance(bar: Any, count: int) -> None:
    if bar is not None:
        bar.update(count)


def update_summary(out: Path, policies: Mapping[str, dict[str, Any]], settings: Mapping[str, Any]) -> None:
    """Write `summary.json`: settings, machine and versions of the last run; seconds per policy add up over runs."""
    from problama_utils.monitoring.run_folder import write_json

    path = out / SUMMARY
    before = json.loads(path.read_text(encoding="utf-8"))["policies"] if path.is_file() else {}
    for label, cost in policies.items():
        earlier = before.get(label, {})
        before[label] = {**cost, "asked": cost["asked"] + earlier.get("asked", 0),
                         "seconds": round(cost["seconds"] + earlier.get("seconds", 0), 1),
                         "peak_memory_gb": max(cost["peak_memory_gb"], earlier.get("peak_memory_gb", 0))}
    write_json(path, {"date": date.today().isoformat(), **settings, "policies": before})


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    from tqdm import tqdm

    from problama_utils.evaluation.tables import print_table
    from problama_utils.model.loading import compute_dtype, model_source

    options = _parser().parse_args(arguments)
    if options.regrade:
        for name, found in regrade(options.regrade).items():
            print("{0}: {rows} rows, {changed} changed, {kept} kept as they were (their completion is not stored "
                  "whole); unread {before} -> {after}".format(name, **found))
        return 0
    loaded = {"own": load_science("test", source="embedded")}
    if options.data:
        loaded["arc"] = load_science("test", source=options.data)
    datasets = {name: list(rows)[: options.limit or None] for name, rows in loaded.items()}
    policies = find_policies(options.adapters)
    settings = {
        "base": Path(model_source(_profile(options.base))).name, "max_new_tokens": MAX_NEW_TOKENS,
        "dtype": str(compute_dtype()).removeprefix("torch."),
        "questions": {name: len(rows) for name, rows in datasets.items()},
        "fingerprints": {name: fingerprint(rows) for name, rows in loaded.items()},
        "machine": f"{platform.system()} {platform.machine()}, {cores()} cores",
        "versions": {"python": platform.python_version(),
                     **{name: version(name) for name in ("torch", "transformers", "peft")}},
    }  # fmt: skip
    total = len(policies) * sum(2 * len(rows) for rows in datasets.values())
    with tqdm(total=total, unit="question", disable=None, file=sys.stderr) as bar:
        for policy in policies:
            bar.set_description(policy.label)
            cost = measure(policy, datasets, options.out, base=options.base, bar=bar)
            if cost:
                update_summary(options.out, {policy.label: cost}, settings)
    print_table(read_records(options.out))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/arc_study.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with ARC-Challenge/; without it only our own questions")
    parser.add_argument("--adapters", nargs="*", type=Path, default=[], help="adapters, runs, or folders of runs")
    parser.add_argument("--out", type=Path, default=Path("assets/results/arc"), help="folder of the record files")
    parser.add_argument("--base", default="", help='"embedded", a hub id or a model folder; default: the profile\'s')
    parser.add_argument("--limit", type=int, default=0, help="the first questions of each data set only; 0 = all")
    parser.add_argument("--regrade", type=Path, metavar="FOLDER", help="measure nothing: read the letters of a study's "
                                                                       "records again from the completions it kept")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
