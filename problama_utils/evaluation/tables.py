"""The tables of an ARC study: accuracy with intervals, format and knowledge apart, beside what guessing would give.

    python -m problama_utils.evaluation --results assets/results
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from problama_utils import CourseError
from problama_utils.evaluation.records import read_records
from problama_utils.evaluation.uncertainty import wilson_interval

if TYPE_CHECKING:
    import pandas as pd

BY = ["data", "system", "policy"]
NAMES = {"arc": "ARC-Challenge test", "own": "the kit's own science questions"}


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """Return one row per data set, prompt and policy: n, shares (0 to 1) and chance.

    Columns: `n, unparsed, strict, among_parsed, unread, lenient, among_read, likelihood, likelihood_norm, chance`.
    `strict` and `lenient` count what cannot be read as not right; `among_parsed` and `among_read` are the accuracy
    among what could be read strictly, or leniently (NaN where there is nothing).
    """
    groups = records.groupby(BY, sort=False)
    table = groups.agg(
        n=("id", "size"), unparsed=("unparsed", "mean"), strict=("correct_strict", "mean"),
        unread=("unread", "mean"), lenient=("correct_lenient", "mean"), likelihood=("correct_likelihood", "mean"),
        likelihood_norm=("correct_likelihood_norm", "mean"), chance=("chance", "mean"),
    )  # fmt: skip
    table.insert(3, "among_parsed", records[~records.unparsed].groupby(BY).correct_strict.mean())
    table.insert(6, "among_read", records[~records.unread].groupby(BY).correct_lenient.mean())
    return table


def gains(records: pd.DataFrame, base: str = "base") -> pd.DataFrame:
    """Return each policy's difference from the base in percentage points, on the questions both have answered.

    Format: `format`, `format_lenient` (share of answers that can be read), `among_read` (accuracy among what each can
    read leniently: not the same questions for both). Knowledge: `knowledge`, `knowledge_norm` (likelihood accuracy).
    """
    import pandas as pd

    rows = []
    for (data, system), part in records.groupby(["data", "system"], sort=False):
        reference = part[part.policy == base].set_index("id")
        for policy, mine in part[part.policy != base].groupby("policy", sort=False):
            mine = mine.set_index("id")
            shared = mine.index.intersection(reference.index)
            if len(shared):
                a, b = (_shares(table.loc[shared]) for table in (mine, reference))
                rows.append({"data": data, "system": system, "policy": policy, "n": len(shared),
                             **{name: 100 * (a[name] - b[name]) for name in a}})
    return pd.DataFrame(rows)


def _shares(part: pd.DataFrame) -> dict[str, float]:
    return {"format": 1 - part.unparsed.mean(), "format_lenient": 1 - part.unread.mean(),
            "among_read": part[~part.unread].correct_lenient.mean(), "knowledge": part.correct_likelihood.mean(),
            "knowledge_norm": part.correct_likelihood_norm.mean()}


def print_table(records: pd.DataFrame) -> None:
    """Print accuracies with 95 % Wilson intervals, and the gains over the base, per data set and prompt."""
    table, differences = summarise(records), gains(records)
    heads = ("right, strict", "right, lenient", "among those read", "likelihood acc", "likelihood acc_norm")
    for (data, system), part in table.groupby(level=[0, 1], sort=False):
        prompt = "with the system prompt" if system else "without a system prompt"
        print(f"\n{NAMES.get(data, data)}, {prompt}: percent right (95 % Wilson interval)")
        print(f"{'policy':14} {'n':>5} {'unparsed':>9} {'unread':>7} " + " ".join(f"{head:>21}" for head in heads))
        for (_, _, policy), row in part.iterrows():
            n, read = int(row.n), round(row.n * (1 - row.unread))
            cells = [_share(row.strict, n), _share(row.lenient, n), _share(row.among_read, read),
                     _share(row.likelihood, n), _share(row.likelihood_norm, n)]
            print(f"{policy:14} {n:5} {100 * row.unparsed:9.1f} {100 * row.unread:7.1f} "
                  + " ".join(f"{cell:>21}" for cell in cells))
        print(f"chance: {100 * part.chance.iloc[0]:.1f} (a label drawn at random)")
    if len(differences):
        print("\nGain over the base in percentage points. Format: answers that can be read strictly, leniently, and "
              "the accuracy\namong those read leniently. Knowledge: accuracy by likelihood, which needs no format.")
    for row in differences.itertuples():
        print(f"{NAMES.get(row.data, row.data):33} {'with' if row.system else 'without':8} {row.policy:14} format "
              f"{row.format:+6.1f} {row.format_lenient:+6.1f} {row.among_read:+6.1f}   knowledge acc "
              f"{row.knowledge:+5.1f} acc_norm {row.knowledge_norm:+5.1f}   n = {row.n}")


def _share(share: float, n: int) -> str:
    if n == 0:
        return "none"
    low, high = wilson_interval(round(share * n), n)
    return f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m problama_utils.evaluation`."""
    parser = argparse.ArgumentParser(prog="python -m problama_utils.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("assets/results"), help="results, or a study's own folder")
    folder = parser.parse_args(arguments).results
    places = [place for place in (folder / "arc", folder) if any(place.glob("*.csv"))]
    if not places:
        raise CourseError(f"There are no records in {folder.name!r}: measure first, with python -m "
                          "benchmarks.arc_study --data <folder with ARC-Challenge/> --adapters runs.")
    print_table(read_records(places[0]))
    return 0
