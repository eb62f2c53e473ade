"""Time one GRPO step of stock TRL against the shared-prefix trainer, on the course's own riddle prompts.

    python benchmarks/grpo_step.py --pairs 5
    python benchmarks/grpo_step.py --groups 4 8 16

Each trainer lives in a process of its own (so each has its own peak memory), and the two take turns, one step each:
other load on the machine hits both. Every completion has the same number of tokens (no early stop), so both do
the same work. Shown are seconds per step; the ratio is stock / ours, one per pair, the first pair being the warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout that is not installed

from problama_utils.setup.machine import cores, peak_memory_gb  # noqa: E402

PARTS = ("rollout", "log-probabilities", "backward", "optimiser")
KINDS = ("stock", "shared-prefix")


def main() -> None:
    options = _parser().parse_args()
    if options.worker:
        _work(options)
        return
    groups = options.groups or [options.completions]
    record = {"date": date.today().isoformat(), "machine": _machine(options), "work": _work_done(options), "runs": []}
    for group in groups:
        options.completions = group
        record["runs"].append(_measure(options))
    if len(groups) > 1:
        _print_growth(record["runs"])
    if options.save:
        name = "grpo_step_groups" if options.groups else "grpo_step"
        out = ROOT / "assets" / "results" / f"{name}_{record['date']}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    last = record["runs"][-1]
    if "ratio" in last:
        print(f"ratio {last['ratio']:.1f} ({last['ratio_min']:.1f} to {last['ratio_max']:.1f}) over {options.pairs} pairs")  # noqa: E501


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="measured pairs of steps, after one warm-up pair")
    parser.add_argument("--prompts", type=int, default=4, help="P, prompts per step")
    parser.add_argument("--completions", type=int, default=8, help="G, completions per prompt")
    parser.add_argument("--groups", type=int, nargs="+", help="measure several G in turn and print how the cost grows")
    parser.add_argument("--tokens", type=int, default=24, help="T, tokens of every completion")
    parser.add_argument("--beta", type=float, default=0.04, help="weight of the KL penalty; 0 = no reference policy")
    parser.add_argument("--only", choices=KINDS, help="measure one trainer alone")
    parser.add_argument("--threads", type=int, default=0, help="threads of each process; 0 = torch's own choice")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds, for machines that are busy")
    parser.add_argument("--save", action="store_true", help="write assets/results/grpo_step[_groups]_<date>.json")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    return parser


def _measure(options: argparse.Namespace) -> dict:
    kinds = [options.only] if options.only else list(KINDS)
    workers = {kind: _start(kind, options) for kind in kinds}
    steps: dict[str, list[dict]] = {kind: [] for kind in kinds}
    try:
        for pair in range(options.pairs + 1):
            for kind in kinds:
                steps[kind].append(_step(workers[kind]))
            label = "warm-up" if pair == 0 else f"pair {pair}"
            print(f"{label:8} " + "   ".join(f"{kind} {steps[kind][-1]['step']:.2f} s" for kind in kinds), flush=True)
    finally:
        for worker in workers.values():
            worker.stdin.close()
            worker.wait(timeout=120)
    run = {"P": options.prompts, "G": options.completions, "T": options.tokens}
    for kind in kinds:
        measured = steps[kind][1:]
        run[kind] = {part: round(statistics.median(s[part] for s in measured), 3) for part in ("step", *PARTS)}
        run[kind]["steps"] = [round(step["step"], 3) for step in measured]
        run[kind]["peak_memory_gb"] = max(step["peak_memory_gb"] for step in steps[kind])
        parts = ", ".join(f"{part} {run[kind][part]:.2f}" for part in PARTS)
        print(f"{kind:14} {run[kind]['step']:6.2f} s a step: {parts}; peak {run[kind]['peak_memory_gb']:.2f} GB")
    if len(kinds) == 2:
        ratios = [a / b for a, b in zip(*(run[kind]["steps"] for kind in KINDS), strict=True)]
        run |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    return run


def _start(kind: str, options: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, __file__, "--worker", kind]
    for name in ("pairs", "prompts", "completions", "tokens", "beta"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--cpu-time"] if options.cpu_time else []
    environment = dict(os.environ)
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def _step(worker: subprocess.Popen) -> dict:
    worker.stdin.write("go\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith("STEP "):
            return json.loads(line[5:])
    raise SystemExit("A worker ended early; run it alone with --worker to see its error.")


def _print_growth(runs: list[dict]) -> None:
    for kind in KINDS:
        timed = [(run["G"], run[kind]["step"]) for run in runs if kind in run]
        if timed:
            (small, base), *more = timed
            print(f"{kind}: " + ", ".join(f"G = {g} costs {seconds / base:.2f} × G = {small}" for g, seconds in more))


def _work(options: argparse.Namespace) -> None:
    """Train in this process, one step per line on stdin, and report each step as a line of JSON."""
    from problama_utils.config import get_profile
    from problama_utils.model.loading import attach_lora, load_policy
    from problama_utils.rewards.slides import SLIDE_REWARDS
    from problama_utils.training.run import grpo_config, training_problems
    from problama_utils.training.trainer import make_trainer

    profile = get_profile("cpu")
    settings = replace(
        profile.riddles, prompts_per_step=options.prompts, num_generations=options.completions, beta=options.beta,
        max_completion_length=options.tokens, max_steps=options.pairs + 1,
    )  # fmt: skip
    model, tokenizer = load_policy(profile, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = grpo_config(settings, profile, seed=1, out=Path(folder))
        arguments.generation_kwargs = {"min_new_tokens": options.tokens}
        problems = training_problems("riddles", settings, seed=1)
        trainer = make_trainer(
            model=attach_lora(model, profile, seed=1), reward_funcs=list(SLIDE_REWARDS), args=arguments,
            train_dataset=problems, processing_class=tokenizer, trainer=options.worker,
        )  # fmt: skip
        trainer.add_callback(_stopwatch(trainer, time.process_time if options.cpu_time else time.perf_counter))
        trainer.train()


def _stopwatch(trainer, clock):
    from transformers import TrainerCallback

    seconds: dict[str, float] = defaultdict(float)

    def timed(owner, name: str, part: str) -> None:
        original = getattr(owner, name)

        def wrapper(*args, **kwargs):
            begin = clock()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[part] += clock() - begin

        setattr(owner, name, wrapper)

    timed(trainer, "_generate_single_turn", "rollout")
    timed(trainer, "_get_per_token_logps_and_entropies", "log-probabilities")
    timed(trainer.accelerator, "backward", "backward")

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if not sys.stdin.readline():
                control.should_training_stop = True
            seconds.clear()
            self.begin = clock()

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            self.before = clock()

        def on_optimizer_step(self, args, state, control, **kwargs):
            seconds["optimiser"] = clock() - self.before

        def on_step_end(self, args, state, control, **kwargs):
            peak = peak_memory_gb()
            row = {"step": clock() - self.begin, "peak_memory_gb": round(peak, 2)}
            print("STEP " + json.dumps(row | {part: seconds[part] for part in PARTS}), flush=True)

    return Stopwatch()


def _machine(options: argparse.Namespace) -> dict:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "threads": options.threads or "torch's choice",
        "load": [round(value, 2) for value in os.getloadavg()],
        "clock": "processor seconds" if options.cpu_time else "wall-clock seconds",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def _work_done(options: argparse.Namespace) -> dict:
    return {"prompts": options.prompts, "tokens": options.tokens, "beta": options.beta, "profile": "cpu", "task": "riddles"}  # noqa: E501


if __name__ == "__main__":
    main()
