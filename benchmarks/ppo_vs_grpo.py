"""PPO against GRPO on the small game of problama_utils.grpo.head_to_head: the full comparison of notebook 01.

    python benchmarks/ppo_vs_grpo.py             # tune on 4 seeds, compare on 16 others: some minutes on 2 cores
    python benchmarks/ppo_vs_grpo.py --quick     # 4 seeds, 40 updates, no tuning, nothing written: under a minute

Both methods get the same policy network, the same rollouts and the same learning rates to choose from; each is compared
at the rate that was best for it on seeds that the comparison does not use. Writes assets/results/ppo_vs_grpo.json.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from dataclasses import asdict, replace
from statistics import fmean, median

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from problama_utils.figures.curves import save, success_curves  # noqa: E402
from problama_utils.grpo.head_to_head import Comparison, Run, Settings, compare, mean_and_interval, train  # noqa: E402

RATES = (0.003, 0.01, 0.02, 0.03)
TUNING_SEEDS, SEEDS = range(1000, 1004), range(16)


def runs(settings: Settings, seeds: range) -> list[Run]:
    """The same settings over several seeds."""
    return [train(replace(settings, seed=seed)) for seed in seeds]


def tuned(settings: Settings) -> tuple[Settings, dict[str, float]]:
    """Choose the learning rate with the best mean success over training, on the tuning seeds."""
    scores = {}
    for rate in RATES:
        trial = replace(settings, learning_rate=rate, value_learning_rate=rate)
        scores[rate] = fmean(fmean(run.success) for run in runs(trial, TUNING_SEEDS))
    best = max(scores, key=scores.get)
    return replace(settings, learning_rate=best, value_learning_rate=best), {str(r): s for r, s in scores.items()}


def last_tenth(run: Run) -> float:
    """Mean success over the last tenth of the updates."""
    return fmean(run.success[-max(1, len(run.success) // 10) :])


def summary(method_runs: list[Run]) -> dict[str, object]:
    """The numbers of one method, for the table and the JSON."""
    mean, low, high = mean_and_interval(method_runs)
    first = method_runs[0]
    return {
        "settings": {name: value for name, value in asdict(first.settings).items() if name != "seed"},
        "parameters": first.parameters,
        "optimiser_bytes": first.optimiser_bytes,
        "milliseconds_per_update": round(median(run.milliseconds for run in method_runs), 2),
        "mean_success": fmean(fmean(run.success) for run in method_runs),
        "last_tenth": fmean(map(last_tenth, method_runs)),
        "dead_groups": fmean(fmean(run.dead_groups) for run in method_runs) if first.dead_groups else None,
        "curve": {"mean": mean, "low": low, "high": high},
    }


def as_record(comparison: Comparison) -> dict[str, object]:
    """A comparison for the JSON: its differences, their mean and error, and the verdict in words."""
    return {
        "differences": comparison.differences,
        "mean": comparison.mean,
        "standard_error": comparison.standard_error,
        "verdict": comparison.verdict,
    }


def main() -> None:
    """Tune, compare, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 seeds, 40 updates, no tuning, nothing written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # the networks are so small that a second thread only costs
    by_method, tuning = {}, {}
    for method in ("ppo", "grpo"):
        settings = Settings(method, updates=40 if quick else 100, learning_rate=0.01, value_learning_rate=0.01)
        if not quick:
            settings, tuning[method] = tuned(settings)
        by_method[method] = runs(settings, range(4) if quick else SEEDS)
    table = {method: summary(method_runs) for method, method_runs in by_method.items()}
    report(table, len(by_method["ppo"]))
    verdicts = {
        "mean success over training": compare(by_method["ppo"], by_method["grpo"]),
        "success at the end (last tenth)": compare(by_method["ppo"], by_method["grpo"], last_tenth),
    }
    for name, comparison in verdicts.items():
        print(f"{name}: {comparison.verdict}")
    if quick:
        return
    record = {
        "seeds": list(SEEDS),
        "tuning_seeds": list(TUNING_SEEDS),
        "tuning": tuning,
        "methods": table,
        "comparisons": {name: as_record(comparison) for name, comparison in verdicts.items()},
    }
    target = ROOT / "assets" / "results" / "ppo_vs_grpo.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    curves = success_curves({m.upper(): r for m, r in by_method.items()}, by_method["ppo"][0].settings.rollouts)
    save(curves, ROOT / "assets" / "figures", "ppo_vs_grpo_head_to_head")
    print(f"written: {target.relative_to(ROOT)}")


def report(table: dict[str, dict], seeds: int) -> None:
    """Print the head-to-head table with the 95 % band at the end of training."""
    widths = {"rate": 7, "mean success": 14, "at the end, 95 % band": 26, "parameters": 12, "Adam bytes": 12}
    print(f"{'method':8}" + "".join(f"{name:>{width}}" for name, width in widths.items()) + f"{'ms/update':>11}")
    for method, row in table.items():
        curve = row["curve"]
        end = f"{curve['mean'][-1]:.3f} [{curve['low'][-1]:.3f}, {curve['high'][-1]:.3f}]"
        print(
            f"{method:8}{row['settings']['learning_rate']:7g}{row['mean_success']:14.3f}{end:>26}{row['parameters']:12,}"
            f"{row['optimiser_bytes']:12,}{row['milliseconds_per_update']:11.2f}"
        )
    print(f"{seeds} seeds, {table['ppo']['settings']['rollouts']} rollouts per update for both methods")


if __name__ == "__main__":
    main()
