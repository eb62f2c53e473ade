"""Did it learn? Four seeds per task, two standard errors, held-out items, and what is claimed of them.

    python benchmarks/learning.py --read assets/runs            the table; fails unless the shown claims hold
    python benchmarks/learning.py --remake assets/runs          train and score all runs again (about 45 minutes)
    python benchmarks/learning.py --remake DIR --seeds 5 6 7 8  other seeds

The claims are those of assets/results/README.md. Per task and seed a folder `<task>-<seed>` holds the run's log, its
record and `items.csv`: every held-out problem of the run's difficulty answered greedily before and after, and sampled
once at the training temperature.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from problama_utils.config import course_root, get_profile
from problama_utils.evaluation.uncertainty import difference_over_seeds, two_level_interval
from problama_utils.monitoring import curves as monitoring
from problama_utils.monitoring.run_folder import ADAPTER_FOLDER, RUN_FILE, read_table, write_json, write_table

SEEDS = (3407, 1, 2, 3)
TASKS = ("riddles", "piqa")
STEPS = 10  # first and last steps that are compared
SHIPPED_SEED = 3407  # the seed whose adapter is kept, in bf16
MEASURES = {"total": "total reward, last 10 steps minus first 10", "format": "held-out answers in form (sampled)",
            "accuracy": "held-out answers right (greedy)"}
CLAIMS = "assets/results/README.md"
CLAIM_ROW = re.compile(r"^\| (riddles|piqa) \| ([^|]+) \| .* \| (rises|falls|no claim) \|$", re.MULTILINE)


def reward_gain(folder: Path) -> tuple[float, float]:
    """Return the mean total reward of the first and of the last `STEPS` steps."""
    return monitoring.first_and_last(monitoring.read_log(folder), "reward", STEPS)


def read_items(folder: Path) -> dict[str, np.ndarray]:
    """Return the columns of `items.csv` as arrays; verdicts as text."""
    rows = read_table(folder / "items.csv")
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def measure(task: str, root: Path) -> list[dict[str, Any]]:
    """Return one row per measure: means before and after over the seeds, the gain with its SE, interval, verdict."""
    folders = sorted(path for path in root.glob(f"{task}-*") if (path / "items.csv").exists())
    first, last = (np.array(side) for side in zip(*(reward_gain(folder) for folder in folders), strict=True))
    gain = difference_over_seeds((last - first).tolist())
    rows = [{"measure": "total", "before": first.mean(), "after": last.mean(), "seeds": len(folders), "gain": gain,
             "per_seed": (last - first).round(2).tolist(), "clear": abs(gain.ratio) > 2}]
    items = [read_items(folder) for folder in folders]
    for name, how, good in (("format", "sampled", ["right", "wrong"]), ("accuracy", "greedy", ["right"])):
        before_SQ = np.array([np.isin(item[f"{how}_before"], good) for item in items], dtype=float)
        after_SQ = np.array([np.isin(item[f"{how}_after"], good) for item in items], dtype=float)
        gain = difference_over_seeds((after_SQ.mean(1) - before_SQ.mean(1)).tolist())
        both = two_level_interval(after_SQ - before_SQ)
        rows.append({"measure": name, "before": before_SQ.mean(), "after": after_SQ.mean(), "seeds": len(folders),
                     "gain": gain, "low": both.low, "high": both.high,
                     "per_seed": (after_SQ - before_SQ).mean(1).round(3).tolist(),
                     "clear": abs(gain.ratio) > 2 and (both.low > 0 or both.high < 0)})
    for row in rows:
        sure = row["clear"] and row["seeds"] >= 4
        row.update(task=task, verdict="no claim" if not sure else "rises" if row["gain"].estimate > 0 else "falls")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as the Markdown table that stands in `CLAIMS`."""
    lines = ["| task | measure | before | after | gain ± SE over seeds | 95 % interval, seeds and items | verdict |",
             "|---|---|---|---|---|---|---|"]
    for row in rows:
        percent = row["measure"] != "total"
        show = (lambda value: f"{100 * value:.1f} %") if percent else (lambda value: f"{value:.2f}")
        interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}" if percent else "–"
        scale = 100 if percent else 1
        gain = f"{scale * row['gain'].estimate:+.2f} ± {scale * row['gain'].se:.2f} (n = {row['seeds']})"
        lines.append(f"| {row['task']} | {MEASURES[row['measure']]} | {show(row['before'])} | {show(row['after'])} | "
                     f"{gain} | {interval} | {row['verdict']} |")
    return "\n".join(lines)


