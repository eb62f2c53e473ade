"""What `python -m tools.check_data` prints: every source in its splits, the measured baselines, the gates.

The data card quotes the same tables; a test holds both equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from problama_utils.tasks.places import PUBLIC, Place, resolve
from problama_utils.tasks.registry import LOADERS
from problama_utils.tasks.science import count_digit_keys
from problama_utils.tasks.sources import DataError, assets_folder
from tools.data_gates import Gate, check, longest_option_accuracy, position_shares

MEASURES = {  # column of the baseline table -> measure in data_baselines.json
    "bank or options": "log_likelihood", "per character": "log_likelihood_normalised", "greedy": "greedy",
    "T = 1.0": "sampled_1.0", "T = 0.7": "sampled_0.7",
}


def places() -> tuple[dict[str, Place], list[DataError]]:
    """Return where each data set is read from, and of those that PROBLAMA_DATA's folder lacks the complaints."""
    found, missing = {}, []
    for data in LOADERS:
        try:
            found[data] = resolve(data, None)
        except DataError as error:
            missing.append(error)
    return found, missing


def source_lines(found: Mapping[str, Place]) -> list[tuple[str, ...]]:
    """Return the rows of the source table: data, source, split, rows, balance, longest option, model."""
    lines = []
    for data, place in found.items():
        load = LOADERS[data]
        name = PUBLIC[data] if place.public else place.kind if place.kind == "embedded" else place.about
        splits = ("train", "heldout") if data != "science" else tuple(
            split for split in ("train", "dev", "test") if split in place.files) or ("test",)
        for split in splits:
            rows = load(split).to_list()
            letters = " ".join(f"{'ABCDE'[i]} {share:.1f}" for i, share in position_shares(rows).items())
            model = _model_figures(data, split) if place.kind == "embedded" else "-"
            lines.append((data, name, split, f"{len(rows):,}", letters, f"{longest_option_accuracy(rows):.1f}", model))
    return lines


def _model_figures(data: str, split: str) -> str:
    levels = measured_baselines().get("accuracy_percent", {}).get(data, {}).get(split, {})
    return " ".join(f"L{level} {figures['log_likelihood']['percent']:.1f}" for level, figures in levels.items()) or "-"


def measured_baselines() -> dict[str, Any]:
    """Return the record that `benchmarks/data_baselines.py` wrote, empty where it is not there."""
    path = assets_folder().parent / "results" / "data_baselines.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def baseline_table(record: dict[str, Any]) -> str:
    """Lay out the untrained model's accuracy in percent, per data set, split and level."""
    lines = []
    for data, splits in record["accuracy_percent"].items():
        for split, levels in splits.items():
            for level, figures in levels.items():
                cells = [f"{figures[name]['percent']:.1f}" if name in figures else "-" for name in MEASURES.values()]
                lines.append((data, split, level, str(figures["log_likelihood"]["n"]), *cells))
    return format_table(["data", "split", "level", "items", *MEASURES], lines)


def format_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lay out text columns, two spaces apart.

    >>> print(format_table(["a", "bb"], [["xyz", "1"]]))
    a    bb
    xyz  1
    """
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in [head, *lines])


def gate_table(gates: Sequence[Gate]) -> str:
    """Lay out gates as the table of the command line and the data card."""
    return format_table(["data", "gate", "figure", "bound", ""],
                        [(g.data, g.name, f"{g.figure:.4g}", g.bound, "green" if g.ok else "RED") for g in gates])


def embedded_gates() -> list[Gate]:
    """Return every gate of the three embedded files."""
    gates = []
    for data, load in LOADERS.items():
        rows = load("test" if data == "science" else "all", source="embedded").to_list()
        gates += check(data, sorted(rows, key=lambda row: row["id"]))
    return gates


def main() -> int:
    """Print sources and gates; return 1 when a gate is red or a source is missing."""
    found, missing = places()
    print(format_table(["data", "source", "split", "rows", "right option (%)", "longest (%)", "model (%)"],
                       source_lines(found)))
    for error in missing:
        print(f"\nMISSING: {error}")
    if "science" in found and "test" in found["science"].files:
        print(f"\nARC-Challenge: {count_digit_keys('test')} test keys were digits and became letters.")
    if "physical" in found and found["physical"].public:
        print(f"PIQA: {len(LOADERS['physical']('validation')):,} labelled validation questions, none shared by "
              "goal between train and heldout where they are split here.")
    gates = embedded_gates()
    red = sum(not gate.ok for gate in gates)
    print(f"\nGates of the embedded files: {len(gates) - red} of {len(gates)} green\n{gate_table(gates)}")
    return 1 if red or missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
