"""Compare our likelihood accuracies with lm-evaluation-harness 0.4.13's `arc_challenge`, zero-shot, item by item.

    python benchmarks/arc_parity.py --data ../shared/data --limit 300
    python benchmarks/arc_parity.py --data ../shared/data --limit 300 --dtype bfloat16

Both score the same model object. An item agrees where the two give the same `acc` and the same `acc_norm`. Every item
that does not is explained: a tie (two choices closer than both programs' rounding) or not. In fp32 nothing is rounded
visibly; in bf16 the harness rounds log-probabilities themselves to 8 bits of mantissa (it takes the softmax in the
model's precision), so near ties fall either way. `--system` compares the form with the system prompt instead.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from arc_harness import ROOT, base_model, machine, make_task, need_harness, run_harness, sample_scores

MEASURES = ("acc", "acc_norm")


def compare(rows: list[dict[str, Any]], ours: list[list[float]], samples: list[dict[str, Any]], noise: float
            ) -> list[dict[str, Any]]:
    """Return one comparison per item: verdicts of both, and for a difference its explanation.

    Args:
        rows: questions.
        ours: our log-likelihoods per choice.
        samples: the harness's samples, in the same order.
        noise: nats by which a sum may differ in this precision.
    """
    from problama_utils.model.likelihood import likeliest, per_character

    items = []
    for row, scores, sample in zip(rows, ours, samples, strict=True):
        if sample["doc"]["id"] != row["id"]:
            raise SystemExit(f"The harness answered {sample['doc']['id']} where {row['id']} was asked.")
        right, theirs = row["labels"].index(row["answer"]), sample_scores(sample)
        item = {"id": row["id"], "largest_gap": max(abs(a - b) for a, b in zip(scores, theirs, strict=True))}
        for name, values in (("acc", scores), ("acc_norm", per_character(scores, row["choices"]))):
            item[name] = int(likeliest(values) == right), int(sample[name])
            if item[name][0] != item[name][1]:
                lengths = [1.0] * len(scores) if name == "acc" else [float(len(choice)) for choice in row["choices"]]
                item["why"] = _explain(name, values, [b / n for b, n in zip(theirs, lengths, strict=True)], lengths,
                                       noise)
        items.append(item)
    return items


def _explain(name: str, ours: list[float], theirs: list[float], lengths: list[float], noise: float) -> str:
    a, b = ours.index(max(ours)), theirs.index(max(theirs))
    gap, gap_theirs = abs(ours[a] - ours[b]), abs(theirs[a] - theirs[b])
    allowed = noise / lengths[a] + noise / lengths[b]
    if gap_theirs == 0:
        return f"{name}: an exact tie for the harness, which takes the first; for us {gap:.4f} apart"
    kind = "a tie within rounding" if gap <= allowed else "UNEXPLAINED"
    return f"{name}: {kind} (best two {gap:.4f} apart for us, {gap_theirs:.4f} for the harness; rounding {allowed:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with ARC-Challenge/; without it the kit's own questions")
    parser.add_argument("--limit", type=int, default=300, help="the first items only; 0 = all 1,172")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=8, help="the harness's")
    parser.add_argument("--system", action="store_true", help="with the system prompt, in a chat")
    parser.add_argument("--save", action="store_true", help="write assets/results/arc_parity_<dtype>.json")
    options = parser.parse_args()
    harness = need_harness()

    from problama_utils.evaluation.scoring import choice_scores
    from problama_utils.tasks.science import SCIENCE, load_science

    rows = list(load_science("test", source=options.data or "embedded"))[: options.limit or None]
    model, tokenizer = base_model(options.dtype)
    ours = choice_scores(model, tokenizer, rows, system=options.system)
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(rows, Path(folder))
        system = SCIENCE.system if options.system else None
        samples, _ = run_harness(model, tokenizer, task, batch_size=options.batch_size, system=system)
    # bf16 has 8 bits of mantissa: the harness's log-probability of -30 is a multiple of 1/8, once per token and once
    # for the sum; differences of up to 1.2 nats were seen on 60 items. In fp32 the largest was 0.0001.
    items = compare(rows, ours, samples, noise=2e-3 if options.dtype == "float32" else 1.5)
    agree = sum(all(item[name][0] == item[name][1] for name in MEASURES) for item in items)
    for item in items:
        if "why" in item:
            print(f"{item['id']}: {item['why']}")
    for name in MEASURES:
        mine, theirs = (sum(item[name][side] for item in items) / len(items) for side in (0, 1))
        print(f"{name:9} ours {100 * mine:.2f} %, harness {100 * theirs:.2f} %")
    gap = max(item["largest_gap"] for item in items)
    print(f"lm-evaluation-harness {harness}, {options.dtype}; largest difference of a log-likelihood {gap:.4f} nats")
    if options.save:
        record = {"date": date.today().isoformat(), "dtype": options.dtype, "system": options.system, "n": len(items),
                  "agree": agree, "largest_gap_nats": round(gap, 5), "machine": machine(),
                  **{name: {"ours": sum(i[name][0] for i in items), "harness": sum(i[name][1] for i in items)}
                     for name in MEASURES},
                  "differences": {item["id"]: item["why"] for item in items if "why" in item}}
        name = f"arc_parity_{options.dtype}{'_system' if options.system else ''}.json"
        (ROOT / "assets" / "results" / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"agreement {100 * agree / len(items):.1f} % of {len(items)} items")


if __name__ == "__main__":
    main()
