"""Time ARC's log-likelihood scoring of lm-evaluation-harness 0.4.13 against ours, on the same items and this machine.

    python benchmarks/arc_speed.py --data ../shared/data
    python benchmarks/arc_speed.py --pairs 5 --items 40 --save

Both score the same model object (so the same weights, precision and threads); the harness runs at its defaults on a CPU
(batch size 1, its softmax in the model's precision). The two take turns; the first pair is the warm-up. Counted is all
work from questions to scores, tokenising included, loading the model not. A ratio is harness / ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

from arc_harness import ROOT, base_model, machine, make_task, need_harness, run_harness, sample_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with ARC-Challenge/; without it the kit's own questions")
    parser.add_argument("--items", type=int, default=60, help="questions per pair, other ones each time")
    parser.add_argument("--pairs", type=int, default=5, help="measured pairs, after one warm-up pair")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16",
                        help="of both; bfloat16 is the harness's own choice for these weights (dtype=auto)")
    parser.add_argument("--batch-size", type=int, default=1, help="the harness's; 1 is its default")
    parser.add_argument("--save", action="store_true", help="write assets/results/arc_speed_<dtype>.json")
    options = parser.parse_args()
    harness = need_harness()

    from problama_utils.evaluation.scoring import choice_scores
    from problama_utils.model.likelihood import likeliest
    from problama_utils.tasks.science import load_science

    questions = list(load_science("test", source=options.data or "embedded"))
    model, tokenizer = base_model(options.dtype)
    pairs, right, largest = [], {"ours": 0, "harness": 0}, 0.0
    for pair in range(options.pairs + 1):
        start = pair * options.items % max(1, len(questions) - options.items + 1)
        rows = questions[start : start + options.items]
        with tempfile.TemporaryDirectory() as folder:
            task = make_task(rows, Path(folder))
            samples, theirs = run_harness(model, tokenizer, task, batch_size=options.batch_size)
        begin = time.perf_counter()
        scores = choice_scores(model, tokenizer, rows, system=False)
        mine = time.perf_counter() - begin
        label = "warm-up" if pair == 0 else f"pair {pair}"
        print(f"{label:8} harness {theirs:7.2f} s   ours {mine:6.2f} s   ratio {theirs / mine:.1f}", flush=True)
        if pair == 0:
            continue
        pairs.append((theirs, mine))
        for row, found, sample in zip(rows, scores, samples, strict=True):
            right["ours"] += row["labels"][likeliest(found)] == row["answer"]
            right["harness"] += int(sample["acc"])
            largest = max(largest, *(abs(a - b) for a, b in zip(found, sample_scores(sample), strict=True)))
    n = options.items * options.pairs
    ratios = [theirs / mine for theirs, mine in pairs]
    print(f"acc: harness {right['harness']} of {n}, ours {right['ours']} of {n}; largest difference of a "
          f"log-likelihood {largest:.4f} nats ({options.dtype}, harness {harness}, batches of {options.batch_size})")
    if options.save:
        record = {"date": date.today().isoformat(), "machine": machine(), "dtype": options.dtype,
                  "harness_batch_size": options.batch_size, "items_per_pair": options.items,
                  "seconds": [{"harness": round(a, 2), "ours": round(b, 2)} for a, b in pairs],
                  "acc": {**right, "n": n}, "largest_gap_nats": round(largest, 4),
                  "ratio": round(statistics.median(ratios), 2), "ratio_min": round(min(ratios), 2),
                  "ratio_max": round(max(ratios), 2)}
        target = ROOT / "assets" / "results" / f"arc_speed_{options.dtype}.json"
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) over {len(ratios)} pairs")


if __name__ == "__main__":
    main()
