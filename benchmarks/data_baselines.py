"""Measure what the embedded model knows of the kit's own problems before any training, level by level.

    python -m benchmarks.data_baselines            # 10 to 15 minutes of one core
    python -m benchmarks.data_baselines --limit 8  # a look: the first rows of each level only, nothing is written

Riddles are answered in two ways: by the log-likelihood of the four words of the bank, and open-ended with the slides'
two examples (greedily, and by sampling), graded strictly. Physical pairs and science questions are answered by the
log-likelihood of the options read in full, as it is and divided by their length in characters. The figures go to
`assets/results/data_baselines.json`, which the data card quotes and `python -m tools.check_data` prints.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from problama_utils.config import get_profile
from problama_utils.engine.sampling import Sampling, sample_completions
from problama_utils.evaluation.scoring import choice_scores
from problama_utils.model.completions import render
from problama_utils.model.likelihood import likeliest, per_character
from problama_utils.model.loading import load_policy
from problama_utils.tasks.answers import Verdict, grade, strict_answer
from problama_utils.tasks.datasets import fingerprint
from problama_utils.tasks.registry import LOADERS
from problama_utils.tasks.riddles import riddle_messages
from tools.data_gates import options_of, right_of

TARGET = Path(__file__).resolve().parent.parent / "assets" / "results" / "data_baselines.json"
SAMPLES = 4
TEMPERATURES = (1.0, 0.7)
MAX_NEW_TOKENS = 16
PROMPTS_AT_ONCE = 32

Row = dict[str, Any]


def share(points: Sequence[float]) -> dict[str, float]:
    """Return right, n and percent of a list of 0s and 1s."""
    return {"right": int(sum(points)), "n": len(points), "percent": round(100 * sum(points) / len(points), 1)}


def by_likelihood(model: Any, tokenizer: Any, rows: Sequence[Row]) -> dict[str, list[bool]]:
    """Answer by the likeliest option in cloze form, raw and per character."""
    question = [row.get("riddle") or row.get("goal") or row["question"] for row in rows]
    asked = [{"question": text, "choices": options_of(row)} for text, row in zip(question, rows, strict=True)]
    scores = choice_scores(model, tokenizer, asked, system=False)
    raw, by_length = [], []
    for row, of_options in zip(rows, scores, strict=True):
        raw.append(likeliest(of_options) == right_of(row))
        by_length.append(likeliest(per_character(of_options, options_of(row))) == right_of(row))
    return {"log_likelihood": raw, "log_likelihood_normalised": by_length}


def open_ended(model: Any, tokenizer: Any, rows: Sequence[Row], temperature: float, seed: int) -> list[list[Verdict]]:
    """Answer riddles in words (temperature 0: once and greedily; else SAMPLES times) and grade strictly."""
    stop = (tokenizer.eos_token_id,)
    how = Sampling(MAX_NEW_TOKENS, greedy=True, stop_token_ids=stop) if temperature == 0 else Sampling(
        MAX_NEW_TOKENS, temperature=temperature, stop_token_ids=stop)
    times = 1 if temperature == 0 else SAMPLES
    generator = torch.Generator().manual_seed(seed)
    verdicts = []
    for start in range(0, len(rows), PROMPTS_AT_ONCE):
        part = rows[start : start + PROMPTS_AT_ONCE]
        texts = render(tokenizer, [riddle_messages(row) for row in part])
        tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts for _ in range(times)]
        rollouts = sample_completions(model, tokens, how, generator=generator)
        words = [tokenizer.decode(rollout.token_ids, skip_special_tokens=True) for rollout in rollouts]
        for number, row in enumerate(part):
            said = words[number * times : (number + 1) * times]
            verdicts.append([grade(strict_answer(text), [row["answer"], *row["aliases"]]) for text in said])
    return verdicts


def measure_riddles(model: Any, tokenizer: Any, rows: Sequence[Row], seed: int) -> dict[str, list[Any]]:
    """Return all measures of riddles, one entry per row (samples: SAMPLES entries per row)."""
    measures: dict[str, list[Any]] = {**by_likelihood(model, tokenizer, rows)}
    for temperature in (0.0, *TEMPERATURES):
        verdicts = open_ended(model, tokenizer, rows, temperature, seed)
        name = "greedy" if temperature == 0 else f"sampled_{temperature}"
        measures[name] = [[verdict is Verdict.RIGHT for verdict in row] for row in verdicts]
        measures[f"{name}_readable"] = [[verdict is not Verdict.UNJUDGED for verdict in row] for row in verdicts]
        if temperature > 0:
            measures[f"{name}_mixed_groups"] = [len({verdict is Verdict.RIGHT for verdict in row}) == 2
                                                for row in verdicts]
    return measures


def per_level(rows: Sequence[Row], measures: dict[str, list[Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return split -> level -> measure -> share."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for split, level in sorted({(row["split"], row["difficulty"]) for row in rows}):
        here = [i for i, row in enumerate(rows) if (row["split"], row["difficulty"]) == (split, level)]
        table.setdefault(split, {})[str(level)] = {
            name: share([point for i in here for point in (values[i] if isinstance(values[i], list) else [values[i]])])
            for name, values in measures.items()}
    return table


def machine() -> str:
    """Return the processor's name and how many threads torch used."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread(s)"


def main() -> None:
    """Measure, print and (without --limit) write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=0, help="rows per data set; 0 = all, and write the file")
    parser.add_argument("--seed", type=int, default=7, help="of the sampling")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_policy(get_profile("cpu"), seed=arguments.seed)
    model.eval()
    began, accuracy, prints = time.perf_counter(), {}, {}
    for data, load in LOADERS.items():
        dataset = load("test" if data == "science" else "all", source="embedded")
        rows = dataset.to_list()[: arguments.limit or None]
        measures = measure_riddles(model, tokenizer, rows, arguments.seed) if data == "riddles" else by_likelihood(
            model, tokenizer, rows)
        accuracy[data], prints[data] = per_level(rows, measures), fingerprint(dataset)
        print(f"{data}: {len(rows)} rows, {time.perf_counter() - began:.0f} s so far", flush=True)
    record = {
        "what": "embedded model before training, percent right per split and level; see benchmarks/data_baselines.py",
        "date": date.today().isoformat(),
        "machine": machine(),
        "model": "SmolLM2-135M-Instruct, Q4_1 dequantised to " + str(model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets")},
        "seed": arguments.seed, "samples": SAMPLES, "max_new_tokens": MAX_NEW_TOKENS,
        "fingerprints": prints,
        "accuracy_percent": accuracy,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    print(text)
    if not arguments.limit:
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        TARGET.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