def broken_claims(rows: list[dict[str, Any]], page: str) -> list[str]:
    """Return each claim of a page's table that the runs do not bear out, as a sentence."""
    found = {(row["task"], MEASURES[row["measure"]]): row["verdict"] for row in rows}
    claims = CLAIM_ROW.findall(page)
    if not claims:
        return [f"{CLAIMS} has no table of learning claims."]
    return [f"{CLAIMS}: {task}, {what}: {claim}; the runs say: {found.get((task, what), 'nothing')}."
            for task, what, claim in claims if claim != "no claim" and found.get((task, what)) != claim]


def score_items(task: str, seed: int, adapter: Path, out: Path) -> None:
    """Answer every held-out problem of the profile's difficulty with the base policy and with the adapter on top."""
    from problama_utils.model.completions import complete
    from problama_utils.model.loading import load_adapter, load_policy
    from problama_utils.tasks.registry import get_task
    from problama_utils.training.problems import heldout_problems

    profile = get_profile("cpu")
    settings = getattr(profile, task)
    problems = heldout_problems(task, settings, size=0)
    model, tokenizer = load_policy(profile, seed=seed)
    columns: dict[str, list[str]] = {"id": list(problems["id"])}
    for when in ("before", "after"):
        policy = model if when == "before" else load_adapter(model, adapter)
        for how, temperature in (("greedy", 0.0), ("sampled", settings.temperature)):
            texts = complete(policy, tokenizer, list(problems["prompt"]), temperature=temperature, seed=seed,
                             max_new_tokens=settings.max_completion_length)
            columns[f"{how}_{when}"] = [get_task(task).judge(text, row).value
                                        for row, text in zip(problems, texts, strict=True)]
    write_table(out, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def ship(run: Path, target: Path, keep_adapter: bool) -> None:
    """Copy what the course ships of a run; its adapter in bf16, half the size."""
    import torch
    from safetensors.torch import load_file, save_file

    target.mkdir(parents=True, exist_ok=True)
    for name in ("log.csv", "heldout.csv", "completions.jsonl", "run.json"):
        shutil.copy(run / name, target / name)
    if keep_adapter:
        (target / "adapter").mkdir(exist_ok=True)
        weights = load_file(run / "adapter" / "adapter_model.safetensors")
        halved = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
        save_file(halved, target / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
        config = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = Path(config["base_model_name_or_path"]).name  # not a path of this machine
        write_json(target / "adapter" / "adapter_config.json", config)


def remake(root: Path, seeds: list[int], work: Path) -> None:
    """Train every seed of both tasks, two at a time on one thread each, score them, and copy what is shipped."""
    jobs = [(task, seed) for task in TASKS for seed in seeds]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PROBLAMA_QUIET": "1"}
    for at in range(0, len(jobs), 2):
        commands = [[sys.executable, __file__, "--one", task, str(seed), str(work / f"{task}-{seed}")]
                    for task, seed in jobs[at : at + 2]]
        running = [subprocess.Popen(command, env=environment) for command in commands]
        if any(child.wait() for child in running):
            raise SystemExit("A training failed; make the same call again, it goes on where it stopped.")
    for task, seed in jobs:
        ship(work / f"{task}-{seed}", root / f"{task}-{seed}", keep_adapter=seed == SHIPPED_SEED)
        shutil.copy(work / f"{task}-{seed}" / "items.csv", root / f"{task}-{seed}" / "items.csv")


def one(task: str, seed: int, folder: Path) -> None:
    """Train one run unless it is there already, and score it."""
    from problama_utils.training.run import run_grpo

    if not (folder / RUN_FILE).exists():
        run_grpo(task, get_profile("cpu"), seed=seed, out=folder)
    score_items(task, seed, folder / ADAPTER_FOLDER, folder / "items.csv")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--read", type=Path, help="folder with the runs, e.g. assets/runs")
    parser.add_argument("--remake", type=Path, help="train and score again, and write here")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--work", type=Path, default=Path("build/learning"), help="whole runs with every adapter")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "SEED", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], int(options.one[1]), Path(options.one[2]))
        return 0
    if options.remake:
        remake(options.remake, options.seeds, options.work)
    root = options.read or options.remake
    if root is None:
        parser.error("say --read FOLDER or --remake FOLDER")
    rows = [row for task in TASKS for row in measure(task, root)]
    print(table(rows))
    for row in rows:
        print(f"{row['task']}, {row['measure']}: gains per seed {row['per_seed']}")
    broken = broken_claims(rows, (course_root() / CLAIMS).read_text(encoding="utf-8"))
    print("\n".join(broken) or f"Every claim of {CLAIMS} holds.")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
